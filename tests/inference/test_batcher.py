"""The batcher, against a runner that does what the test says: barriers, no sleeps, every batch asserted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest

from foreseen.errors import BadInput, DeadlineExceeded, ModelFailed, ModelUnavailable, Overloaded
from foreseen.inference.batching.batcher import Batcher
from foreseen.inference.batching.queued import BatchLimits, BatchOrder, Computed
from foreseen.modelspec.row_outputs import RowOutputs
from foreseen.types import Lane, Row


class ScriptedRunner:
    """Answers row `n` with `n * 2`, records every batch, and holds each run until the test lets it go."""

    def __init__(self, *, held: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.poison: dict[int, Exception] = {}
        self.short = False
        self.held = held
        self._began = threading.Semaphore(0)
        self._go = threading.Semaphore(0)

    def run(self, rows: Sequence[Row], /) -> list[RowOutputs]:
        numbers = [number_of(row) for row in rows]
        self.batches.append(numbers)
        self._began.release()
        if self.held:
            assert self._go.acquire(timeout=10)
        for number in numbers:
            if number in self.poison:
                raise self.poison[number]
        answers = [(np.array([number * 2]),) for number in numbers]
        return answers[:-1] if self.short else answers

    @property
    def ran(self) -> list[int]:
        return [number for batch in self.batches for number in batch]

    async def began(self) -> None:
        """Wait until one more run has begun."""
        assert await asyncio.to_thread(self._began.acquire, timeout=10)

    def go(self) -> None:
        """Let one run end."""
        self._go.release()

    def hold(self) -> None:
        """Hold every run from now on."""
        self._go = threading.Semaphore(0)
        self.held = True

    def go_on(self) -> None:
        """Hold nothing any more."""
        self.held = False
        self._go.release(1000)


class CountingMeter:
    def __init__(self) -> None:
        self.runs: list[tuple[int, int, int]] = []

    def ran(self, rows: int, failed: int, padding: int, waits: Sequence[float], seconds: float) -> None:
        assert len(waits) == rows
        assert min(waits) >= 0
        assert seconds > 0
        self.runs.append((rows, failed, padding))


def row(number: int, length: int = 1) -> Row:
    return Row((np.full(length, number),))


def number_of(asked: Row) -> int:
    return int(asked.tensors[0][0])


def length_of(asked: Row) -> int:
    return len(asked.tensors[0])


def answered(computed: Sequence[Computed]) -> list[int]:
    return [int(c.outputs[0][0]) for c in computed]


def soon(seconds: float = 60.0, lane: Lane = "online", caller: str = "") -> BatchOrder:
    return BatchOrder(asyncio.get_running_loop().time() + seconds, lane, caller)


@asynccontextmanager
async def batcher_of(
    *runners: ScriptedRunner, meter: CountingMeter | None = None, **limits: float
) -> AsyncIterator[Batcher]:
    batcher = Batcher(runners, length_of, BatchLimits(**limits), meter)  # type: ignore[arg-type]
    try:
        yield batcher
    finally:
        for runner in runners:
            runner.go_on()
        await batcher.close()


async def turn() -> None:
    """Let everything that is ready on the loop happen."""
    for _ in range(5):
        await asyncio.sleep(0)


Ask = Callable[..., "asyncio.Task[list[Computed]]"]


def client(batcher: Batcher) -> Ask:
    def ask(*rows: Row, order: BatchOrder | None = None) -> asyncio.Task[list[Computed]]:
        return asyncio.ensure_future(batcher.predict(rows, order or soon()))

    return ask


async def test_rows_of_one_turn_share_a_batch() -> None:
    """Requests that arrive in one turn of the event loop are one run."""
    runner = ScriptedRunner()
    async with batcher_of(runner) as batcher:
        results = await asyncio.gather(*(batcher.predict([row(n)], soon()) for n in range(5)))
    assert [answered(result) for result in results] == [[0], [2], [4], [6], [8]]
    assert len(runner.batches) == 1


async def test_rows_that_arrive_during_a_run_are_the_next_batch() -> None:
    """An instance that becomes idle takes all that is waiting, at once."""
    runner = ScriptedRunner(held=True)
    async with batcher_of(runner) as batcher:
        ask = client(batcher)
        first = ask(row(1))
        await runner.began()
        rest = [ask(row(n)) for n in (2, 3, 4)]
        await turn()
        assert (batcher.waiting, batcher.running) == (3, 1)
        assert repr(batcher) == "<Batcher 3 online, 0 background waiting, 1 of 1 instances running>"
        runner.go_on()
        assert answered(await first) == [2]
        assert [answered(await task) for task in rest] == [[4], [6], [8]]
    assert runner.batches == [[1], [2, 3, 4]]


async def test_a_large_request_spreads_over_batches_in_order() -> None:
    """A request above the batch limit is split, never refused, and its answers keep its order."""
    runner = ScriptedRunner()
    lengths = np.random.default_rng(0).integers(1, 30, 100)
    async with batcher_of(runner, max_rows=8) as batcher:
        computed = await batcher.predict([row(n, int(lengths[n])) for n in range(100)], soon())
    assert answered(computed) == [2 * n for n in range(100)]
    assert sorted(runner.ran) == list(range(100))
    assert max(map(len, runner.batches)) == 8


async def test_no_rows_are_no_run() -> None:
    """A request without rows is answered without one."""
    runner = ScriptedRunner()
    async with batcher_of(runner) as batcher:
        assert await batcher.predict([], soon()) == []
    assert runner.batches == []


async def test_single_runs_rows_alone() -> None:
    """With one row per batch no row ever has company."""
    runner = ScriptedRunner()
    async with batcher_of(runner, max_rows=1) as batcher:
        await batcher.predict([row(n) for n in range(4)], soon())
    assert runner.batches == [[0], [1], [2], [3]]


async def test_the_token_budget_counts_padding() -> None:
    """Rows × longest row of a batch stays within the budget; a row above it runs alone."""
    runner = ScriptedRunner()
    async with batcher_of(runner, max_tokens=40, start_tokens=100) as batcher:
        await batcher.predict([row(1, 10), row(2, 10), row(3, 10), row(4, 10), row(5, 10), row(6, 50)], soon())
    assert sorted(runner.batches) == [[1, 2, 3, 4], [5], [6]]


async def test_neighbours_in_length_run_together() -> None:
    """Rows that need much padding wait for another run, rows that need little come along."""
    runner = ScriptedRunner(held=True)
    async with batcher_of(runner, start_tokens=8) as batcher:
        ask = client(batcher)
        first = ask(row(0))
        await runner.began()
        tasks = [ask(row(n, length)) for n, length in ((1, 10), (2, 40), (3, 12), (4, 41), (5, 9))]
        await turn()
        runner.go_on()
        await asyncio.gather(first, *tasks)
    assert [sorted(batch) for batch in runner.batches] == [[0], [1, 3, 5], [2, 4]]


async def test_the_earliest_deadline_runs_first() -> None:
    """The most urgent row decides which batch is next, whenever it came."""
    runner = ScriptedRunner(held=True)
    async with batcher_of(runner, max_rows=1) as batcher:
        ask = client(batcher)
        tasks = [ask(row(0))]
        await runner.began()
        tasks += [ask(row(n), order=soon(100 - n)) for n in (1, 2, 3)]
        await turn()
        runner.go_on()
        await asyncio.gather(*tasks)
    assert runner.batches == [[0], [3], [2], [1]]


async def test_a_callers_single_row_does_not_wait_for_anothers_wide_requests() -> None:
    """It waits for one batch of theirs at most, and batches are full all the same."""
    runner = ScriptedRunner(held=True)
    async with batcher_of(runner, max_rows=8) as batcher:
        ask = client(batcher)
        tasks = [ask(row(0))]
        await runner.began()
        wide = [[row(100 * n + k) for k in range(64)] for n in range(1, 5)]
        tasks += [ask(*rows, order=soon(30, caller="wide")) for rows in wide]
        tasks.append(ask(row(7), order=soon(60, caller="single")))
        await turn()
        runner.go_on()
        await asyncio.gather(*tasks)
    assert 7 in (*runner.batches[1], *runner.batches[2])
    assert {len(batch) for batch in runner.batches[1:-1]} == {8}


async def test_callers_of_wide_requests_share_the_model() -> None:
    """Two callers that always wait get as many rows computed, whatever the width of their requests."""
    runner = ScriptedRunner(held=True)
    async with batcher_of(runner, max_rows=1) as batcher:
        ask = client(batcher)
        tasks = [ask(row(0))]
        await runner.began()
        tasks += [ask(*[row(1)] * 100, order=soon(caller="a")) for _ in range(4)]
        tasks += [ask(row(2), order=soon(caller="b")) for _ in range(400)]
        await turn()
        runner.go_on()
        await asyncio.gather(*tasks)
    half = runner.ran[1:401]
    assert abs(half.count(1) - half.count(2)) <= 64


async def test_a_callers_own_single_row_comes_before_its_wide_requests() -> None:
    """What has had rows computed already counts as less urgent."""
    runner = ScriptedRunner(held=True)
    async with batcher_of(runner, max_rows=8) as batcher:
        ask = client(batcher)
        tasks = [ask(row(0))]
        await runner.began()
        tasks += [ask(*[row(1)] * 64, order=soon(30)) for _ in range(2)]
        await turn()
        runner.go()
        await runner.began()
        runner.go()
        await runner.began()  # two batches of the wide ones have begun
        tasks.append(ask(row(7, 5), order=soon(31)))
        await turn()
        runner.go_on()
        await asyncio.gather(*tasks)
    assert 7 in runner.batches[3]


async def test_one_caller_does_not_fill_the_queue() -> None:
    """Two thirds are its own at most; another caller's rows are taken."""
    runner = ScriptedRunner(held=True)
    async with batcher_of(runner, queue_rows=90) as batcher:
        ask = client(batcher)
        tasks = [ask(row(0))]
        await runner.began()
        tasks += [ask(*[row(1)] * 30, order=soon(caller="a")) for _ in range(2)]
        await turn()
        with pytest.raises(Overloaded, match="the limit is 90"):
            await batcher.predict([row(1)] * 30, soon(caller="a"))
        tasks.append(ask(*[row(2)] * 30, order=soon(caller="b")))
        await turn()
        assert batcher.waiting == 90
        runner.go_on()
        await asyncio.gather(*tasks)


