"""Time by step of a request; jobs; warming; the workers."""

from __future__ import annotations

from grafana.panels import Panel, Row
from grafana.queries import MODEL, NEEDS_NONE, NEEDS_ONE, OF, OURS, UP_OR_DOWN, fastest, one, quantile, rate, total

PIPELINE = (
    Row(
        "Steps of a request",
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
                "Median of each step.",
                "s",
                ((quantile(0.5, "foreseen_stage_duration_seconds", "stage", OURS), "{{stage}}"),),
                width=12,
                logarithmic=True,
            ),
            Panel(
                "Steps, p99",
                "99 % of each step were faster.",
                "s",
                ((quantile(0.99, "foreseen_stage_duration_seconds", "stage", OURS), "{{stage}}"),),
                width=12,
                logarithmic=True,
            ),
            Panel(
                "Time by step",
                "Seconds per second that each step takes, over all workers.",
                "short",
                ((rate("foreseen_stage_duration_seconds_sum", "stage", OURS), "{{stage}}"),),
                "stacked",
                width=12,
            ),
            Panel(
                "Rows in flight",
                "Rows requested now. Above --waiting-rows more are refused with 503.",
                "short",
                ((f"sum(foreseen_flight_rows{{{OURS}}})", "rows"),),
                width=6,
            ),
            Panel(
                "Collapsed and stale rows",
                "collapsed: waited for another request's flight. stale: an old answer was given on purpose.",
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
                "Age of the oldest job that has not ended: a new job may wait as long. See runbook: ForeseenQueueLag.",
                "s",
                ((one("foreseen_jobs_oldest_seconds"), "oldest"),),
                "stat",
                steps=((None, "green"), (60.0, "orange"), (600.0, "red")),
                width=6,
            ),
            Panel(
                "Job workers",
                "Workers on the queue with a recent heartbeat. See runbook: ForeseenJobWorkersGone.",
                "none",
                ((one("foreseen_job_workers"), "workers"),),
                "stat",
                steps=NEEDS_ONE,
                width=6,
            ),
            Panel(
                "Dead letters",
                "Jobs that crash their worker (poison pills) or failed for good: see `foreseen jobs`. See runbook: "
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
                "Jobs a second that were taken over from a worker that crashed.",
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
                "Calls a second by outcome. failed: sent again; exhausted: the last retry failed; refused: the target "
                "is not allowed. Waiting: not delivered yet. See runbook: ForeseenWebhooksLost.",
                "short",
                (
                    (fastest("foreseen_webhook_calls_total", "outcome"), "{{outcome}}"),
                    (one("foreseen_webhooks_waiting"), "waiting"),
                ),
            ),
        ),
    ),
    Row(
        "Kafka",
        (
            Panel(
                "Messages a second",
                "By outcome, of `foreseen kafka` processes. refused and dead-letter: the message is at fault. retried "
                "counts tries: the model or the broker could not answer.",
                "ops",
                ((fastest("foreseen_kafka_messages_total", "outcome"), "{{outcome}}"),),
            ),
            Panel(
                "Lag and in flight",
                "Messages not read yet, and messages read but not answered. See runbook: ForeseenKafkaLag.",
                "short",
                ((one("foreseen_kafka_lag_messages"), "lag"), (one("foreseen_kafka_in_flight_messages"), "in flight")),
            ),
            Panel(
                "Rebalances",
                "Times that partitions moved to another process, a second.",
                "ops",
                ((fastest("foreseen_kafka_rebalances_total"), "rebalances"),),
            ),
        ),
    ),
    Row(
        "Warming",
        (
            Panel(
                "Batch runs",
                "Running `foreseen warm` processes that write to Redis directly; each reports every second.",
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
                "By those runs, reported at each checkpoint, in steps. hit: already cached. failed: the run's rejects "
                "list them. The board Model shows the model's rate without steps.",
                "rowsps",
                ((fastest("foreseen_warm_rows_total", "model, result", MODEL), "{{model}} {{result}}"),),
                width=6,
            ),
            Panel(
                "Through the proxies",
                "Rows a second in the background lane, by result (batch runs with --url, requests with a priority "
                "above 1, jobs of workers that are scraped), and imported rows.",
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
                "Delay of the event loop, added to every request. Above 10 ms: the CPU is short, or a step blocks.",
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
                "A drop is a worker that ended; the supervisor restarts it.",
                "none",
                ((f"sum(foreseen_workers{{{OURS}}})", "workers"),),
            ),
            Panel(
                "Process restarts",
                "Restarts of each process of foreseen up in ten minutes. See runbook: ForeseenChildKeepsEnding.",
                "none",
                ((f"max by (child) (increase(foreseen_child_ends_total{{{OURS}}}[10m]))", "{{child}}"),),
            ),
            Panel(
                "Running processes",
                "0: a process of foreseen up has ended and waits for its restart. See runbook: "
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
                "Requests over a limit",
                "connections: refused, there was no room. idle: closed to make room. head: too slow, head-size: too "
                "large. write: does not read the reply. rate: too many requests. A client's mistake, or an attack.",
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
                "Their rows of the last minute, and those that a model had to compute: the load on a model's queue.",
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
                "Running versions of Foreseen and Python.",
                "none",
                ((f"sum by (version, python) (foreseen_build_info{{{OURS}}})", "{{version}} on Python {{python}}"),),
            ),
        ),
    ),
)
