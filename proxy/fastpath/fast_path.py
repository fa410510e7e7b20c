"""What a head asks and a whole body → its reply, without aiohttp's request, task and response objects.

At once where near has every row; else when the flights that the request boarded have landed, without a task of its own;
else by a task that answers from the start, for what is large and for what goes past the cache.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from foreseen.proxy.fastpath.responder import RenderedReply, Responder, WaitingRequest
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.serve import Visit
from foreseen.proxy.predict.shortcut import Found

Then = Callable[[bytes | RenderedReply], None]


class FastPath:
    """The short road of one proxy process, and the requests that are under way on it. One timer serves all their
    deadlines: nearly every request is answered long before its own."""

    def __init__(self, edge: Responder) -> None:
        self.edge = edge
        self._under_way: set[PendingReply] = set()
        self._due = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def set_out(
        self, ask: RequestHead, body: bytes, raw: bytes | None, then: Then, found: Found | None = None
    ) -> bytes | RenderedReply | PendingReply:
        """The reply, or the request under way, which tells `then` its reply. `raw` are the bytes of the whole request
        where they may be replayed, `found` is what is known of the body where it was looked up. Bytes are a whole
        reply."""
        started = time.perf_counter()
        deadline = asyncio.get_running_loop().time() + ask.seconds
        told = self.edge.at_once(ask, body, raw, started, deadline, found)
        if type(told) is bytes or type(told) is RenderedReply:
            return told
        under_way = PendingReply(self, ask, body, started, deadline, then)
        under_way.wait(told)  # type: ignore[arg-type] # narrowed above, at a tenth of the price of isinstance
        return under_way

    def expect(self, under_way: PendingReply) -> None:
        """Tell a request when its deadline comes, unless it has landed."""
        self._under_way.add(under_way)
        if under_way.deadline < self._due:
            self._set(under_way.deadline)

    def landed(self, under_way: PendingReply) -> None:
        self._under_way.discard(under_way)

    def _set(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due, self._timer = due, None
        if due < math.inf:
            self._timer = asyncio.get_running_loop().call_at(due, self._sweep)

    def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        for one in [one for one in self._under_way if one.deadline <= now]:
            one.arrive()
        self._set(min((one.deadline for one in self._under_way), default=math.inf))


class PendingReply:
    """A request that waits for flights, or for a task of its own. `deadline` is the one it waits for now."""

    __slots__ = ("_aboard", "_ask", "_body", "_deadline", "_road", "_started", "_task", "_then", "deadline")

    def __init__(
        self, road: FastPath, ask: RequestHead, body: bytes, started: float, deadline: float, then: Then
    ) -> None:
        self._road = road
        self._ask = ask
        self._body = body
        self._started = started
        self._deadline = self.deadline = deadline
        self._then = then
        self._aboard: WaitingRequest | None = None
        self._task: asyncio.Task[RenderedReply] | None = None

    def wait(self, aboard: WaitingRequest | None) -> None:
        """For the flights of a visit; where there is none, for a task that answers from the start."""
        self._aboard = aboard
        if aboard is None:
            answering = self._road.edge.answer(self._ask, self._body, self._started, self._deadline)
            self._task = asyncio.get_running_loop().create_task(answering)
            self._task.add_done_callback(self._answered)
            return
        self.deadline = aboard.deadline
        self._road.expect(self)
        aboard.visit.waiting.append(self.arrive)
        if not aboard.joined:
            Landings(aboard.visit)

    def arrive(self) -> None:
        """All has landed, or the deadline has come."""
        aboard, self._aboard = self._aboard, None
        if aboard is None:  # at its deadline it was answered
            return
        self._road.landed(self)
        told = self._road.edge.arrived(self._ask, aboard, self._started)
        if told is None:
            self.wait(None)
        else:
            self._then(told)

    def _answered(self, task: asyncio.Task[RenderedReply]) -> None:
        if not task.cancelled():
            self._then(task.result())


class Landings:
    """The flights of a visit. When all have landed, everybody who waits for it is told."""

    __slots__ = ("_left", "_visit")

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._left = [wait.future for wait in visit.journey.waits.values()]
        self._landed(None)

    def _landed(self, _: object) -> None:
        """One has; most that are waited for have at the same time."""
        left = self._left
        while left:
            if not left[-1].done():
                left[-1].add_done_callback(self._landed)
                return
            left.pop()
        visit = self._visit
        if visit.entry is not None and visit.entry.in_flight is visit:
            visit.entry.in_flight = None
        for arrive in visit.waiting:
            arrive()
