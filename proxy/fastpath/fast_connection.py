"""A connection's bytes → answers. Where the head of a request is known, byte by byte, aiohttp is not asked:

    a whole request that came before    its reply from the answer cache
    a known head and its body           answered without aiohttp's request, task and response objects
    everything else                     aiohttp, untouched

The first two are taken only between requests: the last one is answered, every byte that came is accounted for, and the
bytes at hand are one whole request and no more. While a request is under way here, what arrives is held back, with the
socket's reading paused, and taken up in order afterwards. So each byte is read once, in order, by aiohttp or here.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web
from msgspec import structs

from foreseen.errors import Overloaded
from foreseen.proxy.fastpath.known_heads import KnownHeads, may_be_learned
from foreseen.proxy.fastpath.responder import Responder
from foreseen.proxy.predict.answer_cache import MAX_REQUEST_BYTES, Lookup
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.pending_request import PendingRequest
from foreseen.proxy.predict.response_bytes import Reply, reply_head
from foreseen.web.accounted_connection import AccountedConnection
from foreseen.web.bodies import FREE_BYTES, Bodies, Charge
from foreseen.web.caller import Caller, address_in, peer_of

HOLD_SECONDS = 0.25
"""How long a known head waits for its body here before aiohttp gets it, which knows how to refuse a slow one."""
HELD_BYTES = 16 * 2**20
"""A longer request is aiohttp's: it is in no memory of known bodies, and held in pieces it would be copied."""
APART_BYTES = 64 * 1024
"""A longer body is not copied behind its head."""
CLOSE = "Connection: close\r\n"


