"""How far a batch run is, as operators see it: at every proxy while it runs, counted once, and never in its way."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from foreseen.queue.queue import Queue, connect_queue
from foreseen.queue.warm_progress import RUNS
from foreseen.types import WarmRunStatus
from foreseen.warm.checkpoint import Progress
from foreseen.warm.run.command import Job
from foreseen.warm.run.progress_reporter import NOTHING, ProgressReporter
from tests.live import Live
from tests.questions import ask_fingerprint, numbers
from tests.state_server import state_server
from tests.stories.test_10_first_question import FINGERPRINT
from tests.warm.test_warm import NOWHERE, digest_of, parquet, predicted, rows_of, settings, warmed


class Looker:
    """Somebody who looks at the proxy's metrics each time that the run has moved."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self.seen: list[tuple[float, float, float]] = []

    def started(self, rows: int | None, done: Progress) -> None: ...

    def moved(self, done: Progress) -> None:
        self._live.until("foreseen_warm_run_rows", lambda rows: rows == done.rows, state="done")
        left = self._live.metric("foreseen_warm_run_rows", state="left", model="fingerprint")
        self.seen.append((self._live.metric("foreseen_warm_runs"), done.rows, left))


@pytest.fixture
async def queue(tmp_path: Path) -> AsyncIterator[Queue]:
    with state_server(tmp_path) as (url, _):
        one = connect_queue(url, NOTHING)
        yield one
        await one.close()


def test_a_run_past_the_proxy_shows_at_the_proxy(live: Live, tmp_path: Path) -> None:
    """Under way: one run, its rows done and left, chunk by chunk. Over: no run, and its rows by result, exactly."""
    rows = rows_of(50_000, 20)
    file = parquet(tmp_path / "a.parquet", {"x": [*rows, rows[0], [1]]}, row_group_size=8)

    def counts() -> list[float]:
        return [live.metric("foreseen_warm_rows_total", result=result) for result in ("hit", "computed", "failed")]

    before, looker = counts(), Looker(live)
    Job([str(file)], settings(live, chunk_rows=8)).go(looker)
    assert looker.seen == [(1, 8, 14), (1, 16, 6), (1, 22, 0)]
    assert live.metric("foreseen_warm_runs") == live.metric("foreseen_warm_run_rows") == 0
    assert [now - was for now, was in zip(counts(), before, strict=True)] == [1, 20, 1]


def test_a_run_through_the_proxy_is_counted_by_it(live: Live, tmp_path: Path) -> None:
    """Its rows are those of the background lane, hits and misses alike, and no online row is; what it hands over with
    answers is counted as imported. Rows of everybody are the sum still."""
    rows = rows_of(51_000, 30)
    file, given = parquet(tmp_path / "a.parquet", {"x": rows}), rows_of(51_100, 10)
    answered = parquet(tmp_path / "b.parquet", predicted(given), digest_of(live))
    names = ("foreseen_background_rows_total", "foreseen_imported_rows_total", "foreseen_rows_total")

    def counts() -> list[float]:
        return [live.metric(name, model="fingerprint") for name in names]

    before, runs = counts(), live.metric("foreseen_warm_rows_total")
    for _ in range(3):  # the same bytes again are no online hit either
        warmed(live, file, url=live.url)
        body = {**ask_fingerprint(*rows[:4]), "parameters": {"priority": 2}}
        assert live.post(FINGERPRINT, body)[1]["cache-status"].startswith("foreseen;hit")
    assert live.post(FINGERPRINT, ask_fingerprint(numbers(51_200)))[0] == 200
    for _ in range(2):
        warmed(live, answered, url=live.url, outputs=("all",), address=NOWHERE)
    assert [now - was for now, was in zip(counts(), before, strict=True)] == [3 * 34, 2 * 10, 3 * 34 + 1]
    assert live.metric("foreseen_imported_rows_total", model="fingerprint", result="stored") >= 10
    assert live.metric("foreseen_warm_rows_total") == runs


async def test_what_is_reported_twice_counts_once(queue: Queue) -> None:
    """An attempt that goes on, a reply that was lost, a store that had forgotten the run: each row counts once."""
    first = ProgressReporter(None, "run", "m")
    first.started(100, Progress())
    first.moved(Progress(hit=10, computed=20))
    await first.report(queue, over=True)
    assert (await queue.standing()).warming == WarmRunStatus({}, {}, {("m", "hit"): 10, ("m", "computed"): 20})
    again = ProgressReporter(None, "run", "m")
    again.started(100, Progress(hit=10, computed=20))
    await again.report(queue)
    again.moved(Progress(hit=10, computed=50))
    await again.report(queue)
    again._reported = [0, 0, 0, 0]  # as if no reply had come
    await again.report(queue)
    assert (await queue.standing()).warming.states == {("m", "done"): 60, ("m", "left"): 40}
    await queue._client.delete(RUNS)
    await again.report(queue)
    await again.report(queue, over=True)
    status = (await queue.standing()).warming
    assert status.rows == {("m", "hit"): 10, ("m", "computed"): 50}
    assert status.runs == {}


async def test_a_silent_run_is_not_under_way(queue: Queue) -> None:
    """One that was killed is left out after a while, and taken off by whoever tells next, as is the unreadable."""
    await queue._client.hset(RUNS, "old", '{"model": "m", "left": 1, "rows": [1, 0, 0, 0], "at": 1000}')
    await queue._client.hset(RUNS, "strange", '{"at": 1000}')
    assert (await queue.standing()).warming.runs == {}
    other = ProgressReporter(None, "new", "m")
    other.started(None, Progress(hit=5))
    await other.report(queue)
    assert await queue._client.hkeys(RUNS) == [b"new"]
    assert (await queue.standing()).warming == WarmRunStatus({"m": 1}, {("m", "done"): 5, ("m", "left"): 0}, {})


@pytest.mark.parametrize("url", [None, "unix:///nowhere/state.sock", "ftp://x"])
def test_a_store_that_is_away_costs_the_run_nothing(url: str | None) -> None:
    """No error, and no thread is left."""
    reporter = ProgressReporter(url, "run", "m")
    reporter.started(10, Progress())
    reporter.moved(Progress(hit=1))
    reporter.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "tell"]
