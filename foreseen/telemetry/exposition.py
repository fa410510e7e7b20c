"""Writes the Prometheus text format: metrics of all workers, state of Redis, queue and children, and Triton's names.

With several workers `PROMETHEUS_MULTIPROC_DIR` is set before this module is imported. Their values lie in files of that
folder, named after the worker's number, so that a restarted worker goes on where the last one stopped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from foreseen.queue.warm_progress import RESULTS
from foreseen.telemetry.child_states import ChildState
from foreseen.types import AWAY, DOWN, FarState, QueueStatus

CONTENT_TYPE = CONTENT_TYPE_LATEST
MULTIPROCESS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_MISSED = ("miss", "partial", "collapsed", "stale")


def exposition(
    registry: CollectorRegistry,
    far: FarState | None = None,
    versions: Mapping[str, str] | None = None,
    queue: QueueStatus | None = None,
    models: Sequence[str] = (),
    children: Sequence[ChildState] = (),
    callers: Mapping[str, Sequence[int]] | None = None,
) -> bytes:
    """A registry in the text format; with several processes the sum over all of them. With the states of the far tier,
    of the queue and of the supervisor's children, batch runs of `models`, the heaviest `callers`, and Triton's names
    where `versions` says the version of each model."""
    families = list(_collected(registry))
    more = [*far_families(far), *queue_families(queue), *warm_families(queue, models), *child_families(children)]
    more += caller_families(callers or {})
    more += triton_families(families, versions) if versions is not None else ()
    return generate_latest(Families([*families, *more]))


FAR_STATE = (
    ("foreseen_far_up", "gauge", "1 if Redis answered this scrape within the far budget."),
    ("foreseen_far_memory_bytes", "gauge", "Memory that Redis uses."),
    ("foreseen_far_memory_limit_bytes", "gauge", "Redis' maxmemory; 0: no limit."),
    ("foreseen_far_entries", "gauge", "Keys in Redis, also those of other programs."),
    ("foreseen_far_evicted_entries_total", "counter", "Keys that Redis evicted because its memory was full."),
    ("foreseen_far_expired_entries_total", "counter", "Keys that expired in Redis."),
    ("foreseen_far_uptime_seconds", "gauge", "Time since Redis started; it falls after a restart."),
)
"""Families that are read from Redis at each scrape, where there is a far tier."""


def far_families(state: FarState | None) -> Iterator[Metric]:
    """The state of Redis as metric families; only `foreseen_far_up` if it does not answer."""
    if state is None:
        return
    answered = state != DOWN
    readings = (int(answered), state.memory, state.memory_limit, state.keys, state.evicted, state.expired, state.uptime)
    for (name, kind, said), value in list(zip(FAR_STATE, readings, strict=True))[: None if answered else 1]:
        family = Metric(name.removesuffix("_total"), said, kind)
        family.add_sample(name, {}, value)
        yield family


QUEUE_STATE = (
    ("foreseen_queue_up", "gauge", "", "1 if the queue of jobs answered this scrape."),
    ("foreseen_jobs", "gauge", "state", "Jobs in the state store by state; ended ones until they are forgotten."),
    ("foreseen_jobs_oldest_seconds", "gauge", "", "Age of the oldest job that has not ended; 0: there is none."),
    ("foreseen_jobs_dead_letters", "gauge", "", "Dead letters: poison pills, and jobs that a broken model failed."),
    ("foreseen_job_workers", "gauge", "", "Job workers that sent a heartbeat in the last 15 seconds."),
    ("foreseen_queue_bytes", "gauge", "", "Memory of jobs and results, and what is reserved for results."),
    ("foreseen_webhooks_waiting", "gauge", "", "Webhooks that are not yet delivered."),
    ("foreseen_jobs_submitted_total", "counter", "", "Jobs that were put into the queue."),
    ("foreseen_jobs_joined_total", "counter", "", "Tickets that joined an existing job with the same rows."),
    ("foreseen_jobs_ended_total", "counter", "state", "Jobs that have ended, by state."),
    ("foreseen_jobs_redelivered_total", "counter", "", "Jobs that were taken over from a worker that died."),
    (
        "foreseen_webhook_calls_total",
        "counter",
        "outcome",
        "Webhooks sent: delivered; failed, and sent again; exhausted, the last try; refused: not allowed, or 410 Gone.",
    ),
)
"""Families that are read from the state store at each scrape, where there is a queue: name, type, label, meaning."""
JOB_STATES = ("queued", "running", "succeeded", "failed", "cancelled", "expired")
WEBHOOK_OUTCOMES = ("delivered", "failed", "exhausted", "refused")


def queue_families(queue: QueueStatus | None) -> Iterator[Metric]:
    """The queue's status as metric families; only `foreseen_queue_up` if it does not answer. Every proxy on a state
    store reports the same numbers: take one, do not sum them."""
    if queue is None:
        return
    get = queue.counts.get
    readings: tuple[Mapping[str, float], ...] = (
        {"": int(queue is not AWAY)},
        {state: get(f"state:{state}", 0) for state in JOB_STATES},
        {"": queue.oldest_seconds},
        {"": queue.dead},
        {"": queue.workers},
        {"": get("bytes", 0)},
        {"": queue.webhooks},
        {"": get("submitted", 0)},
        {"": get("joined", 0)},
        {state: get(f"ended:{state}", 0) for state in JOB_STATES[2:]},
        {"": get("redelivered", 0)},
        {outcome: get(f"hook:{outcome}", 0) for outcome in WEBHOOK_OUTCOMES},
    )
    known = list(zip(QUEUE_STATE, readings, strict=True))
    for (name, kind, label, said), values_ in known[:1] if queue is AWAY else known:
        family = Metric(name.removesuffix("_total"), said, kind)
        for value, number in values_.items():
            family.add_sample(name, {label: value} if label else {}, number)
        yield family


WARM_STATE = (
    (
        "foreseen_warm_runs",
        "gauge",
        ("model",),
        "Batch runs in progress that write to Redis directly, without a proxy.",
    ),
    (
        "foreseen_warm_run_rows",
        "gauge",
        ("model", "state"),
        "Their rows by state: done; left, as far as the files record how many they hold.",
    ),
    (
        "foreseen_warm_rows_total",
        "counter",
        ("model", "result"),
        "Rows of all such runs, reported once a second, by result: hit, computed, imported, failed.",
    ),
)
"""Families that are read from the state store at each scrape, where there is a queue: name, type, labels, meaning."""


def warm_families(queue: QueueStatus | None, models: Sequence[str]) -> Iterator[Metric]:
    """The progress that batch runs report, for served models only; nothing if the store does not answer. As above,
    every proxy on it reports the same."""
    if queue is None or queue is AWAY:
        return
    warming = queue.warming
    readings: tuple[dict[tuple[str, ...], int], ...] = (
        {(model,): warming.runs.get(model, 0) for model in models},
        {(model, state): warming.states.get((model, state), 0) for model in models for state in ("done", "left")},
        {(model, result): warming.rows.get((model, result), 0) for model in models for result in RESULTS},
    )
    for (name, kind, labels, said), values_ in zip(WARM_STATE, readings, strict=True):
        family = Metric(name.removesuffix("_total"), said, kind)
        for value, number in values_.items():
            family.add_sample(name, dict(zip(labels, value, strict=True)), number)
        yield family


CALLER_STATE = (
    (
        "foreseen_caller_requests",
        "gauge",
        ("caller",),
        "Requests of the last minute of the heaviest callers, by address; `other`: all the rest.",
    ),
    ("foreseen_caller_rows", "gauge", ("caller",), "Their rows."),
    ("foreseen_caller_computed_rows", "gauge", ("caller",), "Their rows that a model computed."),
)
"""Families of the heaviest callers, which a scrape sums over all workers."""


def caller_families(callers: Mapping[str, Sequence[int]]) -> Iterator[Metric]:
    """Requests, rows and computed rows by caller, and what is left as one."""
    for at, (name, kind, (label,), said) in enumerate(CALLER_STATE if callers else ()):
        family = Metric(name, said, kind)
        for caller, counts in callers.items():
            family.add_sample(name, {label: caller}, counts[at])
        yield family


CHILD_STATE = (
    ("foreseen_child_up", "gauge", "child", "1 while this child of `foreseen up` runs."),
    (
        "foreseen_child_ends_total",
        "counter",
        "child",
        "Number of times that this child of `foreseen up` ended by itself or was killed.",
    ),
)
"""Families of the supervisor's children (proxy:0, worker:0, model:NAME, far, state), under `foreseen up` only: name,
type, label, meaning."""


def child_families(children: Sequence[ChildState]) -> Iterator[Metric]:
    """The supervisor's record of its children. Every worker under it reports the same."""
    readings = ({one.name: int(one.running) for one in children}, {one.name: one.ends for one in children})
    for (name, kind, label, said), values_ in zip(CHILD_STATE, readings, strict=True):
        family = Metric(name.removesuffix("_total"), said, kind)
        for child, number in values_.items():
            family.add_sample(name, {label: child}, number)
        if values_:
            yield family


