"""Admission control: rows to compute → their turn at the model, or an immediate refusal.

A model computes so many rows in a second; whatever else arrives waits. Waiting that ends after the deadline is wasted
work: the answer comes too late, is asked for again, and a cold cache stays cold (Bronson et al., HotOS'21). So what
cannot make it by its deadline is refused before it waits, with the time after which it would. Hits never come here.

Callers have their turns by deficit round robin (`fair_order.py`), and none holds all the room, inside or waiting. Among
the turns of one caller narrow ones come first, unless a wide one has waited for SECONDS_PER_ROW times its rows longer.

How fast the model is shows only while it is busy, so the rate is taken from the moment that a turn waits until one is
done and none waits. Rows that are being computed count as done: as long as the model has not shown what it can do, it
is trusted.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import Counter, defaultdict
from functools import partial
from heapq import heapify, heappop, heappush

from msgspec import Struct

from foreseen.errors import Overloaded
from foreseen.fair_order import FairOrder, has_room, rows_before
from foreseen.types import LANES, SECONDS_PER_ROW, Lane

WINDOW_SECONDS = 5.0
"""What the model did longer ago counts half."""
MOST_RETRY_AFTER_SECONDS = 60
MOST_TURNS = 96
"""Turns inside at a time: each is a request to the model, and those above `MAX_REQUESTS` would wait there in line."""


class TurnSize(Struct, frozen=True):
    """What a turn takes: `rows` that are computed, the `room` it has inside, and whose it is."""

    rows: int
    room: int
    lane: Lane
    caller: str
    weight: int = 1


class WaitingTurn:
    """A turn that waits; ordered by `rank`: when it came, with what its rows add, and a number."""

    __slots__ = ("future", "rank", "size")

    def __init__(self, size: TurnSize, rank: tuple[float, int], future: asyncio.Future[None]) -> None:
        self.size = size
        self.rank = rank
        self.future = future

    def __lt__(self, other: WaitingTurn) -> bool:
        return self.rank < other.rank


class _Queue:
    """The waiting turns of one lane, by caller."""

    def __init__(self) -> None:
        self.order = FairOrder()
        self._turns: defaultdict[str, list[WaitingTurn]] = defaultdict(list)

    def add(self, turn: WaitingTurn) -> None:
        heappush(self._turns[turn.size.caller], turn)
        self.order.add(turn.size.caller, turn.size.rows, turn.size.weight)

    def first(self, caller: str) -> WaitingTurn:
        return self._turns[caller][0]

    def pop(self, caller: str) -> WaitingTurn:
        turn = heappop(self._turns[caller])
        self.order.charge(caller, turn.size.rows)
        self._removed(turn)
        return turn

    def remove(self, turn: WaitingTurn) -> bool:
        """Whether it was waiting."""
        turns = self._turns.get(turn.size.caller, [])
        if turn not in turns:
            return False
        turns.remove(turn)
        heapify(turns)
        self._removed(turn)
        return True

    def _removed(self, turn: WaitingTurn) -> None:
        self.order.remove(turn.size.caller, turn.size.rows)
        if not self._turns[turn.size.caller]:
            del self._turns[turn.size.caller]


class Admission:
    """Lets in so many rows of one model at a time. `inside` are being computed, `waiting` wait, both in rows."""

    def __init__(self, limit: int, most_waiting: int) -> None:
        self.limit = limit
        self.inside = 0
        self.waiting = 0
        self._most_waiting = most_waiting
        self._queues = {lane: _Queue() for lane in LANES}
        self._held: Counter[tuple[Lane, str]] = Counter()
        self._numbers = itertools.count()
        self._since: float | None = None
        self._done = 0.0

    def turn(
        self, rows: int, deadline: float, lane: Lane = "online", caller: str = "", behind: int = 0, weight: int = 1
    ) -> _Turn:
        """Wait for a turn and hold it: an asynchronous context. More rows than may be inside count as all that may.
        `behind` is how many rows of the same request come before.

        Raises Overloaded: at once where the turn would end after the deadline (on the event loop's clock) or too many
        wait already, else when the deadline comes.
        """
        room = min(max(rows, self.limit // MOST_TURNS), self.limit)
        return _Turn(self, TurnSize(min(rows, self.limit), room, lane, caller, weight), deadline, behind)

    def check(self, rows: int, deadline: float, lane: Lane, caller: str) -> None:
        """Raises Overloaded where so many rows, by however many turns, would not be computed before the deadline."""
        needs, left = self.seconds(rows, lane, caller), deadline - asyncio.get_running_loop().time()
        if needs > left:
            raise _refusal("the model cannot answer before the deadline", needs - left)

    def seconds(self, rows: int, lane: Lane = "online", caller: str = "") -> float:
        """How long it takes until so many more rows of a caller are computed, as far as the model has shown; never less
        than 0."""
        now = asyncio.get_running_loop().time()
        if self._since is None or not self.inside:
            return 0.0
        per_row = (now - self._since) / (self._done + self.inside)
        return (self._ahead(rows, lane, caller) + rows) * per_row

    def _ahead(self, rows: int, lane: Lane, caller: str) -> int:
        """Rows, inside or waiting, that are computed before the last of so many more of a caller."""
        known = Counter(self._queues[lane].order.waiting)
        for (where, one), room in self._held.items():
            if where == lane:
                known[one] += room
        own = known.pop(caller, 0)
        ahead = rows_before(own, rows, known.values())
        return ahead if lane == "online" else ahead + sum(self._queues["online"].order.waiting.values())

    def __repr__(self) -> str:
        return f"<Admission {self.inside}/{self.limit} rows inside, {self.waiting} waiting>"

    @property
    def crowded(self) -> bool:
        """Whether turns wait."""
        return self.waiting > 0

    async def enter(self, size: TurnSize, deadline: float, behind: int) -> None:
        """Take a turn. Raises as `turn` does."""
        if self.waiting or not self._fits(size):
            await self._wait(size, deadline, behind)
        else:
            self._let(size)

    def _fits(self, size: TurnSize) -> bool:
        return has_room(self._held[size.lane, size.caller], size.room, self.limit - self.inside)

    def _let(self, size: TurnSize) -> None:
        self.inside += size.room
        self._held[size.lane, size.caller] += size.room

    async def _wait(self, size: TurnSize, deadline: float, behind: int) -> None:
        loop, queue = asyncio.get_running_loop(), self._queues[size.lane]
        self._check_room(size, queue)
        self.check(size.rows, deadline, size.lane, size.caller)
        if self._since is None:
            self._since, self._done = loop.time(), 0.0
        rank = loop.time() + SECONDS_PER_ROW * (behind + size.rows), next(self._numbers)
        turn = WaitingTurn(size, rank, loop.create_future())
        queue.add(turn)
        self.waiting += size.rows
        self._let_in()
        try:
            async with asyncio.timeout_at(deadline):
                await turn.future
        except TimeoutError:
            self._give_up(turn)
            needs = self.seconds(size.rows, size.lane, size.caller)
            raise _refusal("the row was not computed before the deadline", needs) from None
        except BaseException:
            self._give_up(turn)
            raise

    def _check_room(self, size: TurnSize, queue: _Queue) -> None:
        if not has_room(queue.order.waiting.get(size.caller, 0), size.rows, self._most_waiting - self.waiting):
            raise _refusal("too many rows wait for the model", self.seconds(size.rows, size.lane, size.caller))

    def _give_up(self, turn: WaitingTurn) -> None:
        if turn.future.done() and not turn.future.cancelled():  # its turn came in the very moment
            self.leave(turn.size, 0)
        elif self._queues[turn.size.lane].remove(turn):
            self.waiting -= turn.size.rows
            self._let_in()

    def leave(self, size: TurnSize, done: int) -> None:
        """Give a turn back, with so many rows computed."""
        now = asyncio.get_running_loop().time()
        if self._since is not None and now - self._since > 2 * WINDOW_SECONDS:
            self._since, self._done = now - WINDOW_SECONDS, self._done / 2
        self._done += done
        self.inside -= size.room
        self._held[size.lane, size.caller] -= size.room
        if not self._held[size.lane, size.caller]:
            del self._held[size.lane, size.caller]
        self._let_in()
        if done and not self.waiting:
            self._since = None

    def _let_in(self) -> None:
        """Online before background. A turn whose caller holds its share is passed over; one that has no room yet is
        not, so that wide ones have their turn too."""
        for lane in LANES:
            queue = self._queues[lane]
            blocked = partial(self._has_share, queue)
            while (caller := queue.order.next(blocked)) is not None:
                if queue.first(caller).size.room > self.limit - self.inside:
                    return
                turn = queue.pop(caller)
                self.waiting -= turn.size.rows
                if not turn.future.done():  # it may have been cancelled in this very moment
                    self._let(turn.size)
                    turn.future.set_result(None)
            if queue.order.waiting:
                return

    def _has_share(self, queue: _Queue, caller: str) -> bool:
        """Whether a caller holds too much for its next turn to be let in."""
        size = queue.first(caller).size
        held = self._held[size.lane, size.caller]
        return held > 0 and not has_room(held, size.room, self.limit - self.inside)


class _Turn:
    """A turn that is held; not a generator, which costs four times as much."""

    __slots__ = ("_admission", "_behind", "_deadline", "_size")

    def __init__(self, admission: Admission, size: TurnSize, deadline: float, behind: int) -> None:
        self._admission = admission
        self._size = size
        self._deadline = deadline
        self._behind = behind

    async def __aenter__(self) -> None:
        await self._admission.enter(self._size, self._deadline, self._behind)

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._admission.leave(self._size, self._size.room if kind is None else 0)


def _refusal(why: str, seconds: float) -> Overloaded:
    return Overloaded(why, retry_after=max(1, min(MOST_RETRY_AFTER_SECONDS, math.ceil(seconds))))