async def test_online_runs_before_background() -> None:
    """Background rows run when no online row waits, however early their deadline, and never in its batch."""
    runner = ScriptedRunner(held=True)
    async with batcher_of(runner) as batcher:
        ask = client(batcher)
        tasks = [ask(row(0))]
        await runner.began()
        tasks += [ask(row(1), order=soon(10, "background")), ask(row(2)), ask(row(3))]
        await turn()
        runner.go_on()
        await asyncio.gather(*tasks)
    assert runner.batches == [[0], [2, 3], [1]]


async def test_a_deadline_that_passes_in_the_queue_is_answered_and_never_run() -> None:
    """A busy instance does not keep a late request from its 504, and does not run it afterwards."""
    runner = ScriptedRunner(held=True)
    async with batcher_of(runner) as batcher:
        ask = client(batcher)
        first = ask(row(1))
        await runner.began()
        late, kept = ask(row(2), order=soon(0.01)), ask(row(3))
        with pytest.raises(DeadlineExceeded):
            await late
        assert batcher.waiting == 1
        runner.go_on()
        await asyncio.gather(first, kept)
    assert runner.batches == [[1], [3]]


async def test_what_cannot_make_it_is_refused_at_once() -> None:
    """Once the model has shown what it takes for a row: by the rows that come before, so an urgent one still may."""
    runner = ScriptedRunner(held=True)
    async with batcher_of(runner, max_rows=1) as batcher:
        ask = client(batcher)
        tasks = [ask(row(0))]
        await runner.began()
        tasks += [ask(row(n), order=soon(20 + n)) for n in (1, 2, 3)]  # nobody knows yet what a row takes
        await turn()
        await asyncio.sleep(0.2)
        runner.go()
        await runner.began()  # three wait, a row takes 0.2 s
        await tasks[0]
        with pytest.raises(Overloaded, match="cannot answer") as refused:
            await batcher.predict([row(n) for n in range(4, 160)], soon(31))
        assert refused.value.retry_after is not None
        assert refused.value.retry_after >= 1
        with pytest.raises(Overloaded, match="cannot answer"):
            await batcher.predict([row(4)], soon(0.01))
        tasks += [ask(row(4), order=soon(5)), ask(row(5), order=soon(40))]
        await turn()
        with pytest.raises(Overloaded, match="cannot answer"):
            await batcher.predict([row(n) for n in range(6, 160)], soon(20, "background"))
        runner.go_on()
        await asyncio.gather(*tasks)
    assert sorted(runner.ran) == [0, 1, 2, 3, 4, 5]


