"""What a head asks and a whole body → its reply, without aiohttp's request, task and response objects.

At once where near has every row; else when the flights that the request boarded have landed, without a task of its own;
else by a task that answers from the start, for what is large and for what goes past the cache.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus

from proxy.ask import Ask
from proxy.edge import Edge, Told
from proxy.serve import Visit

_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}


def set_out(edge: Edge, ask: Ask, body: bytes, then: Callable[[Told], None]) -> Told | UnderWay:
    """The reply, or the request under way, which tells `then` its reply."""
    started = time.perf_counter()
    deadline = asyncio.get_running_loop().time() + ask.seconds
    told = edge.at_once(ask, body, started, deadline)
    if isinstance(told, Told):
        return told
    under_way = UnderWay(edge, ask, body, started, deadline, then)
    under_way.wait(told)
    return under_way


class UnderWay:
    """A request that waits for flights, or for a task of its own."""

    __slots__ = ("_ask", "_at", "_body", "_deadline", "_edge", "_left", "_started", "_task", "_then", "_visit")

    def __init__(
        self, edge: Edge, ask: Ask, body: bytes, started: float, deadline: float, then: Callable[[Told], None]
    ) -> None:
        self._edge = edge
        self._then = then
        self._ask = ask
        self._body = body
        self._started = started
        self._deadline = deadline
        self._visit: Visit | None = None
        self._left = 0
        self._at: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[Told] | None = None

    def wait(self, visit: Visit | None) -> None:
        """For the flights of a visit; where there is none, for a task that answers from the start."""
        loop = asyncio.get_running_loop()
        self._visit = visit
        if visit is None:
            answering = self._edge.answer(self._ask, self._body, self._started, self._deadline)
            self._task = loop.create_task(answering)
            self._task.add_done_callback(self._answered)
            return
        landings = [wait.landing for wait in visit.journey.waits.values()]
        self._left = len(landings)
        self._at = loop.call_at(visit.journey.question.terms.deadline, self._arrive)
        for landing in landings:
            landing.add_done_callback(self._landed)

    def _landed(self, _: object) -> None:
        self._left -= 1
        if not self._left:
            self._arrive()

    def _arrive(self) -> None:
        visit = self._visit
        if visit is None or self._at is None:  # at its deadline it was answered
            return
        self._at.cancel()
        self._at = None
        told = self._edge.arrived(self._ask, visit, self._started)
        if told is None:
            self.wait(None)
        else:
            self._then(told)

    def _answered(self, task: asyncio.Task[Told]) -> None:
        if not task.cancelled():
            self._then(task.result())


def head_of(told: Told) -> bytes:
    """Status line and headers of a reply, in aiohttp's order."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in told.headers])
    start = f"{_LINES[told.status]}{lines}Content-Length: {len(told.body)}\r\nDate: {_date()}\r\n\r\n"
    return start.encode()


_second, _dated = -1, ""


def _date() -> str:
    """`Date` of this second."""
    global _second, _dated
    now = int(time.time())
    if now != _second:
        _second, _dated = now, formatdate(now, usegmt=True)
    return _dated
