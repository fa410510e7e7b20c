"""The metrics of a model change: the audit of hits, shadow traffic, a canary."""

from __future__ import annotations

from foreseen.telemetry.metric_specs import CounterSpec, GaugeSpec, HistogramSpec, Spec

DISTANCE_BUCKETS = (1e-6, 1e-5, 1e-4, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
LATENCY_BUCKETS = (0.00025, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

CHANGE_METRICS: dict[str, Spec] = {
    "handed_over": CounterSpec(
        "foreseen_handover_rows",
        "Rows that `models handover` computed into a candidate's key space, by outcome: equal (as its budget counts), "
        "changed, failed.",
        labels=("model", "outcome"),
    ),
    "hot_rows": GaugeSpec(
        "foreseen_hot_input_rows", "Rows whose inputs --keep-hot-inputs keeps, of all workers.", "livesum"
    ),
    "hot_bytes": GaugeSpec("foreseen_hot_input_bytes", "Memory that the kept inputs take, of all workers.", "livesum"),
    "audited": CounterSpec(
        "foreseen_audit_rows",
        "Hit rows drawn by --audit, by outcome: equal, different (the entry was removed), not-comparable (the model "
        "changed meanwhile, or differs from itself), dropped (over --audit-rows-per-second), failed.",
        labels=("model", "outcome"),
    ),
    "audit_distinct": GaugeSpec(
        "foreseen_audit_distinct_keys",
        "Distinct keys audited since the start, of each worker, added up; an estimate within 2 %.",
        labels=("model",),
        mode="livesum",
    ),
    "audit_unrepeatable": GaugeSpec(
        "foreseen_audit_model_unrepeatable",
        "1 once the audit has seen two different answers of the model to the same row.",
        labels=("model",),
        mode="livemax",
    ),
    "shadowed": CounterSpec(
        "foreseen_shadow_rows",
        "Live rows drawn by --shadow, by how the candidate's answer compares: equal, close (other bits, same label and "
        "within the tolerance), changed, not-comparable, dropped (over the cap, or after the end), failed.",
        labels=("model", "outcome"),
    ),
    "shadow_running": GaugeSpec(
        "foreseen_shadow_running",
        "Workers that send rows to the candidate; each stops when its interval is narrow or its budget is spent.",
        labels=("model",),
        mode="livesum",
    ),
    "shadow_seconds": CounterSpec(
        "foreseen_shadow_compute_seconds",
        "Compute time of the compared rows, by side: live, candidate.",
        labels=("model", "side"),
    ),
    "shadow_distance": HistogramSpec(
        "foreseen_shadow_cosine_distance",
        "1 - cosine of the live and the candidate's answer to a row, of outputs that are float vectors.",
        labels=("model",),
        buckets=DISTANCE_BUCKETS,
    ),
    "canary_requests": CounterSpec(
        "foreseen_canary_requests",
        "Requests to a model that has a canary, by the side that answered: live, candidate.",
        labels=("model", "side", "code"),
    ),
    "canary_seconds": HistogramSpec(
        "foreseen_canary_request_duration_seconds",
        "Time from the complete body to its answer, by side.",
        labels=("model", "side"),
        buckets=LATENCY_BUCKETS,
    ),
    "canary_share": GaugeSpec(
        "foreseen_canary_share",
        "Share of callers that the candidate answers; an operator may have changed it.",
        labels=("model",),
        mode="livemax",
    ),
}