async def test_a_model_that_was_slow_once_is_trusted_again() -> None:
    """One run that took long makes it refuse, and quick runs make it accept, though nobody waits when they end."""
    runner = ScriptedRunner(held=True)
    async with batcher_of(runner, max_rows=1) as batcher:
        ask = client(batcher)
        tasks = [ask(row(0))]
        await runner.began()
        tasks.append(ask(row(1)))
        tasks.append(ask(row(2)))
        await turn()
        await asyncio.sleep(0.2)
        runner.go()
        await tasks[0]
        with pytest.raises(Overloaded, match="cannot answer"):
            await batcher.predict([row(3)] * 100, soon(25))
        runner.go_on()
        await asyncio.gather(*tasks)
        for number in range(10, 40):  # one after the other: none waits
            await batcher.predict([row(number)], soon())
        runner.hold()
        tasks = [ask(row(50)), ask(row(51))]
        await turn()
        tasks.append(ask(*[row(60)] * 100, order=soon(25)))
        await turn()
        assert not tasks[-1].done()
        runner.go_on()
        await asyncio.gather(*tasks)


async def test_a_deadline_in_the_past_is_refused() -> None:
    """Work that is already too late is not even queued."""
    runner = ScriptedRunner()
    async with batcher_of(runner) as batcher:
        with pytest.raises(DeadlineExceeded):
            await batcher.predict([row(1)], soon(-1))
    assert runner.batches == []


