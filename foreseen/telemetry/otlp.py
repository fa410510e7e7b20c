"""Exports spans by OpenTelemetry's SDK. Only `traces.py` imports this module, where the extra `foreseen[otel]` is.

The SDK's batches are sent by a thread, which starts with `Traces`: it must be made after a fork.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.telemetry.spans import EndedSpan

CLOSE_SECONDS = 2.0
"""A collector that is away does not hold up a shutdown for longer."""


class Traces:
    """Exports the spans of one process. All methods are called on the event loop's thread."""

    def __init__(self, service: str, share: float, queue_spans: int, metrics: ProxyMetrics | None = None) -> None:
        """`share` of the requests without a trace context are traced, too; at most `queue_spans` wait for export."""
        self.share = share
        self._most = queue_spans
        self._metrics = metrics
        self._added = self._taken = 0
        self._ids = PreparedIds()
        attributes = {"service.version": version("foreseen")}
        if not os.environ.get("OTEL_SERVICE_NAME") and "service.name=" not in os.environ.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        ):
            attributes["service.name"] = service
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=Resource.create(attributes), id_generator=self._ids, shutdown_on_exit=False
        )
        exporter = CountingExporter(OTLPSpanExporter(), self._exported)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("foreseen", version("foreseen"))

    def samples(self) -> bool:
        """Whether to trace this request, which has no trace context."""
        return self.share > 0 and random.random() < self.share  # noqa: S311 - nothing depends on it

    def add(self, span: EndedSpan) -> None:
        """Export a span later; dropped and counted where too many wait."""
        if self._added - self._taken >= self._most:
            self._count("dropped", 1)
            return
        self._added += 1
        self._ids.next = _context_of(span.context)
        made = self._tracer.start_span(
            span.name,
            context=None if span.parent is None else set_span_in_context(NonRecordingSpan(_context_of(span.parent))),
            kind=SpanKind[span.kind],
            attributes=span.attributes,
            links=[Link(_context_of(link)) for link in span.links],
            start_time=span.began_ns,
        )
        if span.error is not None:
            made.set_attribute("error.type", span.error)
            made.set_status(Status(StatusCode.ERROR))
        made.end(span.ended_ns)

    async def close(self) -> None:
        """Export what waits, for `CLOSE_SECONDS` at most."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, CLOSE_SECONDS)

    def _exported(self, spans: int, *, success: bool) -> None:
        """Called by the thread that exports."""
        self._taken += spans
        self._count("exported" if success else "failed", spans)

    def _count(self, result: str, spans: int) -> None:
        if self._metrics is not None:
            self._metrics.spans.labels(result).inc(spans)


class PreparedIds(IdGenerator):
    """Gives the SDK the ids that a span has had since its request came."""

    next: SpanContext

    def generate_trace_id(self) -> int:
        return self.next.trace_id

    def generate_span_id(self) -> int:
        return self.next.span_id


class CountingExporter(SpanExporter):
    """Reports how many spans were exported or failed."""

    def __init__(self, exporter: SpanExporter, exported: Callable[..., None]) -> None:
        self._exporter = exporter
        self._exported = exported

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self._exported(len(spans), success=result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def _context_of(traceparent: str) -> SpanContext:
    return SpanContext(
        int(traceparent[3:35], 16), int(traceparent[36:52], 16), is_remote=True, trace_flags=TraceFlags(1)
    )
