"""Admission control of cache misses: rows wait for the model first come first served, or are refused at once.

A row whose answer would come after its deadline is wasted work: the client asks again, and a cold cache stays cold
(metastable failures, Bronson et al., HotOS'21). Such a row is refused before it waits, with the time after which it
would be admitted. Hits never pass here.

The model's speed shows only while it is busy. So the rate is measured from the moment that a row waits until a row is
done and none waits. Rows that are being computed count as done: a model without a measurement is taken to be fast.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque

from foreseen.errors import Overloaded
from foreseen.types import Lane

WINDOW_SECONDS = 5.0
"""What the model did longer ago counts half."""
MOST_RETRY_AFTER_SECONDS = 60
LANES: tuple[Lane, ...] = ("online", "background")

Waiter = tuple[int, asyncio.Future[None]]


class Admission:
    """Lets in so many rows of one model at a time. `inside` are being computed, `waiting` wait, both in rows."""

    def __init__(self, limit: int, most_waiting: int) -> None:
        self.limit = limit
        self.inside = 0
        self.waiting = 0
        self._most_waiting = most_waiting
        self._queues: dict[Lane, deque[Waiter]] = {lane: deque() for lane in LANES}
        self._since: float | None = None
        self._done = 0.0

    def turn(self, rows: int, deadline: float, lane: Lane = "online") -> _Turn:
        """Wait for a turn and hold it: an asynchronous context. More rows than may be inside count as all that may.

        Raises Overloaded: at once where the turn would end after the deadline (on the event loop's clock) or too many
        wait already, else when the deadline comes.
        """
        return _Turn(self, min(rows, self.limit), deadline, lane)

    def seconds(self, rows: int) -> float:
        """How long it takes until so many more rows are computed, as far as the model has shown; never less than 0."""
        now = asyncio.get_running_loop().time()
        if self._since is None or not self.inside:
            return 0.0
        per_row = (now - self._since) / (self._done + self.inside)
        return (self.inside + self.waiting + rows) * per_row

    def __repr__(self) -> str:
        return f"<Turnstile {self.inside}/{self.limit} rows inside, {self.waiting} waiting>"

    async def enter(self, weight: int, deadline: float, lane: Lane) -> None:
        """Take a turn. Raises as `turn` does."""
        if self.inside + weight > self.limit or self.waiting:
            await self._wait(weight, deadline, lane)
        else:
            self.inside += weight

    async def _wait(self, weight: int, deadline: float, lane: Lane) -> None:
        loop = asyncio.get_running_loop()
        needs, left = self.seconds(weight), deadline - loop.time()
        if self.waiting + weight > self._most_waiting:
            raise _refusal("too many rows wait for the model", needs)
        if needs > left:
            raise _refusal("the model cannot make it before the deadline", needs - left)
        if self._since is None:
            self._since, self._done = loop.time(), 0.0
        turn: asyncio.Future[None] = loop.create_future()
        waiter = weight, turn
        self._queues[lane].append(waiter)
        self.waiting += weight
        try:
            async with asyncio.timeout_at(deadline):
                await turn
        except TimeoutError:
            self._give_up(waiter, lane)
            raise _refusal("its turn did not come before the deadline", self.seconds(weight)) from None
        except BaseException:
            self._give_up(waiter, lane)
            raise

    def _give_up(self, waiter: Waiter, lane: Lane) -> None:
        weight, turn = waiter
        if turn.done() and not turn.cancelled():  # its turn came in the very moment
            self.leave(weight, 0)
            return
        if waiter in self._queues[lane]:
            self._queues[lane].remove(waiter)
            self.waiting -= weight
            self._let_in()

    def leave(self, weight: int, done: int) -> None:
        """Give a turn back, with so many rows computed."""
        now = asyncio.get_running_loop().time()
        if self._since is not None and now - self._since > 2 * WINDOW_SECONDS:
            self._since, self._done = now - WINDOW_SECONDS, self._done / 2
        self._done += done
        self.inside -= weight
        self._let_in()
        if done and not self.waiting:
            self._since = None

    def _let_in(self) -> None:
        """Online before background; within a lane first come first served, so that large requests are not starved."""
        for lane in LANES:
            queue = self._queues[lane]
            while queue and self.inside + queue[0][0] <= self.limit:
                weight, turn = queue.popleft()
                self.waiting -= weight
                if not turn.done():  # it may have been cancelled in this very moment
                    self.inside += weight
                    turn.set_result(None)
            if queue:
                return


class _Turn:
    """A turn that is held; not a generator, which costs four times as much."""

    __slots__ = ("_deadline", "_lane", "_stile", "_weight")

    def __init__(self, stile: Admission, weight: int, deadline: float, lane: Lane) -> None:
        self._stile = stile
        self._weight = weight
        self._deadline = deadline
        self._lane = lane

    async def __aenter__(self) -> None:
        await self._stile.enter(self._weight, self._deadline, self._lane)

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stile.leave(self._weight, self._weight if kind is None else 0)


def _refusal(why: str, seconds: float) -> Overloaded:
    return Overloaded(why, retry_after=max(1, min(MOST_RETRY_AFTER_SECONDS, math.ceil(seconds))))
