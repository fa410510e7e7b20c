"""`foreseen canary`: the share of callers that a candidate answers; a proxy's metrics → how both sides answer."""

from __future__ import annotations

from typing import Any

from foreseen.errors import SetupError
from foreseen.operate.admin_client import answer_of
from foreseen.operate.scrape import Scrape, scrape
from foreseen.settings import CanarySettings
from foreseen.units import share_of

REQUESTS, SECONDS = "foreseen_canary_requests_total", "foreseen_canary_request_duration_seconds"
SIDES = ("live", "candidate")


def change(settings: CanarySettings) -> dict[str, Any] | None:
    """Set the share that is asked for; None where none is. Raises SetupError."""
    given = [settings.share is not None, settings.promote, settings.abort]
    if not any(given):
        return None
    if sum(given) > 1:
        raise SetupError("give one of --share, --promote and --abort")
    try:
        share = share_of(settings.share) if settings.share is not None else float(settings.promote)
    except ValueError as error:
        raise SetupError(f"--share: {error}") from None
    return answer_of(settings, "/admin/canary", {"share": share}, "changed")


def read(url: str) -> dict[str, dict[str, Any]]:
    """By model: the share, and of each side requests, failures and the mean time. Raises SetupError."""
    return summary_of(scrape(url))


def summary_of(found: Scrape) -> dict[str, dict[str, Any]]:
    """The same of metrics."""
    models = found.values("foreseen_canary_share", "model")
    return {
        model: {"share": found.one("foreseen_canary_share", model=model)}
        | {side: _side(found, model, side) for side in SIDES}
        for model in models
    }


def _side(found: Scrape, model: str, side: str) -> dict[str, Any]:
    codes = {
        code: round(found.total(REQUESTS, model=model, side=side, code=code)) for code in found.values(REQUESTS, "code")
    }
    requests, seconds = sum(codes.values()), found.total(f"{SECONDS}_sum", model=model, side=side)
    return {
        "requests": requests,
        "failed": sum(count for code, count in codes.items() if code.startswith("5")),
        "mean_ms": 1000 * seconds / requests if requests else None,
    }


def lines(summary: dict[str, dict[str, Any]]) -> str:
    """The summary as text for people."""
    if not summary:
        return "there is no canary; start the proxy with --candidate ADDRESS --canary 10%"
    return "\n".join(line for model, one in summary.items() for line in _lines(model, one))


def _lines(model: str, one: dict[str, Any]) -> list[str]:
    found = [f"{model}: the candidate answers {one['share']:.4g} of callers"]
    for side in SIDES:
        mean = "" if one[side]["mean_ms"] is None else f", {one[side]['mean_ms']:.3g} ms on average"
        found.append(f"  {side}: {one[side]['requests']:,} requests, {one[side]['failed']:,} failed{mean}")
    return found
