"""A recognised request → the kept reply, before any parsing: the shortest road of a hit.

On a connection that is between requests, bytes that equal what aiohttp has accepted before as exactly one request, and
that was answered from near, get the kept reply with `Date`, `Age` and `Cache-Status` of this second. In every other
case the untouched bytes go to aiohttp. Recognition by equality needs no second parser, so there is nothing to smuggle
past: a request is kept only if aiohttp's own reading of it, head and `Content-Length`, accounts for every byte that the
connection carried. The kept bytes are found by their hash and proved by comparing them: they are keys of a dict.

A reply is as good as the near entries behind it. They are looked up at every replay, by their full identities, and must
be the very predictions that the reply was made of, alive, in the space that is in force: an entry, digest or generation
that is gone takes the reply with it. `Cache-Control`, `Authorization`, `traceparent` and what else makes a request more
than its bytes are not kept.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from email.utils import formatdate
from typing import Any

from aiohttp import web

from foreseen.http import Connection
from foreseen.nouns import Key, Prediction
from proxy.near import Near

MAX_REQUEST_BYTES = 32 * 1024
"""A longer request takes the normal road; what it saves there is small beside what it costs to carry."""
MAX_ROWS = 64
HOLD_SECONDS = 0.05
"""How long a known head waits for its body before aiohttp gets it."""
END_OF_HEAD = b"\r\n\r\n"
OVERHEAD_BYTES = 800
MORE_THAN_BYTES = frozenset(
    (
        "Authorization", "Cache-Control", "Connection", "Cookie", "Expect", "Pragma", "Prefer", "Request-Timeout",
        "Transfer-Encoding", "Upgrade", "Via", "traceparent",
    )
)  # fmt: skip
"""Headers that decide about more than the reply's bytes, now or later."""

Count = Callable[[float], None]


class Kept:
    """One request's reply, and what it stands on. `alive` says whether the space in force is still the reply's own."""

    __slots__ = ("alive", "body", "count", "head", "made_at", "reply", "rows", "second", "size", "timing", "until")

    def __init__(
        self,
        rows: Sequence[tuple[Key, Prediction]],
        until: float,
        head: Sequence[tuple[str, str]],
        body: bytes,
        alive: Callable[[], bool],
        count: Count,
        *,
        timing: bool = True,
    ) -> None:
        self.rows = tuple(rows)
        self.until = until
        """Unix seconds up to which every row is fresh."""
        self.made_at = min(prediction.made_at for _, prediction in rows)
        self.head = "".join(f"{name}: {value}\r\n" for name, value in head)
        """The headers that do not change with time."""
        self.timing = "Server-Timing: replay\r\n" if timing else ""
        self.body = body
        self.alive = alive
        self.count = count
        """Told the seconds that a replay took."""
        self.second = -1
        self.reply = b""
        self.size = OVERHEAD_BYTES + 2 * len(body) + 150 * len(rows)

    def at(self, now: float) -> bytes:
        """The reply with the time's own headers; made once a second."""
        second = int(now)
        if second != self.second:
            left, age = int(self.until - now), max(0, int(now - self.made_at))
            lines = (
                f"HTTP/1.1 200 OK\r\n{self.head}"
                f"Cache-Status: foreseen;hit;ttl={left};detail=near\r\nAge: {age}\r\n{self.timing}"
                f"Content-Length: {len(self.body)}\r\nDate: {formatdate(now, usegmt=True)}\r\n\r\n"
            )
            self.reply = lines.encode("ascii") + self.body
            self.second = second
        return self.reply


