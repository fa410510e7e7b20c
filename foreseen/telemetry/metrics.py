"""What the proxy counts: the names others may rely on (DESIGN section 8), with closed label sets.

Seconds, bytes, `_total`. A hit takes well under a millisecond, so request buckets start at 0.25 ms. With several
workers `PROMETHEUS_MULTIPROC_DIR` is set before this module is imported, and a scrape sums over them. Requests, rows
and their durations are counted before an answer is sent, with several workers in files at once, so that not even
`kill -9` loses one; stage timings, sizes and gauges follow once a second. A scrape brings in what is tallied.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable
from importlib.metadata import version
from itertools import chain
from typing import Any, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from foreseen.telemetry.exposition import exposition, several_workers
from foreseen.telemetry.meters import Hits, Kept, Nothing, Tallies, Tally

REQUEST_BUCKETS = (
    0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
STAGE_BUCKETS = (
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0,
)  # fmt: skip
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
ROWS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ENTRY_BUCKETS = tuple(float(4**power) for power in range(3, 13))
FAR_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)

STAGES = ("decode", "prepare", "key", "near", "flight", "far", "model", "keep", "render")
ROW_RESULTS = ("near", "far", "model", "collapsed", "stale", "bypass", "error")
IMPORT_RESULTS = ("stored", "had")
REQUEST_RESULTS = ("hit", "partial", "collapsed", "stale", "miss", "bypass", "error")
MISS_REASONS = ("cold", "expired", "verify-failed", "far-down", "far-slow")
FAR_ERROR_KINDS = (
    "timeout", "connect", "loading", "readonly", "oom", "permission", "auth", "busy", "protocol", "refused", "open",
    "paused", "maxclients", "masterdown", "clusterdown", "noreplicas", "moved", "tls",
)  # fmt: skip
DROP_REASONS = ("large", "pending", "far")
LEASE_OUTCOMES = ("won", "waited", "taken-over", "failed")
LIMITS = ("connections", "idle", "head", "head-size", "write", "rate")
VERIFY_REASONS = ("length", "format", "identity", "tag")

disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for every counter that nobody reads


class ProxyMetrics:
    """One registry per proxy process; without `on` nothing is counted in it. Labels: `model` is a served model or
    "other"; all others are fixed words."""

    def __init__(self, *, on: bool = True) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Kept(
            Counter("foreseen_requests", "Requests answered.", ("model", "protocol", "code"), registry=registry)
        )
        self.rows = Kept(
            Counter(
                "foreseen_rows",
                "Rows answered, by where the answer came from: near, far, model, collapsed, stale, bypass, error.",
                ("model", "result"),
                registry=registry,
            )
        )
        self.background_rows = Kept(
            Counter(
                "foreseen_background_rows",
                "Rows asked in the background lane, by result: those of batch runs through a proxy (a priority above "
                "1), which are in foreseen_rows_total, too; at a worker's own /metrics those of jobs.",
                ("model", "result"),
                registry=registry,
            )
        )
        self.imported_rows = Kept(
            Counter(
                "foreseen_imported_rows",
                "Rows that batch runs handed over with their answers (POST .../import), by result: stored, had.",
                ("model", "result"),
                registry=registry,
            )
        )
        self.misses = Kept(
            Counter(
                "foreseen_misses",
                "Rows that no tier answered, by reason: cold, expired, verify-failed, far-down, "
                "far-slow, bypassed, asked.",
                ("model", "reason"),
                registry=registry,
            )
        )
        self.observed = Kept(
            Counter(
                "foreseen_observed_rows",
                "Rows of observed models, always answered by the model, by what the cache would have done: hit-exact, "
                "hit-close, hit-different, collapsed, miss.",
                ("model", "outcome"),
                registry=registry,
            )
        )
        self.observed_seconds = Kept(
            Counter(
                "foreseen_observed_saved_compute_seconds",
                "Model compute time that exact and close would-be hits of observed models would have saved.",
                ("model",),
                registry=registry,
            )
        )
        self.request_seconds = Tallies(
            Histogram(
                "foreseen_request_duration_seconds",
                "Time from a whole body to its answer, by result.",
                ("model", "result"),
                buckets=REQUEST_BUCKETS,
                registry=registry,
            ),
            at_once=several_workers(),
        )
        self.model_seconds = Tallies(
            Histogram(
                "foreseen_model_request_duration_seconds",
                "Time that the rows nobody knew waited for their model process, as one request or several.",
                ("model",),
                buckets=REQUEST_BUCKETS,
                registry=registry,
            ),
            at_once=several_workers(),
        )
        self.far_seconds = Tallies(
            Histogram(
                "foreseen_far_duration_seconds",
                "Time of one far operation.",
                ("op",),
                buckets=FAR_BUCKETS,
                registry=registry,
            ),
            at_once=several_workers(),
        )
        self.saved_seconds = Kept(
            Counter(
                "foreseen_saved_compute_seconds",
                "Model compute time that answers from near, far and shared flights saved.",
                ("model",),
                registry=registry,
            )
        )
        self.far_errors = Kept(
            Counter("foreseen_far_errors", "Far operations that failed, by kind.", ("kind",), registry=registry)
        )
        self.verify_failed = Kept(
            Counter(
                "foreseen_verify_failed",
                "Far entries that were not what was asked for, by reason: length, format, identity, tag.",
                ("reason",),
                registry=registry,
            )
        )
        self.dropped = Kept(
            Counter(
                "foreseen_far_dropped_entries",
                "Entries that were not stored in far, by reason.",
                ("reason",),
                registry=registry,
            )
        )
        self.leases = Kept(
            Counter(
                "foreseen_lease_rows",
                "Rows of slow models by what a lease in Redis made of them: won (computed here), waited (another proxy "
                "computed them), taken-over (its leader died or failed), failed (Redis did; computed here).",
                ("model", "outcome"),
                registry=registry,
            )
        )
        self.quarantined = Kept(
            Counter(
                "foreseen_quarantined_rows",
                "Rows refused because they have twice ended the model's process, alone.",
                ("model",),
                registry=registry,
            )
        )
        self.limited = Kept(
            Counter(
                "foreseen_limited",
                "Callers that met a limit: connections (refused), idle (closed to make room), head (too slow), "
                "head-size, write (they do not read), rate.",
                ("limit",),
                registry=registry,
            )
        )
        self.evictions = Counter("foreseen_near_evictions", "Entries that near evicted for others.", registry=registry)
        self.stages = Tallies(
            Histogram(
                "foreseen_stage_duration_seconds",
                "Time of one step of a request: decode, prepare, key, near, flight (far and model within it), render; "
                "of one flight: far, model, keep.",
                ("stage",),
                buckets=STAGE_BUCKETS,
                registry=registry,
            )
        )
        self.entry_bytes = Tally(
            Histogram(
                "foreseen_entry_bytes",
                "Size of the entries that were made, as they lie in far.",
                buckets=ENTRY_BUCKETS,
                registry=registry,
            )
        )
        self.model_rows = Tallies(
            Histogram(
                "foreseen_model_request_rows",
                "Rows that were asked of a model process at a time.",
                ("model",),
                buckets=ROWS_BUCKETS,
                registry=registry,
            ),
            at_once=several_workers(),
        )
        self.loop_lag = Tally(
            Histogram(
                "foreseen_loop_lag_seconds",
                "How late a worker's event loop woke, four times a second: what everybody waits on top.",
                buckets=LAG_BUCKETS,
                registry=registry,
            )
        )
        self.cpu_seconds = Counter("foreseen_worker_cpu_seconds", "CPU time of the proxy's workers.", registry=registry)
        sums: dict[str, Any] = {"multiprocess_mode": "livesum", "registry": registry}
        self.near_bytes = Gauge("foreseen_near_bytes", "Memory of the near tier.", **sums)
        self.near_entries = Gauge("foreseen_near_entries", "Entries in the near tier.", **sums)
        self.aloft = Gauge("foreseen_flight_rows", "Rows being asked for right now.", **sums)
        self.breaker_open = Gauge(
            "foreseen_far_breaker_open",
            "1 while the far tier is not asked because it failed.",
            multiprocess_mode="livemax",
            registry=registry,
        )

        self.far_pending = Gauge("foreseen_far_pending_bytes", "Entries on their way to far.", **sums)
        self.connections = Gauge("foreseen_connections", "Open connections of callers.", **sums)
        self.tasks = Gauge("foreseen_tasks", "Coroutines that the workers' event loops have under way.", **sums)
        self.workers = Gauge("foreseen_workers", "Proxy workers alive.", **sums)
        self.resident = Gauge("foreseen_worker_resident_bytes", "Memory of the proxy's workers.", **sums)
        self.model_ready = Kept(
            Gauge(
                "foreseen_model_ready",
                "1 while every worker can reach the model process: a miss would be answered.",
                ("model",),
                multiprocess_mode="livemin",
                registry=registry,
            )
        )
        newest: dict[str, Any] = {"multiprocess_mode": "max", "registry": registry}
        started = Gauge(
            "foreseen_worker_start_time_seconds",
            "When the youngest worker started, Unix time: it changes whenever one is restarted.",
            **newest,
        )
        started.set(time.time())
        self.workers.set(1)
        build = Gauge("foreseen_build_info", "1; its labels say what runs.", ("version", "python"), **newest)
        build.labels(version("foreseen"), platform.python_version()).set(1)
        if not on:
            self.registry = CollectorRegistry()
            for name in vars(self).keys() - {"registry"}:
                setattr(self, name, Nothing())
        self._on = on
        self._hits: dict[tuple[str, str], Hits] = {}

    def hits(self, model: str, protocol: str) -> Hits:
        """What hits of a model and protocol count, for those who count many."""
        hits = self._hits.get((model, protocol))
        if hits is None and not self._on:
            hits = self._hits[model, protocol] = cast("Hits", Nothing())
        elif hits is None:
            hits = self._hits[model, protocol] = Hits(
                self.requests.labels(model, protocol, "200"),
                self.rows.labels(model, "near"),
                self.rows.labels(model, "far"),
                self.saved_seconds.labels(model),
                self.request_seconds.of(model, "hit").child,
                at_once=several_workers(),
            )
        return hits

    def expect(self, models: Iterable[str]) -> None:
        """Show what may happen before it does: a rate needs a zero to start from."""
        for model in models:
            for result in ROW_RESULTS:
                self.rows.labels(model, result)
                self.background_rows.labels(model, result)
            for result in IMPORT_RESULTS:
                self.imported_rows.labels(model, result)
            for result in REQUEST_RESULTS:
                self.request_seconds.of(model, result)
            for reason in MISS_REASONS:
                self.misses.labels(model, reason)
            for protocol in ("v1", "v2"):
                self.requests.labels(model, protocol, "200")
            self.saved_seconds.labels(model)
            self.model_seconds.of(model)
            self.model_rows.of(model)
            self.quarantined.labels(model)
            for outcome in LEASE_OUTCOMES:
                self.leases.labels(model, outcome)
        for reason in VERIFY_REASONS:
            self.verify_failed.labels(reason)
        for limit in LIMITS:
            self.limited.labels(limit)
        for kind in FAR_ERROR_KINDS:
            self.far_errors.labels(kind)
        for reason in DROP_REASONS:
            self.dropped.labels(reason)

    def flush(self) -> None:
        """Bring in what was tallied. On the event loop."""
        tallies = (self.stages, self.request_seconds, self.model_seconds, self.model_rows, self.far_seconds)
        for tally in (*chain(*tallies), self.entry_bytes, self.loop_lag):
            tally.flush()
        for hits in self._hits.values():
            hits.flush()

    def exposition(self) -> bytes:
        """The text format, over all workers. Takes milliseconds: call it off the event loop."""
        return exposition(self.registry)
