"""Writes grafana/dashboards/*.json: `make dashboards`. The JSON is committed, and a test fails when it lags.

Queries say `$job` for the proxies and `$model` for models; a model process is found by its model alone, whatever the
job is called that scrapes it.
"""

from __future__ import annotations

from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana.panels import Panel, Row, board

FOLDER = Path(__file__).parent / "dashboards"
OURS = 'job=~"$job"'
OF = 'job=~"$job", model=~"$model"'
MODEL = 'model=~"$model"'
RATE = "$__rate_interval"

OBJECTIVE = 0.999
"""Of requests that are not answered with a 5xx; the same as in grafana/prometheus/rules."""

GOOD_HIGH = ((None, "red"), (0.2, "orange"), (0.5, "green"))
GOOD_LOW_HIT = ((None, "green"), (0.005, "orange"), (0.02, "red"))
GOOD_LOW_MISS = ((None, "green"), (1.0, "orange"), (5.0, "red"))
NEEDS_ONE = ((None, "red"), (1.0, "green"))
NEEDS_NONE = ((None, "green"), (1.0, "red"))
BUDGET = ((None, "red"), (0.0, "orange"), (0.5, "green"))

UNUSED = {
    "foreseen_model_errors_total": "the codes of the model process; the proxy's own say what callers saw",
    "foreseen_model_requests_total": "the model process's statuses; the same",
}
"""Metrics that no panel shows, with the reason."""


def rate(metric: str, by: str, where: str = OF) -> str:
    return f"sum by ({by}) (rate({metric}{{{where}}}[{RATE}]))"


def quantile(share: float, metric: str, by: str = "", where: str = OF) -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket{{{where}}}[{RATE}])))"


def total(metric: str, where: str = OF, window: str = RATE) -> str:
    return f"sum(rate({metric}{{{where}}}[{window}]))"


BROKEN = OURS + ', code=~"5.."'
FRESH = OF + ', result=~"near|far"'
CACHED = OF + ', result=~"near|far|collapsed|stale"'
HIT = OF + ', result="hit"'
MISS = OF + ', result="miss"'
FAILED = f'(sum(increase(foreseen_requests_total{{{OURS}, code=~"5..", code!="501"}}[$__range])) or vector(0))'
ANSWERED = f"sum(increase(foreseen_requests_total{{{OURS}}}[$__range]))"
RATIO = f"{total('foreseen_rows_total', FRESH)} / {total('foreseen_rows_total')}"

