"""Where the time goes, step by step; the workers."""

from __future__ import annotations

from grafana.panels import Panel, Row
from grafana.queries import MODEL, NEEDS_NONE, NEEDS_ONE, OF, OURS, UP_OR_DOWN, fastest, one, quantile, rate, total

PIPELINE = (
    Row(
        "The way of a request",
        (
            Panel(
                "The steps",
                "**decode → prepare → key → near → flight** (far, then model, then keep within it) **→ render**. "
                "Of a request: decode, prepare, key, near, flight, render. Of a flight, which may carry rows of many "
                "requests: far, model, keep. Jobs take the same way, in the background lane: see below.",
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
                logarithmic=True,
            ),
            Panel(
                "Steps, p99",
                "The slow end of each step.",
                "s",
                ((quantile(0.99, "foreseen_stage_duration_seconds", "stage", OURS), "{{stage}}"),),
                width=12,
                logarithmic=True,
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
        "Jobs",
        (
            Panel(
                "Oldest job",
                "Age of the oldest job that has not ended: how long who asks now may have to wait. See runbook: "
                "ForeseenQueueLag.",
                "s",
                ((one("foreseen_jobs_oldest_seconds"), "oldest"),),
                "stat",
                steps=((None, "green"), (60.0, "orange"), (600.0, "red")),
                width=6,
            ),
            Panel(
                "Job workers",
                "Workers on the queue that were heard of a moment ago. See runbook: ForeseenJobWorkersGone.",
                "none",
                ((one("foreseen_job_workers"), "workers"),),
                "stat",
                steps=NEEDS_ONE,
                width=6,
            ),
            Panel(
                "Dead letters",
                "Jobs that are poison, or that nothing could answer: `foreseen jobs` lists them. See runbook: "
                "ForeseenDeadLetters.",
                "none",
                ((one("foreseen_jobs_dead_letters"), "dead"),),
                "stat",
                steps=NEEDS_NONE,
                width=6,
            ),
            Panel(
                "Queue",
                "Up while the state store answers; down: new jobs are refused with 503 and nothing else is. "
                "See runbook: ForeseenQueueDown.",
                "none",
                ((f"min(foreseen_queue_up{{{OURS}}})", "up"),),
                "stat",
                steps=NEEDS_ONE,
                width=6,
                words=UP_OR_DOWN,
            ),
            Panel(
                "Waiting and running",
                "Jobs that have not ended. At 100,000 more are refused with 503.",
                "short",
                ((one("foreseen_jobs", "state", 'state=~"queued|running"'), "{{state}}"),),
                "stacked",
            ),
            Panel(
                "Jobs a second",
                "Submitted: new jobs. Joined: tickets of jobs that were there already. By state: how they have ended.",
                "ops",
                (
                    (fastest("foreseen_jobs_submitted_total"), "submitted"),
                    (fastest("foreseen_jobs_joined_total"), "joined"),
                    (fastest("foreseen_jobs_ended_total", "state"), "{{state}}"),
                ),
            ),
            Panel(
                "Redeliveries",
                "Jobs a second that were taken over from a worker that died.",
                "ops",
                ((fastest("foreseen_jobs_redelivered_total"), "redelivered"),),
            ),
            Panel(
                "Memory of jobs",
                "Jobs and results in the state store, and what is reserved for results. At --queue-bytes more are "
                "refused with 503.",
                "bytes",
                ((one("foreseen_queue_bytes"), "jobs and results"),),
            ),
            Panel(
                "Ended jobs",
                "Jobs that have ended and can still be asked about, until --result-seconds are over.",
                "short",
                ((one("foreseen_jobs", "state", 'state!~"queued|running"'), "{{state}}"),),
                "stacked",
            ),
            Panel(
                "Webhooks",
                "Calls a second by outcome: failed ones are sent again, exhausted ones were the last try, refused ones "
                "went where they may not. Waiting: not delivered yet. See runbook: ForeseenWebhooksLost.",
                "short",
                (
                    (fastest("foreseen_webhook_calls_total", "outcome"), "{{outcome}}"),
                    (one("foreseen_webhooks_waiting"), "waiting"),
                ),
            ),
        ),
    ),
    Row(
        "Warming",
        (
            Panel(
                "Batch runs",
                "Runs of `foreseen warm` under way that write to Redis themselves; each is heard of every second.",
                "none",
                ((one("foreseen_warm_runs", "model", MODEL), "{{model}}"),),
                width=6,
            ),
            Panel(
                "Rows of these runs",
                "Done, and left as far as the files say how many rows they hold. It moves at each checkpoint.",
                "short",
                ((one("foreseen_warm_run_rows", "model, state", MODEL), "{{model}} {{state}}"),),
                "stacked",
                width=6,
            ),
            Panel(
                "Warmed rows a second",
                "By those runs, told at each checkpoint, hence in steps. hit: it was there. failed: the run's rejects "
                "list them. How fast the model computes meanwhile stands on the board Model, without steps.",
                "rowsps",
                ((fastest("foreseen_warm_rows_total", "model, result", MODEL), "{{model}} {{result}}"),),
                width=6,
            ),
            Panel(
                "Through the proxies",
                "Rows a second in the background lane, by result (batch runs with --url, whoever sends a priority "
                "above 1, jobs of workers that are scraped), and rows handed over with their answers.",
                "rowsps",
                (
                    (rate("foreseen_background_rows_total", "result"), "{{result}}"),
                    (rate("foreseen_imported_rows_total", "result"), "imported: {{result}}"),
                ),
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
                "Processes that ended",
                "How often in ten minutes each process of foreseen up ended and was started again. See runbook: "
                "ForeseenChildKeepsEnding.",
                "none",
                ((f"max by (child) (increase(foreseen_child_ends_total{{{OURS}}}[10m]))", "{{child}}"),),
            ),
            Panel(
                "Processes that run",
                "0: a process of foreseen up has ended and waits to be started again. See runbook: "
                "ForeseenChildKeepsEnding.",
                "none",
                ((f"min by (child) (foreseen_child_up{{{OURS}}})", "{{child}}"),),
            ),
            Panel(
                "Connections and tasks",
                "Open connections of callers, and coroutines under way (about one a connection). At --connections of a "
                "worker, idle ones are closed to make room. Tasks that grow while connections do not are a leak.",
                "none",
                ((f"sum(foreseen_connections{{{OURS}}})", "connections"), (f"sum(foreseen_tasks{{{OURS}}})", "tasks")),
            ),
            Panel(
                "Spans",
                "Spans of sampled requests. failed: the collector did not take them; dropped: too many waited for it.",
                "ops",
                ((rate("foreseen_spans_total", "result", OURS), "{{result}}"),),
            ),
            Panel(
                "Callers that met a limit",
                "connections: refused, there was no room. idle: closed to make room. head: too slow, head-size: too "
                "large. write: they do not read. rate: too many requests. Somebody's mistake, or an attack.",
                "ops",
                ((rate("foreseen_limited_total", "limit", OURS), "{{limit}}"),),
            ),
            Panel(
                "Heaviest callers",
                "Requests of the last minute by address (behind trusted proxies, --forwarded-hops, the client's), the "
                "heaviest --top-callers of each proxy; `other`: all the rest.",
                "short",
                ((f"topk(10, sum by (caller) (foreseen_caller_requests{{{OURS}}}))", "{{caller}}"),),
            ),
            Panel(
                "Heaviest callers, rows",
                "Their rows of the last minute, and those that a model had to compute: who fills the queue of a model.",
                "short",
                (
                    (f"topk(10, sum by (caller) (foreseen_caller_rows{{{OURS}}}))", "{{caller}}"),
                    (f"topk(10, sum by (caller) (foreseen_caller_computed_rows{{{OURS}}}))", "{{caller}} computed"),
                ),
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
