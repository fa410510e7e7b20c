"""Admission control: fair turns, and refusals before the wait and not after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from foreseen.errors import Overloaded
from foreseen.proxy.backend.turns.admission import Admission
from foreseen.types import Lane


class Moved:
    """The running loop's clock, moved by the test: admission control reads `time`."""

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

    def __init__(
        self, stile: Admission, rows: int, seconds: float = 20.0, lane: Lane = "online", caller: str = ""
    ) -> None:
        self.inside = asyncio.Event()
        self.over = asyncio.Event()
        deadline = asyncio.get_running_loop().time() + seconds
        self.task = asyncio.create_task(self._run(stile, rows, deadline, lane, caller))

    async def _run(self, stile: Admission, rows: int, deadline: float, lane: Lane, caller: str) -> None:
        async with stile.turn(rows, deadline, lane, caller):
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
    """One caller has two thirds, others the rest; a wide turn that has no room is not overtaken."""
    stile = Admission(12, 100)
    callers = [Caller(stile, rows, caller=name) for name, rows in (("a", 6), ("b", 4), ("c", 8), ("d", 1), ("a", 1))]
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


async def test_one_caller_does_not_hold_all_the_room() -> None:
    """Its third turn waits, though there is room; another caller's comes in past it, at once."""
    stile = Admission(300, 1000)
    wide = [Caller(stile, 100, caller="wide") for _ in range(4)]
    await settle()
    assert [caller.inside.is_set() for caller in wide] == [True, True, False, False]
    single = Caller(stile, 1, caller="single")
    await settle()
    assert single.inside.is_set()
    await single.leave()
    for caller in wide:
        await caller.leave()


async def test_callers_have_their_turns_by_rows() -> None:
    """One that asks for 64 rows at a time has one turn to 64 of one that asks for single ones."""
    stile = Admission(90, 10_000)
    first = Caller(stile, 90, caller="first")
    await settle()
    order: list[str] = []
    deadline = asyncio.get_running_loop().time() + 60

    async def ask(caller: str, rows: int) -> None:
        async with stile.turn(rows, deadline, "online", caller):
            order.append(caller)

    tasks = [asyncio.create_task(ask("wide", 64)) for _ in range(10)]
    tasks += [asyncio.create_task(ask("single", 1)) for _ in range(300)]
    await settle()
    await first.leave()
    await asyncio.gather(*tasks)
    rows = [64 * order[:at].count("wide") - order[:at].count("single") for at in range(200)]
    assert max(map(abs, rows)) <= 128


async def test_narrow_turns_of_a_caller_come_before_its_wide_ones() -> None:
    """A single row does not wait for the wide requests that its own caller sent before."""
    stile = Admission(10, 1000)
    first = Caller(stile, 10)
    await settle()
    wide, narrow = [Caller(stile, 10) for _ in range(3)], Caller(stile, 1)
    await settle()
    await first.leave()
    assert narrow.inside.is_set()
    assert not any(caller.inside.is_set() for caller in wide)
    for caller in (narrow, *wide):
        await caller.leave()


async def test_one_caller_does_not_fill_the_queue() -> None:
    """Another caller's rows may wait, where one caller's share of the waiting is full."""
    stile = Admission(1, 9)
    first = Caller(stile, 1)
    await settle()
    callers = [Caller(stile, 1, caller="a") for _ in range(6)]
    await settle()
    with pytest.raises(Overloaded):
        async with stile.turn(1, asyncio.get_running_loop().time() + 60, "online", "a"):
            raise AssertionError("it was let in")
    callers += [Caller(stile, 1, caller="b")]
    await settle()
    assert stile.waiting == 7
    for caller in (first, *callers):
        caller.over.set()
    await asyncio.gather(first.task, *(caller.task for caller in callers))


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