OVERVIEW = (
    Row(
        "Is it well?",
        (
            Panel(
                "Requests",
                "Requests answered per second, hits and misses, right and wrong.",
                "reqps",
                ((total("foreseen_requests_total"), "requests"),),
                "stat",
                width=4,
                height=4,
                decimals=1,
            ),
            Panel(
                "Hit ratio",
                "Share of rows answered from near or far. A sudden fall: a new model version, a purge, an "
                "emptied Redis, or other traffic. See runbook: ForeseenHitRatioCollapsed.",
                "percentunit",
                ((RATIO, "rows"),),
                "stat",
                GOOD_HIGH,
                4,
                4,
                1,
                1.0,
            ),
            Panel(
                "Hits, p99",
                "99 % of hits were faster. A hit costs well under a millisecond; above 5 ms the proxy "
                "itself is short of CPU, or far is slow.",
                "s",
                ((quantile(0.99, "foreseen_request_duration_seconds", where=HIT), "p99"),),
                "stat",
                GOOD_LOW_HIT,
                4,
                4,
            ),
            Panel(
                "Misses, p99",
                "99 % of misses were faster: this is the model's own time, plus its queue.",
                "s",
                ((quantile(0.99, "foreseen_request_duration_seconds", where=MISS), "p99"),),
                "stat",
                GOOD_LOW_MISS,
                4,
                4,
            ),
            Panel(
                "Compute saved",
                "Model seconds that answers from the cache saved in the time shown: what the cache is for.",
                "s",
                ((f"sum(increase(foreseen_saved_compute_seconds_total{{{OF}}}[$__range]))", "saved"),),
                "stat",
                ((None, "green"),),
                4,
                4,
                1,
            ),
            Panel(
                "Error budget left",
                f"Share of the allowed {1 - OBJECTIVE:.1%} of failed requests (5xx) that is left in "
                "the time shown. Below 0 the objective is broken.",
                "percentunit",
                ((f"1 - ({FAILED} / {ANSWERED}) / {1 - OBJECTIVE:.3f}", "left"),),
                "stat",
                BUDGET,
                4,
                4,
                1,
            ),
            Panel(
                "Far",
                "1: Redis answered the last scrape. 0: it is down or slower than its budget; answers go on, from "
                "near and the model. See runbook: ForeseenStoreDown.",
                "none",
                ((f"min(foreseen_far_up{{{OURS}}})", "up"),),
                "stat",
                NEEDS_ONE,
                4,
                4,
            ),
            Panel(
                "Models ready",
                "Least readiness of all models shown. 0: misses of one of them are refused with 503, hits "
                "go on. See runbook: ForeseenModelDown.",
                "none",
                ((f"min(foreseen_model_ready{{{OF}}})", "ready"),),
                "stat",
                NEEDS_ONE,
                4,
                4,
            ),
            Panel(
                "Workers",
                "Proxy workers alive.",
                "none",
                ((f"sum(foreseen_workers{{{OURS}}})", "workers"),),
                "stat",
                NEEDS_ONE,
                4,
                4,
            ),
            Panel(
                "Rows spared",
                "Rows that no model had to compute in the time shown.",
                "short",
                ((f"sum(increase(foreseen_rows_total{{{CACHED}}}[$__range]))", "rows"),),
                "stat",
                ((None, "green"),),
                4,
                4,
            ),
            Panel(
                "Failed requests",
                "Answers with a 5xx per second. 503 comes with Retry-After: a model is gone or saturated.",
                "reqps",
                ((f"{total('foreseen_requests_total', BROKEN)} or vector(0)", "5xx"),),
                "stat",
                ((None, "green"), (0.01, "red")),
                4,
                4,
                2,
            ),
            Panel(
                "Proved wrong",
                "Far entries in the time shown that were not what was asked for. They were never "
                "answered, but somebody else writes to this Redis, or its memory is bad. See runbook: "
                "ForeseenVerifyFailed.",
                "none",
                ((f"sum(increase(foreseen_verify_failed_total{{{OURS}}}[$__range]))", "entries"),),
                "stat",
                NEEDS_NONE,
                4,
                4,
                0,
            ),
        ),
    ),
    Row(
        "Traffic",
        (
            Panel(
                "Requests by result",
                "hit: all rows from the cache; partial: some; collapsed: waited for somebody "
                "else's flight; stale: an old answer on purpose; miss: none; bypass: not cached; error: refused or "
                "failed.",
                "reqps",
                ((rate("foreseen_request_duration_seconds_count", "result"), "{{result}}"),),
                "stacked",
                width=12,
            ),
            Panel(
                "Requests by status",
                "200 is well, 4xx the caller's, 5xx ours or the model's.",
                "reqps",
                ((rate("foreseen_requests_total", "code", OURS), "{{code}}"),),
                "stacked",
                width=12,
            ),
            Panel(
                "Latency of hits",
                "The proxy's own work. The line at 5 ms is the objective of 99 % of hits.",
                "s",
                tuple(
                    (quantile(q, "foreseen_request_duration_seconds", where=HIT), f"p{q * 100:g}") for q in (0.5, 0.99)
                ),
                steps=((None, "transparent"), (0.005, "red")),
                width=12,
            ),
            Panel(
                "Latency of misses",
                "The model's time plus its queue, as callers see it.",
                "s",
                tuple(
                    (quantile(q, "foreseen_request_duration_seconds", where=MISS), f"p{q * 100:g}") for q in (0.5, 0.99)
                ),
                width=12,
            ),
            Panel(
                "Hits by latency",
                "How many hits took how long: a second band is a second cause.",
                "s",
                ((f"sum by (le) (increase(foreseen_request_duration_seconds_bucket{{{HIT}}}[{RATE}]))", "{{le}}"),),
                "heatmap",
                width=12,
            ),
            Panel(
                "Misses by latency",
                "How many misses took how long.",
                "s",
                ((f"sum by (le) (increase(foreseen_request_duration_seconds_bucket{{{MISS}}}[{RATE}]))", "{{le}}"),),
                "heatmap",
                width=12,
            ),
            Panel(
                "Rows by source",
                "Where the answers came from, row by row.",
                "rowsps",
                ((rate("foreseen_rows_total", "result"), "{{result}}"),),
                "stacked",
                width=12,
            ),
            Panel(
                "Compute seconds saved per second",
                "1 means: the cache does the work of one busy model instance.",
                "short",
                ((rate("foreseen_saved_compute_seconds_total", "model"), "{{model}}"),),
                "stacked",
                width=12,
            ),
        ),
    ),
)

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
                "asked; verify-failed: the entry was not the one asked for; asked: the caller wanted a fresh one.",
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

