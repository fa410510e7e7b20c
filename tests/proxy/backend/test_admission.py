"""The turnstile: fair turns, and refusals that come before the wait and not after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from foreseen.errors import Overloaded
from foreseen.proxy.backend.admission import Admission
from foreseen.types import Lane


class Moved:
    """The running loop's clock, moved by the test: `time` is what the turnstile reads."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._real = loop.time
        self.ahead = 0.0

    def time(self) -> float:
        return self._real() + self.ahead


@pytest.fixture
async def clock() -> AsyncIterator[Moved]:
    loop = asyncio.get_running_loop()
    moved = Moved(loop)
    loop.time = moved.time  # type: ignore[method-assign]
    yield moved
    del loop.time  # type: ignore[method-assign]


class Caller:
    """Holds a turn until the test says so."""

    def __init__(self, stile: Admission, rows: int, seconds: float = 20.0, lane: Lane = "online") -> None:
        self.inside = asyncio.Event()
        self.over = asyncio.Event()
        deadline = asyncio.get_running_loop().time() + seconds
        self.task = asyncio.create_task(self._run(stile, rows, deadline, lane))

    async def _run(self, stile: Admission, rows: int, deadline: float, lane: Lane) -> None:
        async with stile.turn(rows, deadline, lane):
            self.inside.set()
            await self.over.wait()

    async def leave(self) -> None:
        self.over.set()
        await self.task
        await settle()


async def settle(until: Callable[[], bool] = lambda: False) -> None:
    for _ in range(10):
        if until():
            return
        await asyncio.sleep(0)


async def test_no_more_than_the_limit_are_inside_and_the_rest_come_in_their_order() -> None:
    """First come, first served; a small one does not overtake a large one."""
    stile = Admission(10, 100)
    callers = [Caller(stile, rows) for rows in (6, 4, 8, 1, 1)]
    await settle()
    assert [caller.inside.is_set() for caller in callers] == [True, True, False, False, False]
    assert (stile.inside, stile.waiting) == (10, 10)
    await callers[1].leave()
    assert not any(caller.inside.is_set() for caller in callers[2:])
    await callers[0].leave()
    assert all(caller.inside.is_set() for caller in callers[2:])
    for caller in callers[2:]:
        await caller.leave()
    assert (stile.inside, stile.waiting) == (0, 0)


async def test_a_question_larger_than_the_limit_has_its_turn_alone() -> None:
    """It counts as all that may be inside."""
    stile = Admission(10, 100)
    small, large = Caller(stile, 1), Caller(stile, 500)
    await settle()
    assert not large.inside.is_set()
    await small.leave()
    assert large.inside.is_set()
    await large.leave()


async def test_online_comes_before_background() -> None:
    """Whoever waits for an answer is let in before those who do not."""
    stile = Admission(1, 100)
    first = Caller(stile, 1)
    await settle()
    behind, before = Caller(stile, 1, lane="background"), Caller(stile, 1)
    await settle()
    await first.leave()
    assert (before.inside.is_set(), behind.inside.is_set()) == (True, False)
    await before.leave()
    await behind.leave()


async def test_what_cannot_make_it_is_refused_at_once_and_told_when(clock: Moved) -> None:
    """Ten rows a second, thirty before it: a deadline of two seconds is refused now, one of ten waits."""
    stile = Admission(10, 1000)
    callers = [Caller(stile, 10) for _ in range(4)]
    await settle()
    clock.ahead += 1.0
    await callers[0].leave()
    with pytest.raises(Overloaded) as refused:
        async with stile.turn(10, clock.time() + 2.0):
            raise AssertionError("it was let in")
    assert refused.value.retry_after in (1, 2)
    patient = Caller(stile, 10, seconds=10.0)
    await settle()
    assert not patient.task.done()
    for caller in (*callers[1:], patient):
        await caller.leave()


async def test_a_model_that_has_stalled_refuses_sooner_and_sooner(clock: Moved) -> None:
    """Nothing is done while time passes: what waited a second for nothing will not make it in half of one."""
    stile = Admission(10, 1000)
    callers = [Caller(stile, 10, seconds=100.0) for _ in range(2)]
    await settle()
    clock.ahead += 5.0
    with pytest.raises(Overloaded):
        async with stile.turn(10, clock.time() + 10.0):
            raise AssertionError("it was let in")
    for caller in callers:
        await caller.leave()
    async with stile.turn(10, clock.time() + 0.1):
        """Nobody waits any more: the stall is forgotten."""


async def test_too_many_are_refused_whatever_their_deadline() -> None:
    """The queue is bounded."""
    stile = Admission(1, 2)
    callers = [Caller(stile, 1) for _ in range(3)]
    await settle()
    with pytest.raises(Overloaded):
        async with stile.turn(1, asyncio.get_running_loop().time() + 1e6):
            raise AssertionError("it was let in")
    for caller in callers:
        await caller.leave()


async def test_a_turn_that_does_not_come_ends_at_the_deadline() -> None:
    """503, and the place in the queue is free again."""
    stile = Admission(1, 10)
    first = Caller(stile, 1)
    await settle()
    late = Caller(stile, 1, seconds=0.02)
    with pytest.raises(Overloaded):
        await late.task
    assert stile.waiting == 0
    await first.leave()
    async with stile.turn(1, asyncio.get_running_loop().time() + 1):
        assert stile.inside == 1


async def test_a_turn_falls_to_the_next_where_the_first_has_just_been_cancelled() -> None:
    """A turn comes free between somebody's cancellation and its end: nothing breaks, the next one has it."""
    stile = Admission(1, 10)
    first, second, third = Caller(stile, 1), Caller(stile, 1), Caller(stile, 1)
    await settle()
    second.task.cancel()
    first.over.set()
    await asyncio.wait([first.task, second.task])
    await settle()
    assert third.inside.is_set()
    await third.leave()
    assert (stile.inside, stile.waiting) == (0, 0)


async def test_who_is_cancelled_in_the_very_moment_of_its_turn_gives_it_on() -> None:
    """No turn is ever lost."""
    stile = Admission(1, 10)
    first, second, third = Caller(stile, 1), Caller(stile, 1), Caller(stile, 1)
    await settle()
    first.over.set()
    await first.task  # the second's turn is granted and not yet taken
    second.task.cancel()
    await asyncio.wait([second.task])
    await settle()
    assert third.inside.is_set()
    await third.leave()
    assert (stile.inside, stile.waiting) == (0, 0)
