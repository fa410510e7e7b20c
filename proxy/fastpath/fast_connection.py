"""A connection's bytes → answers, by the shortest road that they are known to be good for.

    replay   the bytes of a whole request that was answered from near before        `replay.py`
    road     a known head and its body: answered without aiohttp's request, task and response objects   `heads.py`
    aiohttp  everything else, untouched

The first two are taken only between requests: the last one is answered, every byte that came is accounted for, and the
bytes at hand are one whole request and no more. While a request is under way here, what arrives is held back, with the
socket's reading paused, and taken up in order afterwards. So each byte is read by one party, once, in order.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web
from msgspec import structs

from foreseen.proxy.fastpath.fast_path import FastPath, PendingReply
from foreseen.proxy.fastpath.known_heads import END_OF_HEAD, KnownHeads, is_traced, may_be_learned
from foreseen.proxy.fastpath.responder import RenderedReply
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.replay import MAX_REQUEST_BYTES
from foreseen.proxy.predict.response_bytes import reply_head
from foreseen.proxy.predict.shortcut import Found
from foreseen.web.caller import Caller, peer_of
from foreseen.web.connection import Connection

HOLD_SECONDS = 0.25
"""How long a known head waits for its body here before aiohttp gets it, which knows how to refuse a slow one."""
APART_BYTES = 64 * 1024
"""A longer body is not copied behind its head."""


class ShortConnection(Connection):
    """aiohttp's connection, which answers recognised requests itself.

    `_fed` is how many bytes aiohttp got since the connection was last between requests, `_copy` those bytes while they
    are few, `_head` the head among them once it is whole; `_whole` is how many of them are accounted for as one
    request, `_idle` whether its answer is sent and aiohttp means to go on. Idle and with equal lengths it is between
    requests again. (aiohttp's own waiting for the next request begins a turn of the event loop later, and by then the
    next may be here.) A connection that carried something else, pipelining, chunks or an upgrade, stays aiohttp's.
    """

    __slots__ = (
        "_back", "_copy", "_done", "_edge", "_fed", "_have", "_head", "_heads", "_held", "_holding", "_idle",
        "_peer", "_road", "_under_way", "_wanted", "_whole",
    )  # fmt: skip

    def __init__(self, manager: Any, road: FastPath, heads: KnownHeads, **options: Any) -> None:
        super().__init__(manager, **options)
        self._road = road
        self._edge = road.edge
        self._heads = heads
        self._idle = True
        self._peer: str | None = None
        self._fed = self._whole = 0
        self._copy: bytes | None = b""
        self._head = b""
        self._held: list[bytes] = []
        self._have = self._wanted = 0
        self._holding: asyncio.TimerHandle | None = None
        self._under_way: PendingReply | None = None
        self._back: list[bytes] = []
        self._done: asyncio.Future[None] | None = None

    def data_received(self, data: bytes) -> None:
        if self._under_way is not None:
            self._hold_back(data)
        elif self._wanted:
            self._held.append(data)
            self._have += len(data)
            if self._have >= self._wanted:
                self._whole_request()
        elif self._between_requests():
            self._take(data)
        else:
            self._hand_over(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._let_go()
        self._back.clear()
        super().connection_lost(exc)

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 - aiohttp names it
        """aiohttp's, once a request that is under way here is answered."""
        if self._under_way is not None:
            self._done = self._loop.create_future()
            await asyncio.wait([self._done], timeout=timeout)
        await super().shutdown(timeout)

    @property
    def between_requests(self) -> bool:
        return self._under_way is None and not self._wanted and super().between_requests

    def learn(self, request: web.Request, ask: RequestHead, told: RenderedReply) -> None:
        """What aiohttp's reading of a request was; called by handlers once it is answered."""
        if not self._account_for(request) or told.reply is None or not may_be_learned(request):
            return
        if request.content_length:
            self._heads.learn(self._head, ask)
        if self._copy is not None and not is_traced(self._head):
            self._edge.remember(ask, self._copy, told.reply)

    async def finish_response(self, request: Any, resp: Any, start_time: float | None) -> Any:
        """Every request is accounted for before its answer goes, so that its connection is between requests after."""
        self._account_for(request)
        answered = await super().finish_response(request, resp, start_time)
        self._idle = bool(resp.keep_alive)
        return answered

    def _account_for(self, request: web.Request) -> bool:
        """Whether aiohttp's reading of a request, head and Content-Length, accounts for every byte that came."""
        if request.version != (1, 1) or "Transfer-Encoding" in request.headers or "Upgrade" in request.headers:
            return False
        if not self._head or self._fed != len(self._head) + (request.content_length or 0):
            return False
        self._whole = self._fed
        return True

    def _between_requests(self) -> bool:
        """Whether the last request is answered, every byte of it accounted for, and the connection can be written."""
        return (
            self._idle
            and self._fed == self._whole
            and not self._messages
            and not self._paused
            and not self._close
            and not self._force_close
            and self.may_go_on()
            and (self.bucket is None or not self.bucket.wait())  # aiohttp's road tells who is refused
        )

    def _take(self, data: bytes) -> None:
        """Bytes that begin a request: the shortest road that they are good for."""
        short = len(data) <= MAX_REQUEST_BYTES
        if short and (reply := self._edge.replayed(data, self._caller(data))) is not None:
            self._admitted()
            self._write(reply)
            return
        known = self._heads.of(data)
        if known is None or len(data) > known.whole:
            self._begin(data)
        elif len(data) < known.whole:
            self._held, self._have, self._wanted = [data], len(data), known.whole
            self._holding = self._loop.call_later(HOLD_SECONDS, self._release)
        else:
            ask = structs.replace(known.ask, caller=self._caller(data[: known.head]))
            self._answer(ask, data[known.head :], data if short and known.again else None)

    def _whole_request(self) -> None:
        """The body that a known head waited for is here."""
        wanted, held = self._wanted, self._held
        self._let_go()
        if wanted <= MAX_REQUEST_BYTES:
            self._take(b"".join(held))
            return
        known = self._heads.of(held[0])
        if known is None or sum(map(len, held)) != known.whole:
            self._begin(b"".join(held))
            return
        ask = structs.replace(known.ask, caller=self._caller(held[0][: known.head]))
        held[0] = held[0][known.head :]
        found = self._edge.find_whole(ask, held, known.whole - known.head)
        self._answer(ask, b"".join(held) if found is None else found.text, None, found)

    def _caller(self, head: bytes) -> Caller:
        """Who sends the request that begins with these bytes."""
        if self._peer is None:
            self._peer = peer_of(self.transport)
        return Caller(self._peer, head, self.forwarded_hops)

    def _answer(self, ask: RequestHead, body: bytes, raw: bytes | None, found: Found | None = None) -> None:
        """A whole request, recognised: its answer now, or when what it waits for is here."""
        self._admitted()
        self._manager.requests_count += 1  # type: ignore[union-attr]
        told = self._road.set_out(ask, body, raw, self._answered, found)
        if isinstance(told, PendingReply):
            self._under_way = told
        else:
            self._send(told)

    def _answered(self, told: bytes | RenderedReply) -> None:
        """The request that was under way has its answer."""
        self._under_way = None
        if self.transport is not None:
            self._send(told)
        if self._done is not None:
            self._done.set_result(None)
        elif self._back and self.transport is not None:
            data = b"".join(self._back)
            self._back.clear()
            self.transport.resume_reading()
            self.data_received(data)

    def _admitted(self) -> None:
        """One more request of this connection and its caller, as handlers and aiohttp count those that they see."""
        self._request_count += 1
        if self.bucket is not None:
            self.bucket.take()

    def _send(self, told: bytes | RenderedReply) -> None:
        last = self.draining and not self._back  # what was pipelined behind it is answered before
        if isinstance(told, bytes):
            self._write(told.replace(b"\r\nDate: ", b"\r\nConnection: close\r\nDate: ", 1) if last else told)
            if last:
                self.force_close()
            return
        if last:
            told = told._replace(headers=[*told.headers, ("Connection", "close")])
        head, body = reply_head(told.status, told.headers, len(told.body)), told.body
        if len(body) > APART_BYTES:
            self._write(head)
            self._write(body)
        else:
            self._write(head + body)
        if last or (told.status != 200 and ("Connection", "close") in told.headers):
            self.force_close()

    def _write(self, reply: bytes) -> None:
        assert self.transport is not None
        self.transport.write(reply)
        close_at = self._loop.time() + self._keepalive_timeout
        self._next_keepalive_close_time = close_at
        if self._keepalive_handle is None:  # aiohttp sets it after a request of its own
            self._keepalive_handle = self._loop.call_at(close_at, self._process_keepalive)

    def _process_keepalive(self) -> None:
        if self._under_way is not None:  # aiohttp knows nothing of it and takes the connection for idle
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        super()._process_keepalive()

    def _hold_back(self, data: bytes) -> None:
        """What comes while a request is under way: one piece, and the socket's own buffer."""
        self._back.append(data)
        if len(self._back) == 1 and self.transport is not None:
            self.transport.pause_reading()

    def _let_go(self) -> None:
        if self._holding is not None:
            self._holding.cancel()
            self._holding = None
        self._held, self._have, self._wanted = [], 0, 0

    def _release(self) -> None:
        """The body did not come in time: aiohttp gets what there is, as it came."""
        held = self._held
        self._let_go()
        self._begin(b"".join(held))

    def _begin(self, data: bytes) -> None:
        """aiohttp gets bytes that begin a request."""
        self._fed = self._whole = 0
        self._copy, self._head = b"", b""
        self._hand_over(data)

    def _hand_over(self, data: bytes) -> None:
        self._idle = False
        self._fed += len(data)
        if self._copy is not None:
            copy = self._copy + data
            if not self._head:
                end = copy.find(END_OF_HEAD)
                self._head = copy[: end + len(END_OF_HEAD)] if end >= 0 else b""
            self._copy = copy if len(copy) <= MAX_REQUEST_BYTES else None
        super().data_received(data)
