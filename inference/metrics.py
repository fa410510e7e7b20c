"""Metrics of the model process: stable names, closed sets of labels.

One process per model, hence one registry and no multiprocess mode. Everything is counted before its answer is sent, so
a scrape counts every request that has been answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest

from foreseen.telemetry.exposition import Families

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


_TRITON = {
    "nv_inference_exec_count": ("foreseen_model_batch_rows_count", 1),
    "nv_inference_queue_duration_us": ("foreseen_model_queue_seconds_sum", 1e6),
    "nv_inference_compute_infer_duration_us": ("foreseen_model_run_seconds_sum", 1e6),
    "nv_inference_pending_request_count": ("foreseen_model_queue_rows", 1),
}


class ModelMetrics:
    """The metrics of one model's process; `model` is its name, the only value of that label."""

    def __init__(self, model: str, triton_version: str | None = None) -> None:
        """`triton_version`: the model's version if Triton's metric names are exported as well, otherwise None."""
        self.registry = registry = CollectorRegistry()
        self._model = model
        self._triton_version = triton_version
        self._requests = Counter(
            "foreseen_model_requests", "Inference requests answered, by status.", ("model", "code"), registry=registry
        )
        self._errors = Counter(
            "foreseen_model_errors",
            "Requests answered with an error.",
            ("model", "code"),
            registry=registry,
        )
        rows = Counter("foreseen_model_rows", "Rows computed.", ("model",), registry=registry)
        padding = Counter("foreseen_model_padding_tokens", "Padding tokens computed.", ("model",), registry=registry)
        batch = Histogram("foreseen_model_batch_rows", "Rows per run.", ("model",), buckets=_ROWS, registry=registry)
        queue = Histogram(
            "foreseen_model_queue_seconds",
            "Time a row waited.",
            ("model",),
            buckets=_SECONDS,
            registry=registry,
        )
        run = Histogram("foreseen_model_run_seconds", "Time of a run.", ("model",), buckets=_SECONDS, registry=registry)
        started = Gauge(
            "foreseen_model_start_time_seconds",
            "When the process started, Unix time: it changes when it is restarted.",
            ("model",),
            registry=registry,
        )
        started.labels(model).set(time.time())
        waiting = Gauge("foreseen_model_queue_rows", "Rows waiting for a run.", ("model",), registry=registry)
        self._rows, self._padding = rows.labels(model), padding.labels(model)
        self._batch, self._queue, self._run = batch.labels(model), queue.labels(model), run.labels(model)
        self._waiting = waiting.labels(model)

    def watch_queue(self, rows: Callable[[], int]) -> None:
        """Read the queue's length from here at each scrape."""
        self._waiting.set_function(rows)

    def ran(self, rows: int, failed: int, padding: int, waits: Sequence[float], seconds: float) -> None:
        """One run of the batcher (its `Meter`)."""
        self._rows.inc(rows - failed)
        self._padding.inc(padding)
        self._batch.observe(rows)
        self._run.observe(seconds)
        for wait in waits:
            self._queue.observe(wait)

    def request(self, status: int) -> None:
        """Count an inference request that is about to be answered."""
        self._requests.labels(self._model, str(status)).inc()

    def error(self, code: str) -> None:
        """Count a request of any route that is about to get an error."""
        self._errors.labels(self._model, code).inc()

    def exposition(self) -> bytes:
        """The text format, as of now."""
        families = list(self.registry.collect())
        more = self._triton(families) if self._triton_version is not None else ()
        return generate_latest(Families([*families, *more]))

    def _triton(self, families: Sequence[Metric]) -> Iterator[Metric]:
        """Metrics under Triton's names that only the model process can count."""
        totals: dict[str, float] = {s.name: 0.0 for family in families for s in family.samples}
        for family in families:
            for sample in family.samples:
                totals[sample.name] += sample.value
        labels = {"model": self._model, "version": self._triton_version or ""}
        for name, (source, factor) in _TRITON.items():
            family = Metric(name, f"Triton's name for {source}.", "unknown")  # Triton's counters have no _total
            family.add_sample(name, labels, round(totals[source] * factor))
            yield family
