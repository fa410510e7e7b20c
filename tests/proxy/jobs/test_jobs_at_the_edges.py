"""Jobs whose world changes under them: progress while they run, another preparation, clocks that jump."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from foreseen.proxy.jobs.worker import SLICE_ROWS
from foreseen.queue.queue import Queue
from foreseen.queue.records import Failure, Head, Rows, Ticket, new_job, new_nonce
from foreseen.queue.scripts import BASE, GROUP
from foreseen.types import ALL_STEPS, OutputOptions
from tests.doubles import ScriptedModel, row
from tests.queue import test_queue as jobs
from tests.queue.test_queue import BOUNDS, FRAMER, RECORDS, result, state_of, submit, take, until_ended, working


async def large(queue: Queue, rows: int, preparation: str = "p") -> tuple[bytes, bytes]:
    """A job of so many rows: 0, 1, 2 …"""
    job, nonce = new_job(), new_nonce()
    head = Head(job, b"", "public", "m", preparation, rows, sorted(ALL_STEPS))
    sealed = RECORDS.seal(Rows(job, FRAMER.frames([row(value) for value in range(rows)])))
    ticket = RECORDS.seal(Ticket(nonce, "public", job, OutputOptions()))
    await queue.submit(b"", job, nonce, RECORDS.seal(head), sealed, ticket, rows, 200_000)
    return job, nonce


class Slice(ScriptedModel):
    """Answers a slice at a time, each when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.ours = False  # so that a slice is one turn, however slow it says it is
        self.turns = asyncio.Semaphore(0)

    async def predict(self, rows: Any, parameters: bytes, options: Any) -> Any:
        await self.turns.acquire()
        return await super().predict(rows, parameters, options)


async def test_progress_moves_before_the_end(queue: Queue) -> None:
    """A job of 600 rows: after each slice its ticket says how many are done, and who listens is told."""
    model = Slice()
    job, nonce = await large(queue, 600)
    async with working(queue, model), asyncio.timeout(20), queue.news() as following:
        seen: list[tuple[str, int]] = []
        for turn in (1, 2, 3):
            model.turns.release()
            while (standing := await queue.see(job, nonce)) and standing.done < min(turn * SLICE_ROWS, 600):
                await following()
            assert standing is not None
            seen.append((standing.state, standing.done))
        assert seen == [("running", 256), ("running", 512), ("succeeded", 600)]
    assert await result(queue, job, nonce) == [10 * value for value in range(600)]


@pytest.mark.parametrize("company", [0, 5])
async def test_another_preparation_ends_a_job_at_once(queue: Queue, company: int) -> None:
    """What was prepared in another way is not asked; the job says so, in company and alone; others are answered."""
    model = ScriptedModel()
    old = await large(queue, 2, preparation="another")
    others = [await submit(queue, value) for value in range(1, company + 1)]
    async with working(queue, model):
        assert await until_ended(queue, old, *others) == ["failed", *["succeeded"] * company]
    seen = await queue.see(*old, record=True)
    assert seen is not None
    failure = RECORDS.open_of(Failure, old[0], seen.record or b"")
    assert (failure.status, failure.code) == (409, "model_changed")
    assert (seen.attempts, model.rows, await queue.dead_letters()) == (0, company, {})


async def test_a_clock_that_jumps_within_a_jobs_time_changes_nothing(queue: Queue, store: Redis) -> None:
    """The store's clock jumps ahead, as far as the job can tell: running and waiting jobs are answered. By more than
    what is left of its time it has expired, also while it runs, and a late answer changes nothing."""
    model = ScriptedModel()
    model.gate.clear()
    running = await submit(queue, 1)
    async with working(queue, model):
        await model.entered.wait()
        waiting = await submit(queue, 2)
        await _jump(store, BOUNDS.job_seconds - 5, running, waiting)
        await queue.tick()
        assert "expired" not in [await state_of(queue, *one) for one in (running, waiting)]
        model.gate.set()
        assert await until_ended(queue, running, waiting) == ["succeeded"] * 2
        model.gate.clear()
        model.entered.clear()
        late = await submit(queue, 3)
        await model.entered.wait()
        await _jump(store, BOUNDS.job_seconds + 1, late)
        await queue.tick()
        assert await state_of(queue, *late) == "expired"
        model.gate.set()
    assert await state_of(queue, *late) == "expired"
    assert await jobs.ended(queue) == {"succeeded": 2, "expired": 1}


async def _jump(store: Redis, seconds: float, *tickets: tuple[bytes, bytes]) -> None:
    """What a clock that jumps ahead does to these: they are so much older."""
    for job, _ in tickets:
        created = int(await store.hget(f"{BASE}.job:".encode() + job, "c") or 0) - int(seconds * 1000)
        await store.hset(f"{BASE}.job:".encode() + job, "c", created)
        await store.zadd(f"{BASE}.open", {job: created})


async def test_a_clock_that_jumps_back_lets_nothing_end_twice(queue: Queue, store: Redis) -> None:
    """Jobs of the future wait and are answered like any other; their age is never negative."""
    ticket = await submit(queue, 4)
    await _jump(store, -3600, ticket)
    assert (await queue.standing()).oldest_seconds == 0
    async with working(queue, ScriptedModel()):
        assert await until_ended(queue, ticket) == ["succeeded"]
    assert await jobs.ended(queue) == {"succeeded": 1}


async def test_a_jump_makes_live_workers_look_silent_and_costs_one_run(queue: Queue, store: Redis) -> None:
    """A worker's jobs look silent to another, which takes them over: they run twice, end once, and are not dead."""
    held, model = ScriptedModel(), ScriptedModel()
    held.gate.clear()
    ticket = await submit(queue, 5)
    async with working(queue, held, "w1"):
        await held.entered.wait()
        (pending,) = await store.xpending_range(f"{BASE}.queue", GROUP, "-", "+", 1)
        assert pending["consumer"] == b"w1"
        (claimed,) = await queue.claim("w2", "", 0.0, 10)  # as after a jump: nobody was heard of for long enough
        assert claimed.job == ticket[0]
        async with working(queue, model, "w2"):
            assert await until_ended(queue, ticket) == ["succeeded"]
            held.gate.set()
    assert (held.rows, model.rows) == (1, 1)
    assert await jobs.ended(queue) == {"succeeded": 1}
    assert (await queue.standing()).counts["redelivered"] == 1
    assert await queue.dead_letters() == {}
    assert await take(queue, "w3") == []
