"""OpenTelemetry traces: the `OTEL_*` variables → a sink that exports spans as OTLP over HTTP, in batches, in a thread.

Needs the extra `foreseen[otel]`. Traces are on if `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`
is set. The SDK itself reads the variables of exporter, batches and resource.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import structlog
from msgspec import Struct

from foreseen.errors import SetupError
from foreseen.telemetry.metrics import ProxyMetrics

if TYPE_CHECKING:
    from foreseen.telemetry.otlp import Traces

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
SAMPLERS = {
    "always_on": 1.0,
    "parentbased_always_on": 1.0,
    "parentbased_always_off": 0.0,
    "traceidratio": None,
    "parentbased_traceidratio": None,
}
"""Name of a sampler → the share of requests without a trace context that it samples; None: its argument is."""
QUEUE_SPANS = 2048
"""Spans that wait for export, where `OTEL_BSP_MAX_QUEUE_SIZE` does not say otherwise; more are dropped."""

log = structlog.get_logger()


class TraceSettings(Struct, frozen=True):
    """What the variables come to. `share`: of requests without a trace context, 0 to 1."""

    share: float
    queue_spans: int


def settings_of(environment: Mapping[str, str]) -> TraceSettings | None:
    """The settings of traces; None where they are off. Raises SetupError for a variable that cannot be obeyed."""
    off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if off or not any(environment.get(name) for name in ENDPOINTS):
        return None
    sampler = environment.get("OTEL_TRACES_SAMPLER") or "parentbased_always_off"
    exporter = environment.get("OTEL_TRACES_EXPORTER") or "otlp"
    if sampler == "always_off" or exporter == "none":
        return None
    if exporter != "otlp":
        raise SetupError(f"OTEL_TRACES_EXPORTER: must be otlp or none, not {exporter!r}")
    for name in PROTOCOLS:
        if environment.get(name, "") not in ("", "http/protobuf"):
            raise SetupError(f"{name}: must be http/protobuf, not {environment[name]!r}")
    if sampler not in SAMPLERS:
        raise SetupError(f"OTEL_TRACES_SAMPLER: must be one of always_off, {', '.join(SAMPLERS)}, not {sampler!r}")
    share = SAMPLERS[sampler]
    if share is None:
        share = _number(environment, "OTEL_TRACES_SAMPLER_ARG", 1.0, 1.0)
    return TraceSettings(share, int(_number(environment, "OTEL_BSP_MAX_QUEUE_SIZE", QUEUE_SPANS)))


def _number(environment: Mapping[str, str], name: str, default: float, most: float = 1e6) -> float:
    try:
        value = float(environment.get(name) or default)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise SetupError(f"{name}: must be a number from 0 to {most:g}, not {environment.get(name)!r}")
    return value


def traces_of(service: str, metrics: ProxyMetrics | None = None) -> Traces | None:
    """The traces of this process by its environment; None where they are off. Raises SetupError."""
    settings = settings_of(os.environ)
    if settings is None:
        return None
    try:
        from foreseen.telemetry.otlp import Traces
    except ImportError:
        log.warning("traces: off, though an OTLP endpoint is set: install the extra foreseen[otel]")
        return None
    return Traces(service, settings.share, settings.queue_spans, metrics)
