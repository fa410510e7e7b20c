"""The settings → what samples or keeps the rows that a process answers: the audit of hits, shadow traffic, the hottest
inputs. Raises SetupError."""

from __future__ import annotations

import time

from foreseen.errors import SetupError
from foreseen.proxy.cache.near import Near
from foreseen.proxy.predict.sampling.auditor import Auditor
from foreseen.proxy.predict.sampling.draws import Draws, RowBudget
from foreseen.proxy.predict.sampling.hot_inputs import HotInputs
from foreseen.proxy.predict.sampling.shadow import CandidateModel, Shadow, ShadowEnd
from foreseen.settings import ProxySettings
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.units import share_of

MAX_ROWS_PER_SECOND = 1000.0
"""More would be a load of its own."""


def auditor_of(settings: ProxySettings, metrics: ProxyMetrics) -> Auditor | None:
    """The audit of hits; None where no share of them is asked for."""
    share = _share("--audit", settings.audit)
    budget = _budget("--audit-rows-per-second", settings.audit_rows_per_second)
    return None if share == 0 else Auditor(metrics, Draws(share), budget, settings.data)


def shadow_of(settings: ProxySettings, candidate: CandidateModel | None, metrics: ProxyMetrics) -> Shadow | None:
    """Shadow traffic to the candidate; None where no share is asked for."""
    share = _share("--shadow", settings.shadow)
    width = _share("--shadow-width", settings.shadow_width)
    budget = _budget("--shadow-rows-per-second", settings.shadow_rows_per_second)
    if settings.shadow_rows < 1:
        raise SetupError(f"--shadow-rows {settings.shadow_rows}: at least 1")
    if share == 0:
        return None
    if candidate is None:
        raise SetupError("--shadow: needs --candidate")
    end = ShadowEnd(settings.shadow_rows, width)
    return Shadow(candidate, metrics, Draws(share), budget, end, hits=settings.shadow_hits)


def hot_inputs_of(settings: ProxySettings, near: Near, metrics: ProxyMetrics) -> HotInputs | None:
    """The inputs that are kept; None where there is no memory for them."""
    if settings.keep_hot_inputs < 0:
        raise SetupError(f"--keep-hot-inputs {settings.keep_hot_inputs}: bytes, at least 0")
    return HotInputs(settings.keep_hot_inputs, near, metrics) if settings.keep_hot_inputs else None


def _share(flag: str, text: str) -> float:
    try:
        return share_of(text)
    except ValueError as error:
        raise SetupError(f"{flag}: {error}") from None


def _budget(flag: str, per_second: float) -> RowBudget:
    if not 0 < per_second <= MAX_ROWS_PER_SECOND:
        raise SetupError(f"{flag} {per_second:g}: 0 < rows <= {MAX_ROWS_PER_SECOND:g}")
    return RowBudget(per_second, time.monotonic)
