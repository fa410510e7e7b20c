"""Waiting for the rows of a request that are in flight, until all are resolved or the request's deadline has come."""

from __future__ import annotations

import asyncio
import functools
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from foreseen.errors import DeadlineExceeded
from foreseen.proxy.cache.flight import RowFuture
from foreseen.types import Answer, Key

TURN_CALLS = 64
"""About 10 ms of replies."""


class Wait(Struct, frozen=True):
    """A row that is waited for; `joined` if it was in flight already."""

    future: RowFuture
    joined: bool


class FanOut:
    """Calls back many waiters of one row in slices, one slice per turn of the event loop: 10,000 replies in one turn
    would delay every other request for seconds. A single waiter is called at once."""

    def __init__(self) -> None:
        self._waiting: dict[RowFuture, list[Callable[[], None]]] = {}
        self._due: deque[Callable[[], None]] = deque()
        self._left, self._calling = TURN_CALLS, False

    def add(self, future: RowFuture, called: Callable[[], None]) -> None:
        """Call when the future is done."""
        waiting = self._waiting.get(future)
        if waiting is None:
            self._waiting[future] = [called]
            future.add_done_callback(self._done)
        else:
            waiting.append(called)

    def call(self, due: Iterable[Callable[[], None]]) -> None:
        """Call all of these, now and in later turns."""
        self._due.extend(due)
        if not self._calling:
            self._go_on()

    def _done(self, future: RowFuture) -> None:
        self.call(self._waiting.pop(future))

    def _go_on(self) -> None:
        """Call what may be called in this turn."""
        if self._left == TURN_CALLS:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._calling = True
        try:
            while self._due and self._left:
                self._left -= 1
                self._due.popleft()()
        finally:
            self._calling = False

    def _next_turn(self) -> None:
        self._left = TURN_CALLS
        if self._due:
            self._go_on()


async def until_resolved(waits: Iterable[Wait], deadline: float, fan_out: FanOut) -> None:
    """Wait for flights without owning them: cancelling the wait does not cancel them.

    The futures are awaited one after another. Rows of one flight resolve together, and a future that is done costs next
    to nothing. A callback for each of them, as in `asyncio.wait`, costs more than storing the rows.
    """
    pending = [wait.future for wait in waits if not wait.future.done()]
    if not pending:
        return
    loop = asyncio.get_running_loop()
    late = False

    def over() -> None:
        nonlocal late
        late = True
        _wake(turn)

    turn: asyncio.Future[None] = loop.create_future()
    alarm = loop.call_at(deadline, over)
    try:
        for future in pending:
            while not (future.done() or late):
                turn = loop.create_future()
                fan_out.add(future, functools.partial(_wake, turn))
                await turn
    finally:
        alarm.cancel()


def _wake(turn: asyncio.Future[None], _: object = None) -> None:
    if not turn.done():
        turn.set_result(None)


class Expiring(Protocol):
    """A wait with a deadline, on the event loop's clock."""

    deadline: float

    def expire(self) -> None:
        """The deadline has come."""


class Deadlines:
    """Many deadlines on one timer: a timer each costs 1 to 2 µs, and nearly all requests are answered long before."""

    def __init__(self) -> None:
        self._waiting: set[Expiring] = set()
        self._due = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, one: Expiring) -> None:
        self._waiting.add(one)
        if one.deadline < self._due:
            self._set(one.deadline)

    def discard(self, one: Expiring) -> None:
        self._waiting.discard(one)

    def sweep(self) -> None:
        """Expire waiters whose deadline has passed; set the timer for the rest."""
        now = asyncio.get_running_loop().time()
        for one in [one for one in self._waiting if one.deadline <= now]:
            self._waiting.discard(one)
            one.expire()
        self._set(min((one.deadline for one in self._waiting), default=math.inf))

    def _set(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due, self._timer = due, None
        if due < math.inf:
            self._timer = asyncio.get_running_loop().call_at(due, self.sweep)


def cut_short(waits: Iterable[Wait], deadline: float) -> bool:
    """Whether a joined flight ended at its own deadline before this request's: then the row is requested again."""
    if asyncio.get_running_loop().time() >= deadline:
        return False
    return any(
        wait.joined and wait.future.done() and isinstance(wait.future.exception(), DeadlineExceeded) for wait in waits
    )


def in_order(
    keys: Sequence[Key],
    found: Mapping[Key, Answer],
    waits: Mapping[Key, Wait],
    stale_fallback: Callable[[Key], Answer | None],
) -> list[Answer]:
    """One answer per row. A row that the model computed for another request, or for an equal row of this one, is
    `collapsed`; a row that is still in flight gets its stale fallback. Raises the error that a flight ended with, or
    DeadlineExceeded."""
    answers = []
    asked: set[Key] = set()
    for key in keys:
        answer = found.get(key)
        if answer is None:
            wait = waits[key]
            answer = wait.future.result() if wait.future.done() else stale_fallback(key)
            if answer is None:
                raise DeadlineExceeded("the answer did not come before the deadline")
            if answer.source == "model" and (wait.joined or key in asked):
                answer = Answer(answer.prediction, "collapsed", answer.stored, answer.trip)
            asked.add(key)
        answers.append(answer)
    return answers