STORE = (
    Row(
        "Near: each worker's memory",
        (
            Panel(
                "Near, bytes",
                "All workers together; each holds --near-bytes at most.",
                "bytes",
                ((f"sum(foreseen_near_bytes{{{OURS}}})", "near"),),
            ),
            Panel(
                "Near, entries",
                "All workers together; the same entry may lie in several.",
                "short",
                ((f"sum(foreseen_near_entries{{{OURS}}})", "entries"),),
            ),
            Panel(
                "Near, evictions",
                "Entries that went for others. Many, with few hits from near: raise --near-bytes.",
                "ops",
                ((total("foreseen_near_evictions_total", OURS), "evictions"),),
            ),
        ),
    ),
    Row(
        "Far: Redis",
        (
            Panel(
                "Far up",
                "1: Redis answered the scrape.",
                "none",
                ((f"min(foreseen_far_up{{{OURS}}})", "up"),),
                "stat",
                NEEDS_ONE,
                4,
                4,
            ),
            Panel(
                "Breaker open",
                "1: Redis failed three times in a row and is not asked; it is probed twice a second.",
                "none",
                ((f"max(foreseen_far_breaker_open{{{OURS}}})", "open"),),
                "stat",
                NEEDS_NONE,
                4,
                4,
            ),
            Panel(
                "Memory used",
                "Share of maxmemory. At 100 % Redis evicts the least used, which is as it should be.",
                "percentunit",
                (
                    (
                        f"max(foreseen_far_memory_bytes{{{OURS}}} / (foreseen_far_memory_limit_bytes{{{OURS}}} > 0))",
                        "used",
                    ),
                ),
                "stat",
                ((None, "green"),),
                4,
                4,
                1,
                1.0,
            ),
            Panel(
                "Entries",
                "Keys in Redis.",
                "short",
                ((f"max(foreseen_far_entries{{{OURS}}})", "entries"),),
                "stat",
                ((None, "blue"),),
                4,
                4,
            ),
            Panel(
                "Pending",
                "Bytes on their way to Redis. Near --far-pending-bytes entries are dropped.",
                "bytes",
                ((f"sum(foreseen_far_pending_bytes{{{OURS}}})", "pending"),),
                "stat",
                ((None, "green"), (32e6, "red")),
                4,
                4,
            ),
            Panel(
                "Proved wrong",
                "Entries in the time shown that were not what was asked for.",
                "none",
                ((f"sum(increase(foreseen_verify_failed_total{{{OURS}}}[$__range]))", "entries"),),
                "stat",
                NEEDS_NONE,
                4,
                4,
                0,
            ),
            Panel(
                "Redis memory",
                "Used, and the limit.",
                "bytes",
                (
                    (f"max(foreseen_far_memory_bytes{{{OURS}}})", "used"),
                    (f"max(foreseen_far_memory_limit_bytes{{{OURS}}})", "limit"),
                ),
            ),
            Panel(
                "Evicted and expired",
                "Evicted: for want of memory. Expired: its time was over. More evictions than half "
                "of what is stored: Redis is too small. See runbook: ForeseenEvictionStorm.",
                "ops",
                (
                    (f"max(rate(foreseen_far_evicted_entries_total{{{OURS}}}[{RATE}]))", "evicted"),
                    (f"max(rate(foreseen_far_expired_entries_total{{{OURS}}}[{RATE}]))", "expired"),
                    (total("foreseen_entry_bytes_count", OURS), "stored"),
                ),
            ),
            Panel(
                "Far latency",
                "Time of one get (all rows of a moment) or put.",
                "s",
                tuple(
                    (quantile(q, "foreseen_far_duration_seconds", "op", OURS), f"{{{{op}}}} p{q * 100:g}")
                    for q in (0.5, 0.99)
                ),
                steps=((None, "transparent"), (0.05, "red")),
            ),
            Panel(
                "Far operations",
                "Gets and puts per second.",
                "ops",
                ((rate("foreseen_far_duration_seconds_count", "op", OURS), "{{op}}"),),
            ),
            Panel(
                "Far errors",
                "By kind. timeout, connect: Redis is slow or gone; open: the breaker spared the wait; oom: "
                "Redis is full and does not evict; auth, permission: its users changed.",
                "ops",
                ((rate("foreseen_far_errors_total", "kind", OURS), "{{kind}}"),),
            ),
            Panel(
                "Not stored",
                "Entries that were answered but not stored: large, pending (too many under way), far (it failed).",
                "ops",
                ((rate("foreseen_far_dropped_entries_total", "reason", OURS), "{{reason}}"),),
            ),
            Panel(
                "Entry size",
                "As they lie in Redis.",
                "bytes",
                tuple((quantile(q, "foreseen_entry_bytes", where=OURS), f"p{q * 100:g}") for q in (0.5, 0.99)),
            ),
            Panel(
                "Failed proofs by reason",
                "identity, tag: somebody without the secret writes here.",
                "ops",
                ((rate("foreseen_verify_failed_total", "reason", OURS), "{{reason}}"),),
            ),
            Panel(
                "Hits by tier",
                "Rows answered from near and from far.",
                "rowsps",
                ((rate("foreseen_rows_total", "result", FRESH), "{{result}}"),),
                "stacked",
            ),
        ),
    ),
)

