"""A recognised request → the kept reply, before any parsing: the shortest road of a hit.

On a connection that is between requests (`connection.py`), bytes that equal what has been accepted before as exactly
one request, and that was answered from near, get the kept reply with `Date`, `Age` and `Cache-Status` of this second.
Recognition by equality needs no second parser, so there is nothing to smuggle past: a request is kept only if aiohttp's
own reading of it, or of one with the same head, accounts for every byte that the connection carried. The kept bytes are
found by their hash and proved by comparing them: they are keys of a dict.

A reply is as good as the near entries behind it. They are looked up at every replay, by their full identities, and must
be the very predictions that the reply was made of, alive, in the space that is in force: an entry, digest or generation
that is gone takes the reply with it. `Cache-Control`, `Authorization`, `traceparent` and what else makes a request more
than its bytes are not kept.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from email.utils import formatdate

from foreseen.nouns import Key, Prediction
from proxy.near import Near

MAX_REQUEST_BYTES = 32 * 1024
"""A longer request takes the normal road; what it saves there is small beside what it costs to carry."""
MAX_ROWS = 64
OVERHEAD_BYTES = 800
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
        while self.bytes > self.capacity_bytes:
            self.forget(next(iter(self._kept)))

    def close(self) -> None:
        """Replay nothing any more: a worker that is about to end has to say so with every answer."""
        self.capacity_bytes = 0
        for request in list(self._kept):
            self.forget(request)

    def forget(self, request: bytes) -> None:
        kept = self._kept.pop(request, None)
        if kept is None:
            return
        self.bytes -= kept.size + 2 * len(request)
