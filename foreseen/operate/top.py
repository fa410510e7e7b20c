"""Two scrapes of a running proxy → what happens between them, as a document and as a view for a terminal."""

from __future__ import annotations

import time
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from foreseen.errors import SetupError
from foreseen.operate.callers_view import callers_of, callers_table
from foreseen.operate.scrape import Scrape, scrape

HITS = ("near", "far")
SPARED = ("near", "far", "collapsed", "stale")
_REQUESTS = "foreseen_request_duration_seconds"


def quantile(share: float, before: Scrape, after: Scrape, name: str, **labels: str) -> float | None:
    """A quantile of what a histogram gained between two scrapes, interpolated within its bucket as Prometheus does.
    None where it gained nothing; the highest bound where it lies above."""
    bounds: dict[float, float] = {}
    wanted = set(labels.items())
    for has, value in after.samples.get(f"{name}_bucket", {}).items():
        if wanted <= has:
            bound = float(dict(has)["le"])
            gained = value - before.samples.get(f"{name}_bucket", {}).get(has, 0.0)
            bounds[bound] = bounds.get(bound, 0.0) + gained
    if not bounds or bounds[max(bounds)] <= 0:
        return None
    rank, below, low = share * bounds[max(bounds)], 0.0, 0.0
    for bound, count in sorted(bounds.items()):
        if count >= rank:
            if bound == float("inf"):
                return low
            return low + (bound - low) * (rank - below) / max(count - below, 1e-9)
        below, low = count, bound
    return low


def activity(before: Scrape, after: Scrape) -> dict[str, Any]:
    """What happened between two scrapes of one proxy, and its state at the second."""
    models = after.values("foreseen_rows_total", "model")
    return {
        "seconds": round(after.at - before.at, 3),
        **_traffic(before, after),
        "failed_per_second": _failed(before, after),
        "saved_compute_seconds_total": round(after.total("foreseen_saved_compute_seconds_total"), 3),
        "spared_rows_total": sum(after.total("foreseen_rows_total", result=result) for result in SPARED),
        "workers": after.total("foreseen_workers"),
        "loop_lag_p99": quantile(0.99, before, after, "foreseen_loop_lag_seconds"),
        "in_flight_rows": after.total("foreseen_flight_rows"),
        "near": {
            "bytes": after.total("foreseen_near_bytes"),
            "entries": after.total("foreseen_near_entries"),
            "evictions_per_second": _rate(before, after, "foreseen_near_evictions_total"),
        },
        "far": _far(before, after),
        "queue": _queue(before, after),
        "warm": _warm(before, after),
        "callers": callers_of(after),
        "models": [
            {
                "model": model,
                "ready": after.one("foreseen_model_ready", model=model) == 1,
                **_traffic(before, after, model),
            }
            for model in models
            if model != "other"
        ],
    }


def _traffic(before: Scrape, after: Scrape, model: str | None = None) -> dict[str, Any]:
    of = {} if model is None else {"model": model}
    rows = _gained(before, after, "foreseen_rows_total", **of)
    hits = sum(_gained(before, after, "foreseen_rows_total", result=result, **of) for result in HITS)
    return {
        "requests_per_second": _rate(before, after, "foreseen_requests_total", **of),
        "rows_per_second": _rate(before, after, "foreseen_rows_total", **of),
        "hit_ratio": round(hits / rows, 4) if rows else None,
        "misses": _misses(before, after, **of),
        "hit_p50": quantile(0.5, before, after, _REQUESTS, result="hit", **of),
        "hit_p99": quantile(0.99, before, after, _REQUESTS, result="hit", **of),
        "miss_p50": quantile(0.5, before, after, _REQUESTS, result="miss", **of),
        "miss_p99": quantile(0.99, before, after, _REQUESTS, result="miss", **of),
        "saved_compute_seconds_per_second": _rate(before, after, "foreseen_saved_compute_seconds_total", **of),
    }


def _misses(before: Scrape, after: Scrape, **labels: str) -> dict[str, float]:
    """The rows that no tier answered, by reason; only reasons that there were."""
    reasons = after.values("foreseen_misses_total", "reason")
    gained = {one: _gained(before, after, "foreseen_misses_total", reason=one, **labels) for one in reasons}
    return {reason: count for reason, count in gained.items() if count}