async def test_started_work_is_finished_and_answered_late() -> None:
    """A run that began in time is answered after the deadline too: whoever keeps answers wants it."""
    runner = ScriptedRunner(held=True)
    async with batcher_of(runner) as batcher:
        ask = client(batcher)
        deadline = soon(0.01).deadline
        started = ask(row(1), order=BatchOrder(deadline))
        await runner.began()
        with pytest.raises(DeadlineExceeded):  # its deadline is later, so the first one's has passed as well
            await ask(row(2), order=BatchOrder(deadline + 0.001))
        runner.go()
        assert answered(await started) == [2]
    assert runner.batches == [[1]]


async def test_rows_whose_asker_left_never_run() -> None:
    """A cancelled request gives its place back; the others of its batch are not disturbed."""
    runner = ScriptedRunner(held=True)
    async with batcher_of(runner, queue_rows=6) as batcher:
        ask = client(batcher)
        first = ask(row(0))
        await runner.began()
        tasks = [ask(row(n)) for n in (1, 2, 3, 4)]
        await turn()
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks[::2], return_exceptions=True)
        assert batcher.waiting == 2
        tasks[::2] = [ask(row(5)), ask(row(6))]
        await turn()
        runner.go_on()
        await asyncio.gather(first, *tasks)
    assert runner.batches == [[0], [2, 4, 5, 6]]


async def test_an_asker_that_leaves_during_the_run_disturbs_nobody() -> None:
    """Started work is finished although one of its askers is gone."""
    runner = ScriptedRunner(held=True)
    async with batcher_of(runner) as batcher:
        ask = client(batcher)
        leaver, stayer = ask(row(1)), ask(row(2))
        await runner.began()
        leaver.cancel()
        await asyncio.gather(leaver, return_exceptions=True)
        runner.go()
        assert answered(await stayer) == [4]
    assert runner.batches == [[1, 2]]


async def test_a_full_queue_refuses_at_once() -> None:
    """Rows above the limit are refused, not kept waiting; an empty queue takes any one request."""
    runner = ScriptedRunner(held=True)
    async with batcher_of(runner, queue_rows=3) as batcher:
        ask = client(batcher)
        tasks = [ask(row(0))]
        await runner.began()
        tasks.append(ask(*(row(n) for n in range(1, 9))))
        await turn()
        with pytest.raises(Overloaded) as refused:
            await batcher.predict([row(9)], soon())
        assert refused.value.retry_after == 1
        runner.go_on()
        await asyncio.gather(*tasks)
    assert [len(batch) for batch in runner.batches] == [1, 8]


