"""A recognised request → the kept reply, before any parsing: the shortest road of a hit.

On a connection that is between requests (`connection.py`), bytes that equal what has been accepted before as exactly
one request, and that was answered from near, get the kept reply with `Date`, `Age` and `Cache-Status` of this second.
Recognition by equality needs no second parser, so there is nothing to smuggle past: a request is kept only if aiohttp's
own reading of it, or of one with the same head, accounts for every byte that the connection carried. The kept bytes are
found by XXH3 and proved by comparing them.

A reply is as good as the near entries behind it. They are looked up at every replay, by their full identities, and must
be the very predictions that the reply was made of, alive, in the space that is in force: an entry, digest or generation
that is gone takes the reply with it. `Cache-Control`, `Authorization` and what else makes a request more than its
bytes are not kept, nor what names a request or its trace and so never comes again.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from xxhash import xxh3_64_intdigest

from foreseen.proxy.cache.near import Near
from foreseen.proxy.predict.response_bytes import date, hit_start, id_member
from foreseen.types import Key, Prediction

MAX_REQUEST_BYTES = 32 * 1024
"""A longer request takes the normal road; what it saves there is small beside what it costs to carry."""
MAX_ROWS = 256
OVERHEAD_BYTES = 800
REPLAY, SHORTCUT = "replay", "shortcut"
"""What `Server-Timing` says of a kept reply."""


class Kept:
    """One reply, and what it stands on: the very predictions that near had under these keys, in the space in force."""

    __slots__ = (
        "after", "alive", "before", "count", "length", "made_at", "middle", "reply", "rows", "second", "size", "tail",
        "timing", "until",
    )  # fmt: skip

    def __init__(
        self,
        rows: Sequence[tuple[Key, Prediction]],
        body: tuple[bytes, bytes],
        length: int | None,
        alive: Callable[[], bool],
        count: Callable[[float, str | None], None],
        timing: str | None = REPLAY,
    ) -> None:
        """`body` in two parts: the request's id goes between them where it is given. `length` is that of its JSON
        part where tensors follow."""
        self.rows = tuple(rows)
        self.until = min(prediction.expires_at for _, prediction in rows)
        """Unix seconds up to which every row is fresh."""
        self.made_at = min(prediction.made_at for _, prediction in rows)
        self.length = length
        self.timing = f"Server-Timing: {timing}\r\n" if timing else ""
        self.before, self.after = body
        self.alive = alive
        """Whether the space in force is still the reply's own."""
        self.count = count
        """Told the seconds that it took, and the trace that it belongs to."""
        self.second = -1
        self.reply = self.middle = self.tail = b""
        self.size = OVERHEAD_BYTES + 2 * len(self.before + self.after) + 150 * len(rows)

    def as_replay(self) -> Kept:
        """The same for a request that is recognised before its body is looked at."""
        body = (self.before + self.after, b"")
        return Kept(self.rows, body, self.length, self.alive, self.count, REPLAY if self.timing else None)

    def stands(self, near: Near, now: float) -> bool:
        """Whether near still has every very prediction, all fresh; asking counts as a look, so they stay in near."""
        if now >= self.until or not self.alive():
            return False
        get = near.get
        for key, prediction in self.rows:  # noqa: SIM110 - a generator costs as much as the look
            if get(key) is not prediction:
                return False
        return True

    def at(self, now: float, own: bytes | None = None) -> bytes:
        """The reply to a request whose id was `own`, with the time's own headers, which are made once a second."""
        second = int(now)
        if second != self.second:
            left, age = int(self.until - now), max(0, int(now - self.made_at))
            self.middle = (
                f"Cache-Status: foreseen;hit;ttl={left};detail=near\r\nAge: {age}\r\n{self.timing}Content-Length: "
            ).encode()
            self.tail = b"\r\nDate: %b\r\n\r\n%b" % (date(), self.before)
            self.reply = self._made(b"")
            self.second = second
        return self.reply if own is None else self._made(id_member(own))

    def _made(self, member: bytes) -> bytes:
        length = len(self.before) + len(member) + len(self.after)
        start = hit_start(self.length and self.length + len(member))
        return b"%b%b%d%b%b%b" % (start, self.middle, length, self.tail, member, self.after)


class Memory:
    """The kept replies of one proxy process, bounded in bytes; a request is kept when it is a near hit for the second
    time, so that requests which never come again cost a hint each and no more."""

    MAX_HINTS = 16_384

    def __init__(self, near: Near, capacity_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self.capacity_bytes = capacity_bytes
        self.bytes = 0
        self._near = near
        self._clock = clock
        self._kept: OrderedDict[int, tuple[bytes, Kept]] = OrderedDict()
        self._hints: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def reply(self, request: bytes) -> bytes | None:
        """The reply to these bytes, if they are a kept request and all that it stands on is as it was."""
        found = self._kept.get(xxh3_64_intdigest(request))
        if found is None or found[0] != request:
            return None
        kept = found[1]
        started = time.perf_counter()
        now = self._clock()
        if not kept.stands(self._near, now):
            self._forget(xxh3_64_intdigest(request))
            return None
        kept.count(time.perf_counter() - started, None)
        return kept.at(now)

    def worth_keeping(self, request: bytes) -> bool:
        """Whether this is at least the second near hit of these bytes; remembers the first as a hint."""
        hint = xxh3_64_intdigest(request)
        found = self._kept.get(hint)
        if (found is not None and found[0] == request) or self.capacity_bytes <= 0:
            return False
        if hint in self._hints:
            return True
        self._hints[hint] = None
        if len(self._hints) > self.MAX_HINTS:
            self._hints.popitem(last=False)
        return False

    def keep(self, request: bytes, kept: Kept) -> None:
        """Remember a reply; the oldest go where it does not fit."""
        size = kept.size + len(request)
        if size > self.capacity_bytes:
            return
        hint = xxh3_64_intdigest(request)
        self._forget(hint)
        self._kept[hint] = request, kept
        self.bytes += size
        while self.bytes > self.capacity_bytes:
            self._forget(next(iter(self._kept)))

    def close(self) -> None:
        """Replay nothing any more: a worker that is about to end has to say so with every answer."""
        self.capacity_bytes = 0
        for hint in list(self._kept):
            self._forget(hint)

    def _forget(self, hint: int) -> None:
        found = self._kept.pop(hint, None)
        if found is not None:
            self.bytes -= found[1].size + len(found[0])