def _far(before: Scrape, after: Scrape) -> dict[str, Any]:
    up = after.one("foreseen_far_up")
    if up is None:
        return {"state": "none"}
    errors = _rate(before, after, "foreseen_far_errors_total")
    unasked = after.total("foreseen_far_breaker_open") or after.total("foreseen_far_foreign")
    state = "down" if not up else "not asked" if unasked else "up"
    if state == "down":
        return {"state": state, "errors_per_second": errors}
    return {
        "state": state,
        "bytes": after.total("foreseen_far_memory_bytes"),
        "limit_bytes": after.total("foreseen_far_memory_limit_bytes"),
        "entries": after.total("foreseen_far_entries"),
        "evictions_per_second": _rate(before, after, "foreseen_far_evicted_entries_total"),
        "errors_per_second": errors,
        "get_p99": quantile(0.99, before, after, "foreseen_far_duration_seconds", op="get"),
    }


def _queue(before: Scrape, after: Scrape) -> dict[str, Any]:
    up = after.one("foreseen_queue_up")
    if up is None or not up:
        return {"state": "none" if up is None else "down"}
    return {
        "state": "up",
        "queued": after.total("foreseen_jobs", state="queued"),
        "running": after.total("foreseen_jobs", state="running"),
        "oldest_seconds": after.total("foreseen_jobs_oldest_seconds"),
        "workers": after.total("foreseen_job_workers"),
        "dead_letters": after.total("foreseen_jobs_dead_letters"),
        "succeeded_per_second": _rate(before, after, "foreseen_jobs_ended_total", state="succeeded"),
        "webhooks_waiting": after.total("foreseen_webhooks_waiting"),
    }


def _warm(before: Scrape, after: Scrape) -> dict[str, Any]:
    """Batch runs: those that write to Redis directly, and the rows that come through the proxy."""
    return {
        "runs": after.total("foreseen_warm_runs"),
        "done": after.total("foreseen_warm_run_rows", state="done"),
        "left": after.total("foreseen_warm_run_rows", state="left"),
        "rows_per_second": _rate(before, after, "foreseen_warm_rows_total"),
        "background_rows_per_second": _rate(before, after, "foreseen_background_rows_total"),
        "imported_rows_per_second": _rate(before, after, "foreseen_imported_rows_total"),
    }


def _failed(before: Scrape, after: Scrape) -> float:
    codes = [code for code in after.values("foreseen_requests_total", "code") if code.startswith("5")]
    return round(sum(_rate(before, after, "foreseen_requests_total", code=code) for code in codes), 3)


def _gained(before: Scrape, after: Scrape, name: str, **labels: str) -> float:
    """A counter's gain; after a restart all that it has."""
    gained = after.total(name, **labels) - before.total(name, **labels)
    return gained if gained >= 0 else after.total(name, **labels)


def _rate(before: Scrape, after: Scrape, name: str, **labels: str) -> float:
    return round(_gained(before, after, name, **labels) / max(after.at - before.at, 1e-3), 3)


def view(url: str, now: dict[str, Any], trouble: str | None = None) -> Group:
    """The document for people: five lines and a table."""
    far, near = now["far"], now["near"]
    numbers = Table.grid(padding=(0, 3))
    numbers.add_row(
        _pair("requests/s", f"{now['requests_per_second']:,.1f}"),
        _pair("hit ratio", _share(now["hit_ratio"])),
        _pair("hits", f"p50 {_time(now['hit_p50'])}  p99 {_time(now['hit_p99'])}"),
        _pair("misses", f"p50 {_time(now['miss_p50'])}  p99 {_time(now['miss_p99'])}"),
    )
    numbers.add_row(
        _pair("failed/s", f"{now['failed_per_second']:,.1f}", "red" if now["failed_per_second"] else ""),
        _pair("workers", f"{now['workers']:.0f}"),
        _pair("loop lag", f"p99 {_time(now['loop_lag_p99'])}"),
        _pair("saved", f"{now['saved_compute_seconds_total']:,.1f} compute s, {now['spared_rows_total']:,.0f} rows"),
    )
    whys = Text("missed rows ", "dim")
    missed = sum(now["misses"].values())
    shares = sorted(now["misses"].items(), key=lambda one: -one[1])
    whys.append(", ".join(f"{reason} {count / missed:.0%}" for reason, count in shares) if missed else "–", "bold")
    store = Table.grid(padding=(0, 3))
    store.add_row(
        _pair("near", f"{_size(near['bytes'])}, {near['entries']:,.0f} entries"),
        _pair("evicted/s", f"{near['evictions_per_second']:,.1f}"),
    )
    if far["state"] in ("none", "down"):
        store.add_row(_pair("far", far["state"], "red" if far["state"] == "down" else ""))
    else:
        limit = f" of {_size(far['limit_bytes'])}" if far["limit_bytes"] else ""
        store.add_row(
            _pair("far", f"{far['state']}, {_size(far['bytes'])}{limit}, {far['entries']:,.0f} entries"),
            _pair("evicted/s", f"{far['evictions_per_second']:,.1f}"),
            _pair("errors/s", f"{far['errors_per_second']:,.1f}", "red" if far["errors_per_second"] else ""),
            _pair("get", f"p99 {_time(far['get_p99'])}"),
        )
    if (queue := now["queue"])["state"] != "none":
        store.add_row(*_jobs(queue))
    if any((warm := now["warm"]).values()):
        store.add_row(*_warming(warm))
    head = Text(f"foreseen  {url}", style="bold")
    head.append(f"   {trouble}" if trouble else f"   over {now['seconds']:.1f} s", "bold red" if trouble else "dim")
    callers = [callers_table(now["callers"])] if now["callers"] else []
    return Group(head, Panel(Group(numbers, whys)), Panel(store), _models(now), *callers)