async def test_a_poisoned_row_fails_its_own_request_only() -> None:
    """A batch that fails is run again row by row, once: the poisoned row's request fails, the others do not."""
    runner, meter = ScriptedRunner(), CountingMeter()
    runner.poison[2] = RuntimeError("secret input")
    async with batcher_of(runner, meter=meter) as batcher:
        results = await asyncio.gather(*(batcher.predict([row(n)], soon()) for n in (1, 2, 3)), return_exceptions=True)
    assert runner.batches == [[1, 2, 3], [1], [2], [3]]
    assert answered(results[0]) == [2]  # type: ignore[arg-type]
    assert answered(results[2]) == [6]  # type: ignore[arg-type]
    assert isinstance(results[1], ModelFailed)
    assert "secret" not in str(results[1])
    assert meter.runs == [(3, 1, 0)]


async def test_a_failed_row_takes_the_rest_of_its_request_along() -> None:
    """Rows of a request that has failed already do not run."""
    runner = ScriptedRunner()
    runner.poison[0] = BadInput("inputs.x: not so")
    async with batcher_of(runner, max_rows=2) as batcher:
        with pytest.raises(BadInput, match="not so"):
            await batcher.predict([row(n) for n in range(10)], soon())
        await turn()
        assert batcher.waiting == 0
    assert runner.batches == [[0, 1], [0], [1]]


async def test_too_few_answers_are_a_failure() -> None:
    """Answers are never matched to rows by luck: a wrong count fails."""
    runner = ScriptedRunner()
    runner.short = True
    async with batcher_of(runner) as batcher:
        with pytest.raises(ModelFailed, match="answered 0 rows to 1"):
            await batcher.predict([row(1)], soon())


async def test_close_drains() -> None:
    """What has been asked is answered, what comes afterwards is refused, the threads end."""
    runner = ScriptedRunner(held=True)
    async with batcher_of(runner) as batcher:
        ask = client(batcher)
        first = ask(row(1))
        await runner.began()
        second = ask(row(2))
        await turn()
        closing = asyncio.ensure_future(batcher.close())
        await turn()
        with pytest.raises(ModelUnavailable):
            await batcher.predict([row(3)], soon())
        runner.go_on()
        await closing
        assert (answered(await first), answered(await second)) == ([2], [4])
    assert not [t for t in threading.enumerate() if t.name.startswith("instance-")]


async def test_instances_run_side_by_side() -> None:
    """Two instances have two batches in progress at the same time."""
    runners = ScriptedRunner(held=True), ScriptedRunner(held=True)
    async with batcher_of(*runners, max_rows=1) as batcher:
        asked = asyncio.ensure_future(batcher.predict([row(1), row(2), row(3)], soon()))
        for runner in runners:
            await runner.began()
        assert (batcher.running, batcher.waiting) == (2, 1)
        for runner in runners:
            runner.go_on()
        assert answered(await asked) == [2, 4, 6]


async def test_waiting_for_company_ends_with_a_full_batch() -> None:
    """With a wait set, an idle instance waits until a batch is full."""
    runner = ScriptedRunner()
    async with batcher_of(runner, max_rows=3, wait_seconds=3600.0) as batcher:
        ask = client(batcher)
        tasks = [ask(row(1))]
        await turn()
        tasks.append(ask(row(2)))
        await turn()
        assert runner.batches == []
        tasks.append(ask(row(3)))
        await asyncio.gather(*tasks)
    assert runner.batches == [[1, 2, 3]]


async def test_waiting_for_company_ends_with_time() -> None:
    """Without company a row runs alone when the wait is over."""
    runner = ScriptedRunner()
    async with batcher_of(runner, wait_seconds=0.001) as batcher:
        assert answered(await batcher.predict([row(1)], soon())) == [2]


async def test_close_does_not_wait_for_company() -> None:
    """Closing runs what waits for company at once."""
    runner = ScriptedRunner()
    async with batcher_of(runner, wait_seconds=3600.0) as batcher:
        task = client(batcher)(row(1))
        await turn()
        await batcher.close()
        assert answered(await task) == [2]


async def test_seconds_are_shares_of_the_run() -> None:
    """Each row costs its share of the run's time; the time in the queue is told apart."""
    runner, meter = ScriptedRunner(held=True), CountingMeter()
    async with batcher_of(runner, meter=meter, start_tokens=10) as batcher:
        ask = client(batcher)
        first = ask(row(0))
        await runner.began()
        second = ask(row(1, 3), row(2, 5), row(3, 5))
        await turn()
        runner.go_on()
        await first
        computed = await second
    assert len({c.seconds for c in computed}) == 1
    assert all(c.seconds > 0 and c.queued > 0 for c in computed)
    assert meter.runs == [(1, 0, 0), (3, 0, 2)]