PIPELINE = (
    Row(
        "The way of a request",
        (
            Panel(
                "The steps",
                "**decode → prepare → key → near → flight** (far, then model, then keep within it) **→ render**. "
                "Of a request: decode, prepare, key, near, flight, render. Of a flight, which may carry rows of many "
                "requests: far, model, keep. Warming and jobs will show here when they exist.",
                "none",
                (),
                "text",
                width=24,
                height=3,
            ),
            Panel(
                "Steps, p50",
                "The middle of each step.",
                "s",
                ((quantile(0.5, "foreseen_stage_duration_seconds", "stage", OURS), "{{stage}}"),),
                width=12,
            ),
            Panel(
                "Steps, p99",
                "The slow end of each step.",
                "s",
                ((quantile(0.99, "foreseen_stage_duration_seconds", "stage", OURS), "{{stage}}"),),
                width=12,
            ),
            Panel(
                "Time by step",
                "Seconds per second that each step takes, over all workers: what to make faster.",
                "short",
                ((rate("foreseen_stage_duration_seconds_sum", "stage", OURS), "{{stage}}"),),
                "stacked",
                width=12,
            ),
            Panel(
                "Rows aloft",
                "Rows being asked for now. At --waiting-rows more are refused with 503.",
                "short",
                ((f"sum(foreseen_flight_rows{{{OURS}}})", "rows"),),
                width=6,
            ),
            Panel(
                "Collapsed and stale rows",
                "collapsed: rode on somebody else's flight. stale: an old answer was given.",
                "rowsps",
                ((rate("foreseen_rows_total", "result", OF + ', result=~"collapsed|stale"'), "{{result}}"),),
                width=6,
            ),
        ),
    ),
    Row(
        "The workers",
        (
            Panel(
                "Event loop lag",
                "How late a worker wakes: every request waits this on top. Above 10 ms: the CPU is "
                "short, or a step blocks.",
                "s",
                tuple((quantile(q, "foreseen_loop_lag_seconds", where=OURS), f"p{q * 100:g}") for q in (0.5, 0.99)),
                steps=((None, "transparent"), (0.01, "red")),
            ),
            Panel(
                "CPU",
                "Cores used by all workers.",
                "short",
                ((total("foreseen_worker_cpu_seconds_total", OURS), "cores"),),
            ),
            Panel(
                "Memory",
                "Resident memory of all workers.",
                "bytes",
                ((f"sum(foreseen_worker_resident_bytes{{{OURS}}})", "resident"),),
            ),
            Panel(
                "Workers alive",
                "A fall is a worker that ended; the supervisor starts it again.",
                "none",
                ((f"sum(foreseen_workers{{{OURS}}})", "workers"),),
            ),
            Panel(
                "Youngest worker",
                "Age of the worker that started last: it falls to 0 at a restart. See runbook: "
                "ForeseenWorkerRestarting.",
                "s",
                ((f"time() - max(foreseen_worker_start_time_seconds{{{OURS}}})", "age"),),
            ),
            Panel(
                "Version",
                "Version of Foreseen and of Python that runs.",
                "none",
                ((f"sum by (version, python) (foreseen_build_info{{{OURS}}})", "{{version}} on Python {{python}}"),),
            ),
        ),
    ),
)

BOARDS = {
    "overview": ("Overview", "Is it well, and what does the cache save?", OVERVIEW),
    "model": ("Model", "One model after the other: what callers get, what its process does.", MODELS),
    "store": ("Store", "Near and far: memory, evictions, latency, errors.", STORE),
    "pipeline": ("Pipeline", "Where the time goes, step by step; the workers.", PIPELINE),
}


def documents() -> dict[str, str]:
    """File name → JSON of every dashboard."""
    made = {}
    for name, (title, said, rows) in BOARDS.items():
        others = [(f"{word[0]}", f"foreseen-{other}") for other, word in BOARDS.items() if other != name]
        document = board(title, f"foreseen-{name}", said, rows, others=others)
        made[f"{name}.json"] = JSONEncoder(sort_keys=True, indent=2).encode(document) + "\n"
    return made


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in documents().items():
        (FOLDER / name).write_text(text)
