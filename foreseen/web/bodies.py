"""Bounds on request bodies: how many bytes all of a process may hold at a time, and how far one may inflate.

The bytes are counted as they arrive and as they inflate, so that a caller takes room only with bytes it has sent. The
first `FREE_BYTES` of a body are not counted: large requests never cause the refusal of small ones.
"""

from __future__ import annotations

import asyncio
import threading
import zlib
from io import BytesIO

from aiohttp import web

from foreseen.errors import BadRequest, Overloaded, TooLarge

FREE_BYTES = 64 * 1024
MEDIUM_BYTES = 2**20
"""Larger bodies have a budget of their own, so that a few of 64 MiB do not block small ones."""
MEDIUM_ROOM_BYTES = 128 * 2**20
LARGE_ROOM_BYTES = 192 * 2**20
STEP_BYTES = 2**20
"""zlib collects what one call inflates in blocks and joins them: a call is asked for no more than this."""
RATIO_FREE_BYTES = 8 * 2**20
MAX_RATIO = 100
"""A body that inflates above `RATIO_FREE_BYTES` is at most so many times as long as it came; JSON of numbers and of
text compresses to a third or a tenth."""
GZIP_MEMBERS = 64
"""A gzip body is a series of members (RFC 1952); empty ones cost 20 bytes to send and microseconds to open."""


class Room:
    """A budget of bytes for bodies, shared by the event loop and the threads that inflate."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Whether there was room. A body alone in an empty room always fits."""
        with self._lock:
            if self.used and self.used + size > self.total:
                return False
            self.used += size
            return True

    def give(self, size: int) -> None:
        with self._lock:
            self.used -= size


class Bodies:
    """The budgets of one process, for medium and for large bodies."""

    def __init__(self, medium_bytes: int = MEDIUM_ROOM_BYTES, large_bytes: int = LARGE_ROOM_BYTES) -> None:
        self.medium = Room(medium_bytes)
        self.large = Room(large_bytes)
        self.alone = asyncio.Semaphore()
        """Held while a large body is inflated: one by one is as fast as all at once, and takes less memory."""

    @property
    def used(self) -> int:
        return self.medium.used + self.large.used


class Charge:
    """The bytes that one request holds, until `release`."""

    __slots__ = ("_bodies", "_held", "_room", "_size")

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._room: Room | None = None
        self._held = 0
        self._size = 0

    def grow(self, more: int) -> None:
        """Count more bytes of the request. Raises Overloaded, holding what it held before."""
        size = self._size + more
        if size <= FREE_BYTES:
            self._size = size
            return
        room = self._bodies.medium if size <= MEDIUM_BYTES else self._bodies.large
        wanted = size if room is not self._room else size - self._held
        if not room.take(wanted):
            raise Overloaded("no room for another large request body at this moment")
        if room is not self._room:
            self._give_back()
        self._room, self._held, self._size = room, size, size

    def release(self) -> None:
        self._give_back()
        self._room, self._held, self._size = None, 0, 0

    def _give_back(self) -> None:
        if self._room is not None:
            self._room.give(self._held)


BODIES = web.AppKey("bodies", Bodies)
"""The bounds of an application, for `read_body`."""


class Inflater:
    """A gzip or deflate body (zlib's container, or bare as some send it) that is decoded in steps."""

    def __init__(self, body: bytes, coding: str, limit: int, charge: Charge | None = None) -> None:
        self._body = memoryview(body)
        self._coding = coding
        self._wbits = 31 if coding == "gzip" else 15 if body[:1] and body[0] & 15 == zlib.DEFLATED else -15
        self._limit = limit
        self._most = max(RATIO_FREE_BYTES, MAX_RATIO * len(body))
        self._charge = charge
        self._into = BytesIO()
        self._at = self._size = self._members = 0
        self._stream = self._next_member()

    def run(self, until: int) -> bool:
        """Decode up to `until` bytes; whether the body is complete. Raises BadRequest, TooLarge, Overloaded."""
        while self._size <= until:
            if not self._stream.eof:
                self._step()
            elif self._at < len(self._body):
                self._stream = self._next_member()
            else:
                return True
        return False

    def value(self) -> bytes:
        """The decoded body, without a copy."""
        return self._into.getvalue()

    def _next_member(self) -> zlib._Decompress:
        self._members += 1
        if self._members > (GZIP_MEMBERS if self._coding == "gzip" else 1):
            raise BadRequest(f"Content-Encoding: more data follows the end of the {self._coding} body")
        return zlib.decompressobj(self._wbits)

    def _step(self) -> None:
        stream, part = self._stream, self._body[self._at : self._at + 65536]
        try:
            plain = stream.decompress(part, min(STEP_BYTES, self._limit + 1 - self._size))
        except zlib.error:
            raise BadRequest(f"Content-Encoding: the body is not {self._coding}") from None
        taken = len(part) - len(stream.unconsumed_tail) - len(stream.unused_data)
        self._at += taken
        self._grow(len(plain))
        self._into.write(plain)
        if not taken and not plain and not stream.eof and self._at >= len(self._body):
            raise BadRequest(f"Content-Encoding: the {self._coding} body is cut off")

    def _grow(self, more: int) -> None:
        self._size += more
        if self._size > self._limit:
            raise too_large(self._limit)
        if self._size > self._most:
            raise TooLarge(
                f"the body is above the limit of {self._limit} bytes, or inflates to more than {MAX_RATIO} times its "
                "length; send large tensors in the binary form, without a coding, or split the request"
            )
        if self._charge is not None:
            self._charge.grow(more)


def inflated(body: bytes, coding: str, limit: int) -> bytes:
    """A body decoded to at most `limit` bytes. Raises BadRequest where it is not whole, TooLarge."""
    inflater = Inflater(body, coding, limit)
    inflater.run(limit)
    return inflater.value()


def too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is above the limit of {limit} bytes")