def triton_families(families: Sequence[Metric], versions: Mapping[str, str]) -> Iterator[Metric]:
    """The proxy's counts under Triton's names. The model process reports those of queue and compute itself."""
    samples = [sample for family in families for sample in family.samples]

    def total(name: str, *values: str) -> dict[str, float]:
        """By model: the samples that carry one of these label values."""
        chosen = [s for s in samples if s.name == name and (not values or set(values) & set(s.labels.values()))]
        return {model: sum(s.value for s in chosen if s.labels["model"] == model) for model in versions}

    requests, seconds = "foreseen_requests_total", "foreseen_request_duration_seconds"
    answered, good = total(requests), total(requests, "200")
    readings: dict[str, tuple[str, Mapping[str, float]]] = {
        "nv_inference_request_success": ("Requests answered with 200.", good),
        "nv_inference_request_failure": (
            "Requests answered with an error.",
            {model: count - good[model] for model, count in answered.items()},
        ),
        "nv_inference_count": ("Rows that the model computed.", total("foreseen_rows_total", "model", "bypass")),
        "nv_inference_request_duration_us": ("Time of requests.", _micros(total(f"{seconds}_sum"))),
        "nv_cache_num_hits_per_model": ("Requests answered from the cache alone.", total(f"{seconds}_count", "hit")),
        "nv_cache_num_misses_per_model": (
            "Requests that the model had a part in.",
            total(f"{seconds}_count", *_MISSED),
        ),
        "nv_cache_hit_duration_per_model": ("Time of hits, in µs.", _micros(total(f"{seconds}_sum", "hit"))),
        "nv_cache_miss_duration_per_model": ("Time of misses, in µs.", _micros(total(f"{seconds}_sum", *_MISSED))),
    }
    for name, (said, by_model) in readings.items():
        family = Metric(name, said, "unknown")  # Triton's counters have no _total
        for model, value in by_model.items():
            family.add_sample(name, {"model": model, "version": versions[model]}, value)
        yield family


def _micros(seconds: Mapping[str, float]) -> dict[str, float]:
    return {model: round(value * 1e6) for model, value in seconds.items()}


class Families:
    """Families that are collected already, as a registry."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _collected(registry: CollectorRegistry) -> Iterable[Metric]:
    folder = os.environ.get(MULTIPROCESS_FOLDER)
    if folder is None:
        return registry.collect()
    return MultiProcessCollector(None, folder).collect()  # type: ignore[no-untyped-call, no-any-return]


def several_workers() -> bool:
    """Whether this process is one of several whose values lie in files."""
    return MULTIPROCESS_FOLDER in os.environ


def use_slot(slot: int) -> None:
    """Name this worker's files after its number and not after its process, before any metric is made: a worker that is
    restarted goes on counting where the last one stopped, and files do not grow in number. Does nothing with one."""
    if several_workers():
        values.ValueClass = values.MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call]


def prepare_multiprocess(folder: Path) -> None:
    """An empty folder for the workers' values; the supervisor calls it before it starts any."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.db"), *folder.glob("callers-*")):
        old.unlink()


def forget_worker(slot: int) -> None:
    """A worker has ended: its gauges no longer count, its counters do."""
    mark_process_dead(slot)  # type: ignore[no-untyped-call]
