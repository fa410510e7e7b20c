"""One model: latency and results for its callers, the work of its process."""

from __future__ import annotations

from grafana.panels import Panel, Row
from grafana.queries import FRESH, MODEL, OF, OURS, quantile, rate

MODELS = (
    Row(
        "Results for callers",
        (
            Panel(
                "Hit ratio by model",
                "Share of rows answered from near or far.",
                "percentunit",
                (
                    (
                        f"{rate('foreseen_rows_total', 'model', FRESH)} / {rate('foreseen_rows_total', 'model')}",
                        "{{model}}",
                    ),
                ),
                most=1.0,
            ),
            Panel(
                "Latency, p99 by result",
                "By result, so that the model's p99 stays visible.",
                "s",
                ((quantile(0.99, "foreseen_request_duration_seconds", "model, result"), "{{model}} {{result}}"),),
            ),
            Panel(
                "Latency, p50 by result",
                "The same, median.",
                "s",
                ((quantile(0.5, "foreseen_request_duration_seconds", "model, result"), "{{model}} {{result}}"),),
            ),
            Panel(
                "Requests by protocol",
                "V1 and V2 callers.",
                "reqps",
                ((rate("foreseen_requests_total", "model, protocol"), "{{model}} {{protocol}}"),),
            ),
            Panel(
                "Misses by reason",
                "cold: never asked, evicted or purged; expired: past its TTL; far-down: Redis was not "
                "asked; far-slow: it takes longer than the model; "
                "verify-failed: the entry was not the one asked for; asked: the caller wanted a fresh one.",
                "rowsps",
                ((rate("foreseen_misses_total", "model, reason"), "{{model}} {{reason}}"),),
            ),
            Panel(
                "Ready",
                "1 while every worker reaches the model's process. 0: misses get 503.",
                "none",
                ((f"min by (model) (foreseen_model_ready{{{OF}}})", "{{model}}"),),
                steps=((None, "transparent"), (1.0, "green")),
            ),
            Panel(
                "Upstream problems",
                "Models of the server behind --upstream, or that server itself, that cannot be served, by problem. See "
                "runbook: ForeseenUpstreamNotServed.",
                "none",
                ((f"max by (problem) (foreseen_upstream_problems{{{OURS}}}) or vector(0)", "{{problem}}"),),
            ),
            Panel(
                "Rows that wait for an absent model",
                "Rows of the last minute whose model could not be asked: an autoscaler starts its first replica by it.",
                "short",
                ((f"sum by (model) (foreseen_model_absent_rows{{{OURS}}})", "{{model}}"),),
            ),
            Panel(
                "Rows in quarantine",
                "Refused because they have twice ended the model's process, alone. Look at its log.",
                "rowsps",
                ((rate("foreseen_quarantined_rows_total", "model"), "{{model}}"),),
            ),
        ),
    ),
    Row(
        "Requests to the model",
        (
            Panel(
                "Model request time",
                "Latency of model requests for cache misses.",
                "s",
                tuple(
                    (quantile(q, "foreseen_model_request_duration_seconds", "model"), f"{{{{model}}}} p{q * 100:g}")
                    for q in (0.5, 0.99)
                ),
            ),
            Panel(
                "Rows per model request",
                "Rows in one request to the model. 1 under load: requests do not overlap.",
                "short",
                (
                    (quantile(0.5, "foreseen_model_request_rows", "model"), "{{model}} p50"),
                    (quantile(0.99, "foreseen_model_request_rows", "model"), "{{model}} p99"),
                ),
            ),
            Panel(
                "Compute seconds saved per second",
                "Model compute that answers from the cache saved.",
                "short",
                ((rate("foreseen_saved_compute_seconds_total", "model"), "{{model}}"),),
            ),
        ),
    ),
    Row(
        "The model's process",
        (
            Panel(
                "Rows computed",
                "Rows that the model computed.",
                "rowsps",
                ((rate("foreseen_model_rows_total", "model", MODEL), "{{model}}"),),
            ),
            Panel(
                "Batch size",
                "Rows per run. A GPU is efficient with full batches.",
                "short",
                (
                    (quantile(0.5, "foreseen_model_batch_rows", "model", MODEL), "{{model}} p50"),
                    (quantile(0.99, "foreseen_model_batch_rows", "model", MODEL), "{{model}} p99"),
                ),
            ),
            Panel(
                "Time of a run",
                "Time of one run of the model.",
                "s",
                tuple(
                    (quantile(q, "foreseen_model_run_seconds", "model", MODEL), f"{{{{model}}}} p{q * 100:g}")
                    for q in (0.5, 0.99)
                ),
            ),
            Panel(
                "Wait in the queue",
                "Above 0.25 s the model is saturated: more instances, a bigger machine, or fewer "
                "misses. See runbook: ForeseenModelSaturated.",
                "s",
                tuple(
                    (quantile(q, "foreseen_model_queue_seconds", "model", MODEL), f"{{{{model}}}} p{q * 100:g}")
                    for q in (0.5, 0.9)
                ),
                steps=((None, "transparent"), (0.25, "red")),
            ),
            Panel(
                "Rows in the queue",
                "Rows that wait for a run now.",
                "short",
                ((f"sum by (model) (foreseen_model_queue_rows{{{MODEL}}})", "{{model}}"),),
            ),
            Panel(
                "Padding",
                "Padding tokens computed, per row. High: long and short texts share batches.",
                "short",
                (
                    (
                        (
                            f"{rate('foreseen_model_padding_tokens_total', 'model', MODEL)} / "
                            f"{rate('foreseen_model_rows_total', 'model', MODEL)}"
                        ),
                        "{{model}}",
                    ),
                ),
            ),
            Panel(
                "Uptime",
                "Age of the model's process: it falls to 0 when it is restarted.",
                "s",
                ((f"time() - max by (model) (foreseen_model_start_time_seconds{{{MODEL}}})", "{{model}}"),),
            ),
        ),
    ),
    Row(
        "What the cache would do (`--observe`)",
        (
            Panel(
                "Would-be results",
                "Observed models answer every request; these are the results that the cache would have had. "
                "hit-different: do not trust the cache with this model.",
                "rowsps",
                ((rate("foreseen_observed_rows_total", "model, outcome"), "{{model}} {{outcome}}"),),
                "stacked",
                width=12,
            ),
            Panel(
                "Would-be compute saved per second",
                "What exact and close would-be hits would have saved.",
                "short",
                ((rate("foreseen_observed_saved_compute_seconds_total", "model"), "{{model}}"),),
                width=12,
            ),
        ),
    ),
)
