"""One model after the other: what callers get, what its process does."""

from __future__ import annotations

from grafana.panels import Panel, Row
from grafana.queries import FRESH, MODEL, OF, OURS, quantile, rate

MODELS = (
    Row(
        "What callers get",
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
                "Hits, misses and the rest apart: the model's p99 stays visible.",
                "s",
                ((quantile(0.99, "foreseen_request_duration_seconds", "model, result"), "{{model}} {{result}}"),),
            ),
            Panel(
                "Latency, p50 by result",
                "The same, the middle.",
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
                "cold: never asked, or evicted; expired: its time was over; far-down: Redis was not "
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
        "What the proxy asks",
        (
            Panel(
                "Model request time",
                "Time that the rows nobody knew waited for the model's process.",
                "s",
                tuple(
                    (quantile(q, "foreseen_model_request_duration_seconds", "model"), f"{{{{model}}}} p{q * 100:g}")
                    for q in (0.5, 0.99)
                ),
            ),
            Panel(
                "Rows per model request",
                "How many rows go together. 1 under load: callers do not overlap.",
                "short",
                (
                    (quantile(0.5, "foreseen_model_request_rows", "model"), "{{model}} p50"),
                    (quantile(0.99, "foreseen_model_request_rows", "model"), "{{model}} p99"),
                ),
            ),
            Panel(
                "Compute seconds saved per second",
                "Work that the cache does in the model's place.",
                "short",
                ((rate("foreseen_saved_compute_seconds_total", "model"), "{{model}}"),),
            ),
        ),
    ),
    Row(
        "What the model's process does",
        (
            Panel(
                "Rows computed",
                "Rows that really ran.",
                "rowsps",
                ((rate("foreseen_model_rows_total", "model", MODEL), "{{model}}"),),
            ),
            Panel(
                "Batch size",
                "Rows per run. Full batches are what a GPU wants.",
                "short",
                (
                    (quantile(0.5, "foreseen_model_batch_rows", "model", MODEL), "{{model}} p50"),
                    (quantile(0.99, "foreseen_model_batch_rows", "model", MODEL), "{{model}} p99"),
                ),
            ),
            Panel(
                "Time of a run",
                "The model itself.",
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
                "Waiting for a run now.",
                "short",
                ((f"sum by (model) (foreseen_model_queue_rows{{{MODEL}}})", "{{model}}"),),
            ),
            Panel(
                "Padding",
                "Tokens computed that were nobody's, per row. High: long and short texts are batched together.",
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
                "Up since",
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
                "Observed models answer themselves; this is what the cache would have said. "
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
