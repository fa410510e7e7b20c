"""What is counted shows exactly, cheaply, and in a bounded number of series."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.parser import text_string_to_metric_families

from foreseen.inference.metrics import ModelMetrics
from foreseen.telemetry.exposition import FAR_STATE, QUEUE_STATE, exposition
from foreseen.telemetry.meters import CachedChildren, Hits, Tallies, Tally
from foreseen.telemetry.metrics import REQUEST_RESULTS, ROW_RESULTS, ProxyMetrics
from foreseen.types import AWAY, DOWN, FarState, QueueStatus, WarmRunStatus

BOUNDS = (0.001, 0.01, 0.1)
UP = FarState(10, 100, 3, 7, 2, "allkeys-lfu", "7.2", append_only=False, uptime=9)


def samples(text: bytes) -> dict[str, float]:
    """Sample values by name and labels, as they stand in the text."""
    lines = [line for line in text.decode().splitlines() if not line.startswith("#")]
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}


@pytest.mark.parametrize("value", [0.0, 0.0005, 0.001, 0.0011, 0.01, 0.1, 0.1001, 50.0])
def test_a_tally_is_an_observation(value: float) -> None:
    """After a flush a tally shows what `observe` would have, on and between the bounds of buckets."""
    shown = []
    for tallied in (True, False):
        registry = CollectorRegistry()
        histogram = Histogram("h", "", buckets=BOUNDS, registry=registry)
        if tallied:
            tally = Tally(histogram)
            tally.add(value)
            tally.flush()
            tally.flush()
        else:
            histogram.observe(value)
        shown.append(exposition(registry))
    assert shown[0] == shown[1]


def test_tallies_have_one_tally_per_label() -> None:
    """Values go to their own label's buckets."""
    registry = CollectorRegistry()
    tallies = Tallies(Histogram("h", "", ("stage",), buckets=BOUNDS, registry=registry))
    for stage, value in (("far", 0.05), ("near", 0.0001), ("far", 0.0001)):
        tallies.add(stage, value)
    for tally in tallies:
        tally.flush()
    shown = samples(exposition(registry))
    assert (shown['h_count{stage="far"}'], shown['h_count{stage="near"}']) == (2, 1)
    assert shown['h_bucket{le="0.001",stage="far"}'] == 1


@pytest.mark.parametrize("at_once", [True, False])
def test_hits_are_counted_as_their_metrics_would_be(at_once: bool) -> None:
    """Requests, rows by tier, seconds saved, durations: the same numbers, at once or after a flush."""
    registry = CollectorRegistry()
    counters = [Counter(name, "", registry=registry) for name in ("requests", "near", "far", "saved")]
    hits = Hits(*counters, Histogram("took", "", buckets=BOUNDS, registry=registry), at_once=at_once)
    for near, far, saved, seconds in ((3, 0, 0.5, 0.0005), (0, 2, 0.25, 0.05), (1, 1, 0.0, 0.0005)):
        hits.add(near, far, saved, seconds)
    if not at_once:
        assert registry.get_sample_value("requests_total") == 0
        hits.flush()
    hits.flush()
    names = ("requests_total", "near_total", "far_total", "saved_total", "took_count", "took_sum")
    assert [registry.get_sample_value(name) for name in names] == [3, 4, 3, 0.75, 3, pytest.approx(0.051)]
    assert registry.get_sample_value("took_bucket", {"le": "0.001"}) == 2


def test_a_child_is_looked_up_once() -> None:
    """The same values give the same object, without a call into the library."""
    kept = CachedChildren(Counter("c", "", ("a", "b"), registry=CollectorRegistry()))
    assert kept.labels("x", "y") is kept.labels("x", "y")
    assert kept.labels("x", "y") is not kept.labels("y", "x")


def test_what_may_happen_shows_before_it_does() -> None:
    """Every result of every expected model is there with 0: a rate needs a zero to start from."""
    metrics = ProxyMetrics()
    metrics.expect(["m"])
    shown = samples(metrics.exposition())
    for result in ROW_RESULTS:
        assert shown[f'foreseen_rows_total{{model="m",result="{result}"}}'] == 0
    for result in REQUEST_RESULTS:
        assert shown[f'foreseen_request_duration_seconds_count{{model="m",result="{result}"}}'] == 0


