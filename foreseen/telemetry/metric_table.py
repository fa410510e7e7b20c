"""Every metric of the proxy as one table: name, help text, labels, and how workers are summed up.

Counters and histograms sum over workers. `mode` says what several workers' gauges come to. The exposition adds `_total`
to a counter's name.
"""

from __future__ import annotations

from foreseen.telemetry.change_metrics import CHANGE_METRICS
from foreseen.telemetry.metric_specs import CounterSpec, GaugeSpec, HistogramSpec, Spec

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

PROXY_METRICS: dict[str, Spec] = {
    "requests": CounterSpec("foreseen_requests", "Requests answered.", labels=("model", "protocol", "code")),
    "rows": CounterSpec(
        "foreseen_rows",
        "Rows answered, by where the answer came from: near, far, model, collapsed, stale, bypass, error.",
        labels=("model", "result"),
    ),
    "background_rows": CounterSpec(
        "foreseen_background_rows",
        "Rows requested in the background lane, by result: those of batch runs through a proxy (a priority "
        "above 1), which are in foreseen_rows_total, too; at a worker's own /metrics those of jobs.",
        labels=("model", "result"),
    ),
    "kafka_messages": CounterSpec(
        "foreseen_kafka_messages",
        "Messages of `foreseen kafka` by outcome: answered, refused, dead-letter; retried counts tries, not messages.",
        labels=("outcome",),
    ),
    "kafka_rebalances": CounterSpec("foreseen_kafka_rebalances", "Times that partitions were taken from this process."),
    "kafka_in_flight": GaugeSpec(
        "foreseen_kafka_in_flight_messages", "Messages that were read and not yet answered.", "livesum"
    ),
    "kafka_lag": GaugeSpec(
        "foreseen_kafka_lag_messages", "Messages on the partitions of this process that were not yet read.", "livesum"
    ),
    "imported_rows": CounterSpec(
        "foreseen_imported_rows",
        "Rows that batch runs imported with their answers (POST .../import), by result: stored, had (was there).",
        labels=("model", "result"),
    ),
    "misses": CounterSpec(
        "foreseen_misses",
        "Rows that no tier answered, by reason: cold, expired, verify-failed, far-down, far-slow, asked.",
        labels=("model", "reason"),
    ),
    "observed": CounterSpec(
        "foreseen_observed_rows",
        "Rows of observed models, always answered by the model, by what the cache would have done: "
        "hit-exact, hit-close, hit-different, collapsed, miss.",
        labels=("model", "outcome"),
    ),
    "observed_seconds": CounterSpec(
        "foreseen_observed_saved_compute_seconds",
        "Model compute time that exact and close would-be hits of observed models would have saved.",
        labels=("model",),
    ),
    "request_seconds": HistogramSpec(
        "foreseen_request_duration_seconds",
        "Time from the complete body to its answer, by result.",
        labels=("model", "result"),
        buckets=REQUEST_BUCKETS,
        at_once=True,
    ),
    "model_seconds": HistogramSpec(
        "foreseen_model_request_duration_seconds",
        "Latency of model requests for cache misses: the wait of missed rows for their model process.",
        labels=("model",),
        buckets=REQUEST_BUCKETS,
        at_once=True,
    ),
    "far_seconds": HistogramSpec(
        "foreseen_far_duration_seconds", "Time of one far operation.", labels=("op",), buckets=FAR_BUCKETS, at_once=True
    ),
    "saved_seconds": CounterSpec(
        "foreseen_saved_compute_seconds",
        "Model compute time that answers from near, far and shared flights saved.",
        labels=("model",),
    ),
    "far_errors": CounterSpec("foreseen_far_errors", "Far operations that failed, by kind.", labels=("kind",)),
    "verify_failed": CounterSpec(
        "foreseen_verify_failed",
        "Far entries that failed verification, by reason: length, format, identity, tag.",
        labels=("reason",),
    ),
    "dropped": CounterSpec(
        "foreseen_far_dropped_entries", "Entries that were not stored in far, by reason.", labels=("reason",)
    ),
    "leases": CounterSpec(
        "foreseen_lease_rows",
        "Rows of slow models by the outcome of their lease in Redis: won (computed here), waited (another "
        "proxy computed them), taken-over (their leader died or failed), failed (Redis failed; computed here).",
        labels=("model", "outcome"),
    ),
    "quarantined": CounterSpec(
        "foreseen_quarantined_rows",
        "Rows refused as poison: each has twice crashed the model process when it was its only row.",
        labels=("model",),
    ),
    "limited": CounterSpec(
        "foreseen_limited",
        "Clients that met a limit: connections (refused), idle (closed to make room), head (too slow), "
        "head-size, write (they do not read), rate.",
        labels=("limit",),
    ),
    "tenant_requests": CounterSpec(
        "foreseen_tenant_requests",
        "Answered requests by tenant (the first 100 of the keys file, else other) and model.",
        labels=("tenant", "model"),
    ),
    "tenant_rows": CounterSpec(
        "foreseen_tenant_rows",
        "Rows answered by tenant and result: hit (not computed), miss.",
        labels=("tenant", "result"),
    ),
    "tenant_model_seconds": CounterSpec(
        "foreseen_tenant_model_seconds", "Seconds of computation by tenant.", labels=("tenant",)
    ),
    "tenant_saved_seconds": CounterSpec(
        "foreseen_tenant_saved_seconds", "Seconds of computation that hits saved, by tenant.", labels=("tenant",)
    ),
    "tenant_refused": CounterSpec(
        "foreseen_tenant_refused",
        "Requests refused with 429 by tenant and limit: requests, rows, misses, model-seconds.",
        labels=("tenant", "limit"),
    ),
    "quota_reports": CounterSpec(
        "foreseen_quota_reports",
        "Reports of quotas and usage to the state store, one a second: ok, failed (the last shares stay in force), "
        "dropped (usage that waited too long).",
        labels=("result",),
    ),
    "evictions": CounterSpec("foreseen_near_evictions", "Entries that near evicted to make room."),
    "stages": HistogramSpec(
        "foreseen_stage_duration_seconds",
        "Time of one step of a request: decode, prepare, key, near, flight (far and model within it), "
        "render; of one flight: far, model, keep.",
        labels=("stage",),
        buckets=STAGE_BUCKETS,
    ),
    "entry_bytes": HistogramSpec(
        "foreseen_entry_bytes", "Size of new entries, as stored in far.", buckets=ENTRY_BUCKETS
    ),
    "model_rows": HistogramSpec(
        "foreseen_model_request_rows",
        "Rows of one request to a model process.",
        labels=("model",),
        buckets=ROWS_BUCKETS,
        at_once=True,
    ),
    "loop_lag": HistogramSpec(
        "foreseen_loop_lag_seconds",
        "Event loop lag, measured four times a second. Every request of the worker is delayed by it.",
        buckets=LAG_BUCKETS,
    ),
    "cpu_seconds": CounterSpec("foreseen_worker_cpu_seconds", "CPU time of the proxy's workers."),
    "near_bytes": GaugeSpec("foreseen_near_bytes", "Memory of the near tier.", mode="livesum"),
    "near_entries": GaugeSpec("foreseen_near_entries", "Entries in the near tier.", mode="livesum"),
    "in_flight": GaugeSpec("foreseen_flight_rows", "Rows in flight: requested and not answered yet.", mode="livesum"),
    "breaker_open": GaugeSpec(
        "foreseen_far_breaker_open", "1 while far is not used because it failed (circuit breaker).", mode="livemax"
    ),
    "far_foreign": GaugeSpec(
        "foreseen_far_foreign",
        "1 while the far tier is not used because its Redis was filled under another root secret.",
        mode="livemax",
    ),
    "spans": CounterSpec(
        "foreseen_spans",
        "Spans of traces by result: exported, failed (refused by the collector), dropped (the queue was full).",
        labels=("result",),
    ),
    "far_pending": GaugeSpec("foreseen_far_pending_bytes", "Entries being stored in far.", mode="livesum"),
    "connections": GaugeSpec("foreseen_connections", "Open connections of clients.", mode="livesum"),
    "tasks": GaugeSpec("foreseen_tasks", "Tasks of the workers' event loops that have not ended.", mode="livesum"),
    "workers": GaugeSpec("foreseen_workers", "Proxy workers alive.", mode="livesum"),
    "resident": GaugeSpec("foreseen_worker_resident_bytes", "Memory of the proxy's workers.", mode="livesum"),
    "model_ready": GaugeSpec(
        "foreseen_model_ready",
        "1 while every worker can reach the model process: a miss would be answered.",
        labels=("model",),
        mode="livemin",
    ),
    "absent_rows": GaugeSpec(
        "foreseen_model_absent_rows",
        "Rows of the last minute that wait for a model that is absent: their requests got 503 with Retry-After, or a "
        "stale answer. 0 once the model is there.",
        labels=("model",),
        mode="livesum",
    ),
    "upstream_problems": GaugeSpec(
        "foreseen_upstream_problems",
        "Models behind --upstream, or the server itself, that cannot be served, by problem: unreachable, credentials, "
        "not-v2, lists-nothing, no-metadata, unusable. The log says what was requested, and what to do.",
        labels=("problem",),
        mode="livemax",
    ),
    "started": GaugeSpec(
        "foreseen_worker_start_time_seconds",
        "When the youngest worker started, Unix time: it changes whenever one is restarted.",
        mode="max",
    ),
    "build": GaugeSpec(
        "foreseen_build_info", "1; its labels are the versions that run.", labels=("version", "python"), mode="max"
    ),
    **CHANGE_METRICS,
}
"""Attribute of `ProxyMetrics` → its metric, in the order of the exposition."""
