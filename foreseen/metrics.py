"""What the proxy counts: the names others may rely on (DESIGN section 8), with closed label sets.

Seconds, bytes, `_total`. A hit takes well under a millisecond, so request buckets start at 0.25 ms. With several
workers `PROMETHEUS_MULTIPROC_DIR` is set before this module is imported, and a scrape sums over them.
"""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

REQUEST_BUCKETS = (
    0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
FAR_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)
CONTENT_TYPE = CONTENT_TYPE_LATEST
MULTIPROCESS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"

disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for every counter that nobody reads


class ProxyMetrics:
    """One registry per proxy process. Labels: `model` is a served model or "other"; all others are fixed words."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "foreseen_requests", "Requests answered.", ("model", "protocol", "code"), registry=registry
        )
        self.rows = Counter(
            "foreseen_rows",
            "Rows answered, by where the answer came from: near, far, model, collapsed, stale, bypass, error.",
            ("model", "result"),
            registry=registry,
        )
        self.misses = Counter(
            "foreseen_misses",
            "Rows that no tier answered, by reason: cold, expired, verify-failed, far-down, bypassed, asked.",
            ("model", "reason"),
            registry=registry,
        )
        self.observed = Counter(
            "foreseen_observed_rows",
            "Rows of observed models, always answered by the model, by what the cache would have done: hit-exact, "
            "hit-close, hit-different, collapsed, miss.",
            ("model", "outcome"),
            registry=registry,
        )
        self.observed_seconds = Counter(
            "foreseen_observed_saved_compute_seconds",
            "Model compute time that exact and close would-be hits of observed models would have saved.",
            ("model",),
            registry=registry,
        )
        self.request_seconds = Histogram(
            "foreseen_request_duration_seconds",
            "Time from the request's head to its answer, by result.",
            ("model", "result"),
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        self.model_seconds = Histogram(
            "foreseen_model_request_duration_seconds",
            "Time that one request to a model process took.",
            ("model",),
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        self.far_seconds = Histogram(
            "foreseen_far_duration_seconds",
            "Time of one far operation.",
            ("op",),
            buckets=FAR_BUCKETS,
            registry=registry,
        )
        self.saved_seconds = Counter(
            "foreseen_saved_compute_seconds",
            "Model compute time that answers from near, far and shared flights saved.",
            ("model",),
            registry=registry,
        )
        self.far_errors = Counter(
            "foreseen_far_errors", "Far operations that failed, by kind.", ("kind",), registry=registry
        )
        self.verify_failed = Counter(
            "foreseen_verify_failed",
            "Far entries that were not what was asked for, by reason: length, format, identity, tag.",
            ("reason",),
            registry=registry,
        )
        self.dropped = Counter(
            "foreseen_far_dropped_entries",
            "Entries that were not stored in far, by reason.",
            ("reason",),
            registry=registry,
        )
        self.evictions = Counter("foreseen_near_evictions", "Entries that near evicted for others.", registry=registry)
        sums = {"multiprocess_mode": "livesum", "registry": registry}
        self.near_bytes = Gauge("foreseen_near_bytes", "Memory of the near tier.", **sums)  # type: ignore[arg-type]
        self.near_entries = Gauge("foreseen_near_entries", "Entries in the near tier.", **sums)  # type: ignore[arg-type]
        self.aloft = Gauge("foreseen_flight_rows", "Rows being asked for right now.", **sums)  # type: ignore[arg-type]
        self.breaker_open = Gauge(
            "foreseen_far_breaker_open",
            "1 while the far tier is not asked because it failed.",
            multiprocess_mode="livemax",
            registry=registry,
        )

    def exposition(self) -> bytes:
        """The text format, over all workers. Slow with several (milliseconds): call it off the event loop."""
        return exposition(self.registry)


def exposition(registry: CollectorRegistry) -> bytes:
    """A registry in the text format; with several processes a fresh registry per scrape, summing over all of them."""
    folder = os.environ.get(MULTIPROCESS_FOLDER)
    if folder is None:
        return generate_latest(registry)
    merged = CollectorRegistry(support_collectors_without_names=True)
    MultiProcessCollector(merged, folder)  # type: ignore[no-untyped-call]
    return generate_latest(merged)


def prepare_multiprocess(folder: Path) -> None:
    """An empty folder for the workers' values; the supervisor calls it before it starts any."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.db"):
        old.unlink()


def forget_process(pid: int) -> None:
    """A worker has ended: its gauges no longer count, its counters do."""
    mark_process_dead(pid)  # type: ignore[no-untyped-call]