def test_every_kind_of_far_error_is_expected() -> None:
    """What the far tier may raise, and nothing else."""
    from foreseen.stores import error_kinds as kinds
    from foreseen.telemetry import metrics

    assert set(metrics.FAR_ERROR_KINDS) == {
        *(kind for _, kind in kinds._ERRORS),
        *kinds._ERRORS_BY_WORD.values(),
        *("open", "paused", "moved", "tls", "foreign"),
    }


def test_redis_tells_of_itself_or_is_down() -> None:
    """With an answer all of its families are there; without one only `foreseen_far_up 0`; without a far tier none."""
    registry = CollectorRegistry()
    assert samples(exposition(registry, UP)) == {
        "foreseen_far_up": 1,
        "foreseen_far_memory_bytes": 10,
        "foreseen_far_memory_limit_bytes": 100,
        "foreseen_far_entries": 3,
        "foreseen_far_evicted_entries_total": 7,
        "foreseen_far_expired_entries_total": 2,
        "foreseen_far_uptime_seconds": 9,
    }
    assert {name for name, _, _ in FAR_STATE} == set(samples(exposition(registry, UP)))
    assert samples(exposition(registry, DOWN)) == {"foreseen_far_up": 0}
    assert exposition(registry) == b""


def test_the_queue_tells_of_itself_or_is_away() -> None:
    """With an answer all of its families are there, a new queue's too; without one only `foreseen_queue_up 0`."""
    registry = CollectorRegistry()
    new = exposition(registry, queue=QueueStatus({}, 0.0, 0)).decode()
    assert {name for name, _, _, _ in QUEUE_STATE} == {
        line.split("{")[0].split(" ")[0] for line in new.splitlines() if line[0] != "#"
    }
    assert "foreseen_queue_up 1.0" in new
    told = exposition(registry, queue=QueueStatus({"state:queued": 3, "hook:failed": 2}, 1.5, 1, 4, 2)).decode()
    for line in (
        'foreseen_jobs{state="queued"} 3.0',
        "foreseen_jobs_oldest_seconds 1.5",
        "foreseen_jobs_dead_letters 1.0",
        "foreseen_webhooks_waiting 4.0",
        "foreseen_job_workers 2.0",
        'foreseen_webhook_calls_total{outcome="failed"} 2.0',
    ):
        assert line in told
    assert samples(exposition(registry, queue=AWAY)) == {"foreseen_queue_up": 0}


def test_batch_runs_are_told_of_served_models_only() -> None:
    """Zeros before the first; afterwards what they say; a model that is not served makes no series, a store that is
    away none at all."""
    registry = CollectorRegistry()
    new = samples(exposition(registry, queue=QueueStatus({}, 0.0, 0), models=["m"]))
    ours = {name: value for name, value in new.items() if name.startswith("foreseen_warm")}
    assert len(ours) == 1 + 2 + 4
    assert set(ours.values()) == {0}
    runs = WarmRunStatus({"m": 2}, {("m", "done"): 5, ("m", "left"): 7}, {("m", "hit"): 5, ("evil", "hit"): 9})
    told = samples(exposition(registry, queue=QueueStatus({}, 0.0, 0, warming=runs), models=["m"]))
    assert told['foreseen_warm_runs{model="m"}'] == 2
    assert told['foreseen_warm_run_rows{model="m",state="left"}'] == 7
    assert told['foreseen_warm_rows_total{model="m",result="hit"}'] == 5
    assert not [name for name in told if "evil" in name]
    assert not [name for name in samples(exposition(registry, queue=AWAY, models=["m"])) if "warm" in name]