def _jobs(queue: dict[str, Any]) -> tuple[Text, ...]:
    """The queue's line: waiting jobs, the age of the oldest, live workers."""
    if queue["state"] == "down":
        return (_pair("queue", "down", "red"),)
    waits = queue["queued"] + queue["running"] > 0
    return (
        _pair("queue", f"{queue['queued']:,.0f} queued, {queue['running']:,.0f} running"),
        _pair("oldest", _time(queue["oldest_seconds"]) if waits else "–"),
        _pair("job workers", f"{queue['workers']:.0f}", "red" if waits and not queue["workers"] else ""),
        _pair("dead letters", f"{queue['dead_letters']:,.0f}", "red" if queue["dead_letters"] else ""),
    )


def _warming(warm: dict[str, Any]) -> tuple[Text, ...]:
    """The line of batch runs, shown while there are any."""
    through = warm["background_rows_per_second"], warm["imported_rows_per_second"]
    return (
        _pair("warm", f"{warm['runs']:.0f} runs, {warm['done']:,.0f} rows done, {warm['left']:,.0f} left"),
        _pair("rows/s", f"{warm['rows_per_second']:,.1f}"),
        _pair("through the proxy", f"{through[0]:,.1f}/s asked, {through[1]:,.1f}/s imported"),
    )


def _models(now: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("model", no_wrap=True, min_width=12)
    for column in ("ready", "rows/s", "hit ratio", "hit p50", "p99", "miss p50", "p99", "saved s/s"):
        table.add_column(column, justify="right")
    for model in now["models"]:
        table.add_row(
            model["model"],
            Text("yes") if model["ready"] else Text("no", "red"),
            f"{model['rows_per_second']:,.1f}",
            _share(model["hit_ratio"]),
            *(_time(model[name]) for name in ("hit_p50", "hit_p99", "miss_p50", "miss_p99")),
            f"{model['saved_compute_seconds_per_second']:,.3f}",
        )
    return table


def watch(url: str, interval: float, key: str | None = None) -> None:
    """The view, until Ctrl-C. Raises SetupError if no proxy answers at first; waits for one that goes away later."""
    before, trouble = scrape(url, key), None
    now = activity(before, before)
    with Live(view(url, now), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            try:
                after = scrape(url, key)
                now, before, trouble = activity(before, after), after, None
            except SetupError as error:
                trouble = str(error).split(";")[0]
            live.update(view(url, now, trouble), refresh=True)


def once(url: str, interval: float, key: str | None = None) -> dict[str, Any]:
    """What happens in one interval. Raises SetupError."""
    before = scrape(url, key)
    time.sleep(interval)
    return activity(before, scrape(url, key))


def show(url: str, now: dict[str, Any]) -> None:
    Console().print(view(url, now))


def _pair(name: str, value: str, style: str = "") -> Text:
    return Text.assemble((f"{name} ", "dim"), (value, style or "bold"))


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 0.0995:
        return f"{seconds * 1000:.2f} ms"
    return f"{seconds:.2f} s"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