class Memory:
    """The kept replies of one proxy process, bounded in bytes; a request is kept when it is a near hit for the second
    time, so that requests which never come again cost a hint each and no more."""

    MAX_HINTS = 16_384

    def __init__(self, near: Near, capacity_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self.capacity_bytes = capacity_bytes
        self.bytes = 0
        self._near = near
        self._clock = clock
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self._heads: dict[bytes, tuple[int, int]] = {}
        self._hints: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def reply(self, request: bytes) -> bytes | None:
        """The reply to these bytes, if they are a kept request and all that it stands on is as it was."""
        kept = self._kept.get(request)
        if kept is None:
            return None
        started = time.perf_counter()
        now = self._clock()
        if now >= kept.until or not kept.alive() or not self._stands(kept):
            self.forget(request)
            return None
        reply = kept.at(now)
        kept.count(time.perf_counter() - started)
        return reply

    def _stands(self, kept: Kept) -> bool:
        """Whether near still has every very prediction; asking counts as a look, so what is replayed stays in near."""
        get = self._near.get
        return all(get(key) is prediction for key, prediction in kept.rows)

    def worth_keeping(self, request: bytes) -> bool:
        """Whether this is at least the second near hit of these bytes; remembers the first as a hint."""
        hint = hash(request)
        if request in self._kept or self.capacity_bytes <= 0:
            return False
        if hint in self._hints:
            return True
        self._hints[hint] = None
        if len(self._hints) > self.MAX_HINTS:
            self._hints.popitem(last=False)
        return False

    def keep(self, request: bytes, kept: Kept) -> None:
        """Remember a reply; the oldest go where it does not fit."""
        size = kept.size + 2 * len(request)
        if size > self.capacity_bytes:
            return
        self.forget(request)
        self._kept[request] = kept
        self.bytes += size
        if head := _head_of(request):
            self._heads[head] = (self._heads.get(head, (0, 0))[0] + 1, len(request))
        while self.bytes > self.capacity_bytes:
            self.forget(next(iter(self._kept)))

    def forget(self, request: bytes) -> None:
        kept = self._kept.pop(request, None)
        if kept is None:
            return
        self.bytes -= kept.size + 2 * len(request)
        if head := _head_of(request):
            count, length = self._heads.pop(head)
            if count > 1:
                self._heads[head] = (count - 1, length)

    def length_of(self, data: bytes) -> int:
        """How long the kept requests are that begin with the head that these bytes begin with (it holds their
        Content-Length); 0 where there is none."""
        known = self._heads.get(data[: data.find(END_OF_HEAD) + len(END_OF_HEAD)])
        return 0 if known is None else known[1]


class ReplayConnection(Connection):
    """A connection that answers recognised requests itself.

    `_fed` are the bytes that aiohttp got since the connection was last between requests, `_whole` how many of them are
    accounted for as one request, `_idle` whether its answer is sent and aiohttp means to go on. Idle and with equal
    lengths it is between requests again. (aiohttp's own waiting for the next request begins a turn of the event loop
    later, and by then the next may be here.) A connection that carried something else, pipelining, chunks or an
    upgrade, takes the normal road from then on.
    """

    __slots__ = ("_fed", "_held", "_holding", "_idle", "_memory", "_wanted", "_whole")

    def __init__(self, manager: Any, memory: Memory, **options: Any) -> None:
        super().__init__(manager, **options)
        self._memory = memory
        self._idle = True
        self._fed: bytes | None = b""
        self._whole = 0
        self._held = b""
        self._wanted = 0
        self._holding: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        if self._holding is not None:
            data = self._held + data
            if len(data) < self._wanted:
                self._held = data
                return
            self._holding.cancel()
            self._holding, self._held = None, b""
        if self._between_requests():
            reply = self._memory.reply(data)
            if reply is not None:
                self._replay(reply)
                return
            self._wanted = self._memory.length_of(data)
            if self._wanted > len(data):
                self._held = data
                self._holding = self._loop.call_later(HOLD_SECONDS, self._release)
                return
            self._fed, self._whole = b"", 0
        self._hand_over(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._holding is not None:
            self._holding.cancel()
            self._holding = None
        super().connection_lost(exc)

    def account_for(self, request: web.Request) -> bytes | None:
        """The request's own bytes, where aiohttp's reading of it accounts for all that came; called by handlers once
        the body is read."""
        fed = self._fed
        if fed is None or request.version != (1, 1) or "Transfer-Encoding" in request.headers:
            return None
        end = fed.find(END_OF_HEAD)
        if end < 0 or len(fed) != end + len(END_OF_HEAD) + (request.content_length or 0):
            return None
        if "Upgrade" in request.headers:
            return None
        self._whole = len(fed)
        return fed

    async def finish_response(self, request: Any, resp: Any, start_time: float | None) -> Any:
        """Every request is accounted for before its answer goes, so that its connection is between requests after."""
        self.account_for(request)
        answered = await super().finish_response(request, resp, start_time)
        self._idle = bool(resp.keep_alive)
        return answered

    def _between_requests(self) -> bool:
        """Whether the last request is answered, every byte of it accounted for, and the connection can be written."""
        return (
            self._idle
            and self._fed is not None
            and len(self._fed) == self._whole
            and not self._messages
            and not self._paused
            and not self._close
            and not self._force_close
        )

    def _replay(self, reply: bytes) -> None:
        assert self.transport is not None
        self.transport.write(reply)
        self._manager.requests_count += 1  # type: ignore[union-attr]
        close_at = self._loop.time() + self._keepalive_timeout
        self._next_keepalive_close_time = close_at
        if self._keepalive_handle is None:  # aiohttp sets it after a request of its own
            self._keepalive_handle = self._loop.call_at(close_at, self._process_keepalive)

    def _release(self) -> None:
        """The body did not come in time: aiohttp gets the head, as it came."""
        self._holding = None
        data, self._held = self._held, b""
        self._fed, self._whole = b"", 0
        self._hand_over(data)

    def _hand_over(self, data: bytes) -> None:
        self._idle = False
        if self._fed is not None:
            self._fed = self._fed + data if len(self._fed) + len(data) <= MAX_REQUEST_BYTES else None
        super().data_received(data)


def may_be_kept(request: web.Request) -> bool:
    """Whether a request is no more than its bytes: nothing in its headers decides about later ones."""
    return not any(name in request.headers for name in MORE_THAN_BYTES)


def _head_of(request: bytes) -> bytes:
    end = request.find(END_OF_HEAD) + len(END_OF_HEAD)
    return request[:end] if end < len(request) else b""
