"""aiohttp's connection, for subclasses that answer some requests without aiohttp: which bytes are whose.

A subclass may take bytes only between requests: the last one is answered, and every byte that came is accounted for as
a request's head and body, as aiohttp has read them. So each byte is read once, in order, by aiohttp or by the subclass.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from foreseen.web.connection import Connection

END_OF_HEAD = b"\r\n\r\n"
START_BYTES = 32 * 1024
"""Where a head has to end by, for its connection to be between requests again."""


class AccountedConnection(Connection):
    """`_fed` is how many bytes aiohttp got since the connection was last between requests, `_start` the first of them,
    `_head` the head among them once it is whole; `_whole` is how many of them are accounted for as one request, `_idle`
    whether its answer is sent and aiohttp means to go on. Idle and with equal lengths it is between requests again.
    (aiohttp's own waiting for the next request begins a turn of the event loop later, and by then the next may be
    here.) A connection that carried something else, pipelining, chunks or an upgrade, stays aiohttp's.

    `_pending` is the request that the subclass answers now. What comes behind it waits: one piece in `_back`, the rest
    in the socket."""

    __slots__ = ("_back", "_done", "_fed", "_head", "_idle", "_pending", "_start", "_whole")

    def __init__(self, manager: Any, **options: Any) -> None:
        super().__init__(manager, **options)
        self._idle = True
        self._fed = self._whole = 0
        self._head = self._start = b""
        self._pending: Any = None
        self._back: list[bytes] = []
        self._done: asyncio.Future[None] | None = None

    def connection_lost(self, exc: BaseException | None) -> None:
        self._back.clear()
        super().connection_lost(exc)

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 - aiohttp names it
        """aiohttp's, once a request that is under way here is answered."""
        if self._pending is not None:
            self._done = self._loop.create_future()
            await asyncio.wait([self._done], timeout=timeout)
        await super().shutdown(timeout)

    @property
    def between_requests(self) -> bool:
        return self._pending is None and super().between_requests

    async def finish_response(self, request: Any, resp: Any, start_time: float | None) -> Any:
        """Every request is accounted for before its answer goes, so that its connection is between requests after."""
        self._account_for(request)
        answered = await super().finish_response(request, resp, start_time)
        self._idle = bool(resp.keep_alive)
        return answered

    def is_followed(self, request: web.BaseRequest) -> bool:
        """Whether bytes came that are not this request's, as far as its head and Content-Length say."""
        if "Transfer-Encoding" in request.headers or not self._head:
            return True
        return self._fed != len(self._head) + (request.content_length or 0)

    def _account_for(self, request: web.Request) -> bool:
        """Whether aiohttp's reading of a request, head and Content-Length, accounts for every byte that came."""
        if request.version != (1, 1) or self.is_followed(request):
            return False
        self._whole = self._fed
        return True

    def _hold_back(self, data: bytes) -> None:
        """What comes while a request is under way."""
        self._back.append(data)
        if len(self._back) == 1 and self.transport is not None:
            self.transport.pause_reading()

    def _go_on(self) -> None:
        """The request that was under way is answered: with what came behind it, if this connection does not end."""
        if self._done is not None:
            self._done.set_result(None)
        elif self._back and self.transport is not None:
            data = b"".join(self._back)
            self._back.clear()
            self.transport.resume_reading()
            self.data_received(data)

    def _process_keepalive(self) -> None:
        if self._pending is not None:  # aiohttp knows nothing of it and takes the connection for idle
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        super()._process_keepalive()

    def _begin(self, data: bytes) -> None:
        """aiohttp gets bytes that begin a request."""
        self._fed = self._whole = 0
        self._head = self._start = b""
        self._hand_over(data)

    def _hand_over(self, data: bytes) -> None:
        """aiohttp gets the next bytes."""
        self._idle = False
        self._fed += len(data)
        if not self._head and len(self._start) < START_BYTES:
            self._start += data[:START_BYTES]
            end = self._start.find(END_OF_HEAD)
            self._head = self._start[: end + len(END_OF_HEAD)] if end >= 0 else b""
        super().data_received(data)
