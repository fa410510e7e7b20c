"""`foreseen top`: what two scrapes say, for machines and for people."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from rich.console import Console

from foreseen.operate import top
from foreseen.operate.scrape import Scrape, parse
from foreseen.telemetry.exposition import exposition
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.types import AWAY, DOWN, FarState, QueueStatus, WarmRunStatus
from tests.live import Live
from tests.questions import ask_fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT

UP = FarState(2**20, 2**30, 3, 7, 2, "allkeys-lfu", "7.2", append_only=False)


def at(metrics: ProxyMetrics, seconds: float, far: FarState | None = UP, queue: QueueStatus | None = None) -> Scrape:
    """A scrape as of a moment."""
    metrics.flush()
    return Scrape(seconds, parse(exposition(metrics.registry, far, queue=queue, models=["m"]).decode()).samples)


def served(metrics: ProxyMetrics, result: str, source: str, seconds: float, times: int) -> None:
    for _ in range(times):
        metrics.requests.labels("m", "v2", "200").inc()
        metrics.rows.labels("m", source).inc()
        metrics.request_seconds.of("m", result).add(seconds)


@pytest.fixture
def metrics() -> ProxyMetrics:
    made = ProxyMetrics()
    made.expect(["m", "idle"])
    made.model_ready.labels("m").set(1)
    served(made, "hit", "near", 0.0004, 500)  # before the first look: nobody's business
    return made


def shown(now: dict[str, object], trouble: str | None = None) -> str:
    console = Console(width=140, no_color=True)
    with console.capture() as capture:
        console.print(top.view("http://x", now, trouble))
    return capture.get()


def test_it_tells_what_happened_between_two_looks(metrics: ProxyMetrics) -> None:
    """Rates, the hit ratio by rows, and quantiles of hits and misses apart, of the interval alone."""
    before = at(metrics, 10.0)
    served(metrics, "hit", "near", 0.0004, 30)
    served(metrics, "miss", "model", 0.3, 10)
    metrics.saved_seconds.labels("m").inc(4.0)
    metrics.misses.labels("m", "cold").inc(6)
    metrics.misses.labels("m", "asked").inc(2)
    now = top.activity(before, at(metrics, 12.0))
    assert (now["requests_per_second"], now["rows_per_second"], now["hit_ratio"]) == (20, 20, 0.75)
    assert 0.00025 < now["hit_p50"] <= 0.0005
    assert 0.25 < now["miss_p99"] <= 0.5
    assert now["saved_compute_seconds_total"] == 4
    assert now["misses"] == {"cold": 6, "asked": 2}
    busy, idle = sorted(now["models"], key=lambda model: -model["rows_per_second"])
    assert (busy["model"], busy["ready"], busy["saved_compute_seconds_per_second"]) == ("m", True, 2)
    assert (idle["model"], idle["ready"], idle["hit_ratio"], idle["hit_p50"]) == ("idle", False, None, None)
    text = shown(now)
    for words in (
        "requests/s 20.0",
        "hit ratio 75.0%",
        "far up, 1.0 MiB of 1.0 GiB, 3 entries",
        "saved 4.0 compute s",
        "missed rows cold 75%, asked 25%",
    ):
        assert words in text


def test_a_quantile_is_prometheus_own(metrics: ProxyMetrics) -> None:
    """Interpolated within the bucket: of 30 in (0.25, 0.5] ms the middle is 0.375 ms; above all bounds the last."""
    before = at(metrics, 0.0)
    served(metrics, "hit", "near", 0.0004, 30)
    assert top.activity(before, at(metrics, 1.0))["hit_p50"] == pytest.approx(0.000375)
    later = at(metrics, 1.0)
    served(metrics, "hit", "near", 100.0, 30)
    assert top.activity(later, at(metrics, 2.0))["hit_p50"] == 30.0


@pytest.mark.parametrize(
    ("far", "breaker", "said"),
    [(None, 0, "far none"), (DOWN, 1, "far down"), (UP, 1, "far not asked"), (UP, 0, "far up")],
)
def test_the_state_of_the_store(metrics: ProxyMetrics, far: FarState | None, breaker: int, said: str) -> None:
    """No far tier, one that is down, one that is not asked, one that is up."""
    metrics.breaker_open.set(breaker)
    scrape = at(metrics, 0.0, far)
    assert said in shown(top.activity(scrape, scrape))


def test_a_restarted_proxy_counts_from_nothing(metrics: ProxyMetrics) -> None:
    """Counters that fell are those of a new process: no negative rate."""
    fresh = ProxyMetrics()
    fresh.expect(["m"])
    served(fresh, "hit", "near", 0.0004, 5)
    assert top.activity(at(metrics, 0.0), at(fresh, 1.0))["requests_per_second"] == 5


def test_a_proxy_that_goes_away_is_said_in_the_view(metrics: ProxyMetrics) -> None:
    """The last numbers stay, under a line that says so."""
    scrape = at(metrics, 0.0)
    assert "no proxy answers" in shown(top.activity(scrape, scrape), "no proxy answers at http://x").splitlines()[0]


def test_the_command_for_machines_and_for_people(live: Live) -> None:
    """`--once --json` is one document; `--once` the view; nobody there is one line and status 1."""
    assert live.post(FINGERPRINT, ask_fingerprint(numbers(4711)))[0] == 200

    def foreseen(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "foreseen.cli", "top", "--interval=0.1", *words]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)

    now = json.loads(foreseen(f"--url={live.url}", "--once", "--json").stdout)
    assert {model["model"] for model in now["models"]} == {"minilm", "fingerprint"}
    assert (now["workers"], now["far"]["state"]) == (1, "up")
    assert "fingerprint" in foreseen(f"--url={live.url}", "--once").stdout
    for words in ((), ("--once", "--json")):
        gone = foreseen("--url=http://127.0.0.1:9", *words)
        assert (gone.returncode, gone.stdout, gone.stderr.count("\n")) == (1, "", 1)
        assert "no proxy answers at http://127.0.0.1:9" in gone.stderr


def test_the_queue_has_a_line_where_there_is_one(metrics: ProxyMetrics) -> None:
    """What waits, since when, who works, what is dead; red where nobody works; "down" where it does not answer."""
    before = at(metrics, 10.0, queue=QueueStatus({"ended:succeeded": 10}, 0.0, 0))
    counts = {"state:queued": 7, "state:running": 2, "ended:succeeded": 30}
    now = top.activity(before, at(metrics, 12.0, queue=QueueStatus(counts, 12.5, 1)))
    assert now["queue"] == {
        "state": "up", "queued": 7, "running": 2, "oldest_seconds": 12.5, "workers": 0, "dead_letters": 1,
        "succeeded_per_second": 10.0, "webhooks_waiting": 0,
    }  # fmt: skip
    line = next(line for line in shown(now).splitlines() if "queue" in line)
    for said in ("7 queued, 2 running", "12.50 s", "job workers 0", "dead letters 1"):
        assert said in line
    assert "queue down" in shown(top.activity(before, at(metrics, 13.0, queue=AWAY)))
    assert "queue" not in shown(top.activity(before, at(metrics, 13.0)))


def test_batch_runs_have_a_line_while_there_are_any(metrics: ProxyMetrics) -> None:
    """Runs past the proxy with their rows done and left, and what comes through it."""
    before = at(metrics, 10.0, queue=QueueStatus({}, 0.0, 0))
    assert "warm" not in shown(top.activity(before, before))
    metrics.background_rows.labels("m", "model").inc(30)
    metrics.imported_rows.labels("m", "stored").inc(8)
    runs = WarmRunStatus({"m": 1}, {("m", "done"): 400, ("m", "left"): 600}, {("m", "computed"): 400})
    now = top.activity(before, at(metrics, 12.0, queue=QueueStatus({}, 0.0, 0, warming=runs)))
    line = next(line for line in shown(now).splitlines() if "warm" in line)
    for said in ("1 runs, 400 rows done, 600 left", "rows/s 200.0", "15.0/s asked, 4.0/s imported"):
        assert said in line