def test_triton_names_say_what_ours_say() -> None:
    """With the flag, Triton's boards read requests, rows, hits and times, in µs and by model and version."""
    metrics = ProxyMetrics()
    metrics.expect(["m"])
    for code, result, seconds in (("200", "hit", 0.001), ("200", "miss", 0.25), ("503", "error", 0.5)):
        metrics.requests.labels("m", "v2", code).inc()
        metrics.request_seconds.of("m", result).add(seconds)
    metrics.requests.labels("other", "v2", "404").inc()
    metrics.rows.labels("m", "model").inc(3)
    metrics.rows.labels("m", "bypass").inc(1)
    metrics.flush()
    shown = samples(exposition(metrics.registry, versions={"m": "1"}))
    told = {name.split("{")[0]: value for name, value in shown.items() if name.startswith("nv_")}
    assert told == {
        "nv_inference_request_success": 2,
        "nv_inference_request_failure": 1,
        "nv_inference_count": 4,
        "nv_inference_request_duration_us": 751_000,
        "nv_cache_num_hits_per_model": 1,
        "nv_cache_num_misses_per_model": 1,
        "nv_cache_hit_duration_per_model": 1000,
        "nv_cache_miss_duration_per_model": 250_000,
    }
    assert 'nv_inference_count{model="m",version="1"}' in shown
    assert not any(name.startswith("nv_") for name in samples(metrics.exposition()))


def test_triton_names_of_the_model_process() -> None:
    """Queue and compute times are told by the process that knows them, and only with the flag."""
    metrics = ModelMetrics("m", "1")
    metrics.ran(4, 0, 0, [0.5, 0.5, 0.25, 0.25], 2.0)
    told = {name: value for name, value in samples(metrics.exposition()).items() if name.startswith("nv_")}
    assert told == {
        'nv_inference_exec_count{model="m",version="1"}': 1,
        'nv_inference_queue_duration_us{model="m",version="1"}': 1_500_000,
        'nv_inference_compute_infer_duration_us{model="m",version="1"}': 2_000_000,
        'nv_inference_pending_request_count{model="m",version="1"}': 0,
    }
    assert b"nv_" not in ModelMetrics("m").exposition()


WORKER = """
import sys
from foreseen.telemetry.exposition import use_slot
use_slot(int(sys.argv[1]))
from foreseen.telemetry.metrics import ProxyMetrics
metrics = ProxyMetrics()
metrics.expect(["m"])
metrics.rows.labels("m", "near").inc(5)
metrics.near_bytes.set(100)
print(metrics.exposition().decode(), end="")
"""


@pytest.mark.processes
def test_a_slot_outlives_its_process(tmp_path: Path) -> None:
    """Workers one after the other under one number go on counting in the same files; a live gauge is forgotten."""
    from prometheus_client.multiprocess import mark_process_dead

    def work(slot: int) -> tuple[float, float, int]:
        command = [sys.executable, "-c", WORKER, str(slot)]
        done = subprocess.run(
            command, env={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}, check=True, capture_output=True, timeout=60
        )
        shown = samples(done.stdout)
        counted = shown['foreseen_rows_total{model="m",result="near"}']
        return counted, shown["foreseen_near_bytes"], len(list(tmp_path.glob("*.db")))

    first = work(0)
    again = work(0)
    assert (first[0], again[0]) == (5, 10)
    assert first[2] == again[2], "files grow with processes"
    assert work(1)[:2] == (15, 200)
    mark_process_dead(0, str(tmp_path))
    assert work(1)[:2] == (20, 100)


def test_the_text_is_one_that_prometheus_parses() -> None:
    """No family stands twice, every one has a help text."""
    metrics = ProxyMetrics()
    metrics.expect(["m"])
    families = list(text_string_to_metric_families(exposition(metrics.registry, UP, {"m": "1"}).decode()))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    assert all(family.documentation for family in families)


def test_a_proxy_may_count_nothing() -> None:
    """Every call works and leaves nothing to show: for measuring what counting costs."""
    metrics = ProxyMetrics(on=False)
    metrics.expect(["m"])
    metrics.requests.labels("m", "v2", "200").inc()
    metrics.request_seconds.of("m", "hit").add(0.1)
    metrics.near_bytes.set(1)
    metrics.stages.add("near", 0.1)
    metrics.loop_lag.add(0.1)
    metrics.flush()
    assert metrics.exposition() == b""
