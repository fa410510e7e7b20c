"""The proxy's metrics: stable names with closed label sets.

Seconds, bytes, `_total`. A hit takes well under a millisecond, so request buckets start at 0.25 ms. With several
workers `PROMETHEUS_MULTIPROC_DIR` is set before this module is imported, and a scrape sums over them. Requests, rows
and their durations are counted before an answer is sent, with several workers in files at once, so that not even
`kill -9` loses one; stage timings, sizes and gauges follow once a second. A scrape
flushes the tallies first.
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
from foreseen.telemetry.meters import CachedChildren, Hits, NullMetric, Tallies, Tally
from foreseen.telemetry.metric_specs import CounterSpec, GaugeSpec, HistogramSpec, Spec
from foreseen.telemetry.metric_table import PROXY_METRICS

STAGES = ("decode", "prepare", "key", "near", "flight", "far", "model", "keep", "render")
ROW_RESULTS = ("near", "far", "model", "collapsed", "stale", "bypass", "error")
IMPORT_RESULTS = ("stored", "had")
REQUEST_RESULTS = ("hit", "partial", "collapsed", "stale", "miss", "bypass", "error")
MISS_REASONS = ("cold", "expired", "verify-failed", "far-down", "far-slow", "asked")
FAR_ERROR_KINDS = (
    "timeout", "connect", "loading", "readonly", "oom", "permission", "auth", "busy", "protocol", "refused", "open",
    "paused", "maxclients", "masterdown", "clusterdown", "noreplicas", "moved", "tls", "foreign",
)  # fmt: skip
DROP_REASONS = ("large", "pending", "far")
LEASE_OUTCOMES = ("won", "waited", "taken-over", "failed")
SPAN_RESULTS = ("exported", "failed", "dropped")
KAFKA_OUTCOMES = ("answered", "refused", "dead-letter", "retried")
LIMITS = ("connections", "idle", "head", "head-size", "write", "rate")
QUOTA_REPORTS = ("ok", "failed", "dropped")
UPSTREAM_PROBLEMS = ("unreachable", "credentials", "not-v2", "lists-nothing", "no-metadata", "unusable")
HANDOVER_OUTCOMES = ("equal", "changed", "failed")
AUDIT_OUTCOMES = ("equal", "different", "not-comparable", "dropped", "failed")
SHADOW_OUTCOMES = ("equal", "close", "changed", "not-comparable", "dropped", "failed")
VERIFY_REASONS = ("length", "format", "identity", "tag")

disable_created_metrics()  # type: ignore[no-untyped-call] # it adds an unused second series to every counter


class ProxyMetrics:
    """One registry per proxy process; without `on` nothing is counted in it. Labels: `model` is a served model or
    "other"; all others are fixed words."""

    requests: CachedChildren[Counter]
    rows: CachedChildren[Counter]
    background_rows: CachedChildren[Counter]
    imported_rows: CachedChildren[Counter]
    misses: CachedChildren[Counter]
    observed: CachedChildren[Counter]
    observed_seconds: CachedChildren[Counter]
    audited: CachedChildren[Counter]
    handed_over: CachedChildren[Counter]
    hot_rows: Gauge
    hot_bytes: Gauge
    audit_distinct: CachedChildren[Gauge]
    audit_unrepeatable: CachedChildren[Gauge]
    shadowed: CachedChildren[Counter]
    shadow_running: CachedChildren[Gauge]
    shadow_seconds: CachedChildren[Counter]
    shadow_distance: Tallies
    canary_requests: CachedChildren[Counter]
    canary_seconds: Tallies
    canary_share: CachedChildren[Gauge]
    request_seconds: Tallies
    model_seconds: Tallies
    far_seconds: Tallies
    saved_seconds: CachedChildren[Counter]
    far_errors: CachedChildren[Counter]
    verify_failed: CachedChildren[Counter]
    dropped: CachedChildren[Counter]
    leases: CachedChildren[Counter]
    quarantined: CachedChildren[Counter]
    limited: CachedChildren[Counter]
    spans: CachedChildren[Counter]
    tenant_requests: CachedChildren[Counter]
    tenant_rows: CachedChildren[Counter]
    tenant_model_seconds: CachedChildren[Counter]
    tenant_saved_seconds: CachedChildren[Counter]
    tenant_refused: CachedChildren[Counter]
    quota_reports: CachedChildren[Counter]
    kafka_messages: CachedChildren[Counter]
    kafka_rebalances: Counter
    kafka_in_flight: Gauge
    kafka_lag: Gauge
    evictions: Counter
    stages: Tallies
    entry_bytes: Tally
    model_rows: Tallies
    loop_lag: Tally
    cpu_seconds: Counter
    near_bytes: Gauge
    near_entries: Gauge
    in_flight: Gauge
    breaker_open: Gauge
    far_foreign: Gauge
    far_pending: Gauge
    connections: Gauge
    tasks: Gauge
    workers: Gauge
    resident: Gauge
    model_ready: CachedChildren[Gauge]
    absent_rows: CachedChildren[Gauge]
    upstream_problems: CachedChildren[Gauge]
    started: Gauge
    build: Gauge

    def __init__(self, *, on: bool = True) -> None:
        self.registry = CollectorRegistry()
        for name, spec in PROXY_METRICS.items():
            setattr(self, name, _made(spec, self.registry) if on else NullMetric())
        self.workers.set(1)
        self.started.set(time.time())
        self.build.labels(version("foreseen"), platform.python_version()).set(1)
        self._on = on
        self._hits: dict[tuple[str, str], Hits] = {}

    def hits(self, model: str, protocol: str) -> Hits:
        """The tally of a model's and protocol's hits, for callers that count many."""
        hits = self._hits.get((model, protocol))
        if hits is None and not self._on:
            hits = self._hits[model, protocol] = cast("Hits", NullMetric())
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
            for outcome in HANDOVER_OUTCOMES:
                self.handed_over.labels(model, outcome)
        for metric, values in (
            (self.verify_failed, VERIFY_REASONS),
            (self.limited, LIMITS),
            (self.spans, SPAN_RESULTS),
            (self.kafka_messages, KAFKA_OUTCOMES),
            (self.far_errors, FAR_ERROR_KINDS),
            (self.dropped, DROP_REASONS),
        ):
            for value in values:
                metric.labels(value)

    def expect_tenants(self) -> None:
        """The same of what there is with a keys file."""
        for result in QUOTA_REPORTS:
            self.quota_reports.labels(result)

    def flush(self) -> None:
        """Add the tallies to the metrics. On the event loop."""
        tallies = [self.stages, self.request_seconds, self.model_seconds, self.model_rows, self.far_seconds]
        tallies += [self.shadow_distance, self.canary_seconds]
        for tally in (*chain(*tallies), self.entry_bytes, self.loop_lag):
            tally.flush()
        for hits in self._hits.values():
            hits.flush()

    def exposition(self) -> bytes:
        """The text format, over all workers. Takes milliseconds: call it off the event loop."""
        return exposition(self.registry)


def _made(spec: Spec, registry: CollectorRegistry) -> Any:
    """The metric of one row of the table, in the form in which the hot path counts."""
    match spec:
        case CounterSpec(name, help_text, labels):
            counter = Counter(name, help_text, labels, registry=registry)
            return CachedChildren(counter) if labels else counter
        case GaugeSpec(name, help_text, mode, labels):
            gauge = Gauge(name, help_text, labels, multiprocess_mode=cast("Any", mode), registry=registry)
            return CachedChildren(gauge) if labels else gauge
        case HistogramSpec(name, help_text, buckets, labels, at_once):
            histogram = Histogram(name, help_text, labels, buckets=buckets, registry=registry)
            at_once = at_once and several_workers()
            return Tallies(histogram, at_once=at_once) if labels else Tally(histogram, at_once=at_once)
