"""A connection of the model process that answers single-row requests of our own proxy itself, without aiohttp's
request, task and response objects. aiohttp handles everything else.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

from foreseen.errors import ForeseenError
from foreseen.inference.batching.queued import Computed, QueuedRequest
from foreseen.inference.handlers import ModelRoutes
from foreseen.inference.row_requests import RowAsked
from foreseen.web.accounted_connection import AccountedConnection

CLOSE = b"\r\nConnection: close\r\n"


class RowConnection(AccountedConnection):
    """aiohttp's connection, which answers requests that `RowRequests` recognises."""

    __slots__ = ("_routes",)

    def __init__(self, manager: Any, routes: ModelRoutes, **options: Any) -> None:
        super().__init__(manager, **options)
        self._routes = routes
        self._pending: QueuedRequest | None = None

    def data_received(self, data: bytes) -> None:
        if self._pending is not None:
            self._hold_back(data)
        elif not self._between_requests():
            self._hand_over(data)
        elif not self._take(data):
            self._begin(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._pending is not None:  # its place in the queue is given back
            self._routes.drop(self._pending)
        super().connection_lost(exc)

    def _between_requests(self) -> bool:
        """Whether the last request is answered, every byte of it accounted for, and the connection can be written."""
        accounted = self._idle and self._fed == self._whole and not self._messages
        return accounted and not (self._paused or self._close or self._force_close)

    def _take(self, data: bytes) -> bool:
        """Whether the bytes are a request that is answered here."""
        if self.draining:
            return False
        started = time.perf_counter()
        asked = self._routes.row_asked(data)
        if asked is None:
            return False
        self._request_count += 1
        self._manager.requests_count += 1  # type: ignore[union-attr]
        try:
            pending, digest = self._routes.begin_row(asked)
        except ForeseenError as error:
            self._write(self._routes.failed_row(error, started))
            return True
        self._pending = pending
        pending.future.add_done_callback(partial(self._computed, asked, digest, started))
        return True

    def _computed(
        self, asked: RowAsked, digest: str, started: float, future: asyncio.Future[list[Computed]]
    ) -> None:  # fmt: skip
        """The row has its answer, or an error."""
        self._pending = None
        if self.transport is not None and not future.cancelled():
            self._write(self._routes.end_row(asked, digest, future, started))
        self._go_on()

    def _write(self, reply: bytes) -> None:
        assert self.transport is not None
        last = self.draining and not self._back  # what was pipelined behind it is answered before
        self.transport.write(reply.replace(b"\r\n", CLOSE, 1) if last else reply)
        if last:
            self.force_close()
            return
        close_at = self._loop.time() + self._keepalive_timeout
        self._next_keepalive_close_time = close_at
        if self._keepalive_handle is None:  # aiohttp sets it after a request of its own
            self._keepalive_handle = self._loop.call_at(close_at, self._process_keepalive)