class FastConnection(AccountedConnection):
    """aiohttp's connection, which answers recognised requests itself."""

    __slots__ = (
        "_bodies", "_charge", "_have", "_heads", "_held", "_holding", "_hops", "_peer", "_place", "_responder",
        "_wanted",
    )  # fmt: skip

    def __init__(
        self, manager: Any, responder: Responder, heads: KnownHeads, bodies: Bodies | None = None, **options: Any
    ) -> None:
        super().__init__(manager, **options)
        self._bodies = bodies
        self._charge: Charge | None = None
        self._responder = responder
        self._heads = heads
        self._peer: str | None = None
        self._hops = 0
        self._held: list[bytes] = []
        self._have = self._wanted = 0
        self._holding: asyncio.TimerHandle | None = None
        self._pending: PendingRequest | None = None
        self._place = b""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if self.subject is not None:
            self._place = b"\0%b\0" % self.subject.encode()  # no head begins so

    def data_received(self, data: bytes) -> None:
        if self._pending is not None:
            self._hold_back(data)
        elif self._wanted:
            self._held.append(data)
            self._have += len(data)
            if not self._has_room(len(data)):
                self._release()
            elif self._have >= self._wanted:
                self._whole_request()
        elif self._between_requests():
            self._take(data)
        else:
            self._hand_over(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._let_go()
        self._discharge()
        super().connection_lost(exc)

    @property
    def between_requests(self) -> bool:
        return not self._wanted and super().between_requests

    def learn(self, request: web.Request, head: RequestHead, reply: Reply) -> None:
        """What aiohttp's reading of a request's head was; called by handlers once it is answered."""
        if self._account_for(request) and reply.status == 200 and request.content_length and may_be_learned(request):
            self._heads.learn(self._head, head, self._place)

    def _between_requests(self) -> bool:
        """Whether the last request is answered, every byte of it accounted for, and the connection can be written."""
        return (
            self._idle
            and self._fed == self._whole
            and not self._messages
            and not self._paused
            and not self._close
            and not self._force_close
            and self._request_count < self._most
            and (self.bucket is None or not self.bucket.wait())  # aiohttp's handlers count a refusal
        )

    def _take(self, data: bytes) -> None:
        """Bytes that begin a request."""
        short, caller = len(data) <= MAX_REQUEST_BYTES, self._caller(data)
        if self._hops and not self._may_ask(caller):
            self._begin(data)
            return
        raw = self._place + data if self._place else data
        if short and type(reply := self._responder.repeat(raw, caller)) is bytes:
            self._admitted(caller)
            self._write(reply)
            return
        known = self._heads.of(data, self._place)
        if known is None or len(data) > known.whole or known.whole > HELD_BYTES:
            self._begin(data)
        elif len(data) < known.whole:
            self._held, self._have, self._wanted = [data], len(data), known.whole
            if self._bodies is not None and known.whole > FREE_BYTES:
                self._charge = Charge(self._bodies)
                if not self._has_room(len(data)):
                    self._release()
                    return
            self._holding = self._loop.call_later(HOLD_SECONDS, self._release)
        else:
            caller = Caller(caller.address, data[: known.head])
            head = structs.replace(known.ask, caller=caller)
            self._answer(head, data[known.head :], raw if short and known.again else None)

    def _whole_request(self) -> None:
        """The body that a known head waited for is here."""
        wanted, held = self._wanted, self._held
        self._let_go()
        if wanted <= MAX_REQUEST_BYTES:
            self._take(b"".join(held))
            return
        known = self._heads.of(held[0], self._place)
        if known is None or sum(map(len, held)) != known.whole:
            self._begin(b"".join(held))
            return
        caller = self._caller(held[0][: known.head])
        head = structs.replace(known.ask, caller=caller)
        held[0] = held[0][known.head :]
        lookup = self._responder.find_large(head, held, known.whole - known.head)
        self._answer(head, b"".join(held) if lookup is None else lookup.text, None, lookup)

    def _caller(self, head: bytes) -> Caller:
        """The caller of the request that begins with these bytes."""
        if self._peer is None:
            self._peer, self._hops = peer_of(self.transport), self.forwarded_hops
        return Caller(address_in(head, self._peer, self._hops) if self._hops else self._peer, head)

    def _may_ask(self, caller: Caller) -> bool:
        """Whether a caller behind a trusted proxy may send a request now; aiohttp's handlers count a refusal."""
        bucket = self.bucket_of(caller)
        return bucket is None or not bucket.wait()

    def _answer(self, head: RequestHead, body: bytes, raw: bytes | None, lookup: Lookup | None = None) -> None:
        """A whole request with a known head: its reply now, or when what it waits for is here."""
        assert head.caller is not None
        self._admitted(head.caller)
        self._manager.requests_count += 1  # type: ignore[union-attr]
        reply = self._responder.begin(head, body, self._answered, raw, lookup)
        if type(reply) is bytes:
            self._discharge()
            self._write(reply)
        elif type(reply) is Reply:
            self._send(reply)
        else:
            self._pending = reply  # type: ignore[assignment] # narrowed above, at a tenth of the price of isinstance

    def _answered(self, reply: Reply) -> None:
        """The request that was pending has its reply."""
        self._pending = None
        if self.transport is not None:
            self._send(reply)
        self._go_on()

    def _admitted(self, caller: Caller) -> None:
        """One more request of this connection and its caller, as handlers and aiohttp count those that they see."""
        self._request_count += 1
        bucket = self.bucket_of(caller) if self._hops else self.bucket
        if bucket is not None:
            bucket.take()

    def _send(self, reply: Reply) -> None:
        if self._charge is not None:
            self._discharge()
        lines, body = reply.lines, reply.body
        last = self.draining and not self._back  # what was pipelined behind it is answered before
        if last:
            lines += CLOSE
        head = reply_head(reply.status, lines, len(body))
        if len(body) > APART_BYTES:
            self._write(head)
            self._write(body)
        else:
            self._write(head + body)
        if last or (reply.status != 200 and CLOSE in lines):
            self.force_close()

    def _write(self, reply: bytes) -> None:
        assert self.transport is not None
        self.transport.write(reply)
        close_at = self._loop.time() + self._keepalive_timeout
        self._next_keepalive_close_time = close_at
        if self._keepalive_handle is None:  # aiohttp sets it after a request of its own
            self._keepalive_handle = self._loop.call_at(close_at, self._process_keepalive)

    def _has_room(self, more: int) -> bool:
        """Whether a large body may be held here. aiohttp gets it where it may not, and refuses it if it must."""
        try:
            if self._charge is not None:
                self._charge.grow(more)
        except Overloaded:
            return False
        return True

    def _discharge(self) -> None:
        if self._charge is not None:
            self._charge.release()
            self._charge = None

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
        self._discharge()
        super()._begin(data)
