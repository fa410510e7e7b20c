"""Where the time goes, step by step; the workers."""

from __future__ import annotations

from grafana.panels import Panel, Row
from grafana.queries import OF, OURS, quantile, rate, total

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
                "Connections",
                "Open connections of callers. At --connections of a worker, idle ones are closed to make room.",
                "none",
                ((f"sum(foreseen_connections{{{OURS}}})", "open"),),
            ),
            Panel(
                "Callers that met a limit",
                "connections: refused, there was no room. idle: closed to make room. head: too slow, head-size: too "
                "large. write: they do not read. rate: too many requests. Somebody's mistake, or an attack.",
                "ops",
                ((rate("foreseen_limited_total", "limit", OURS), "{{limit}}"),),
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
