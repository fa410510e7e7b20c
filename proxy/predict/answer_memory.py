"""What the answer cache holds, within one bound in bytes: indexes over bodies and whole requests; the oldest go first.

A body goes with the requests that carry it. Nothing is kept that came only once: its hash is remembered instead.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

REQUESTS_SHARE = 3
"""Whole requests take one part of so many of the memory at most."""
MAX_HASHES = 32_768
"""Hashes of what came once."""


class KeptBody:
    """What the memory knows of a body. `size` is in bytes, `requests` the hashes of requests that carry the body,
    `start` its key in the index of large bodies, `until` the end of its reply's validity: 0 once it is forgotten."""

    __slots__ = ("hash", "requests", "size", "start", "until")

    def __init__(self, hashed: int, size: int, start: Hashable | None) -> None:
        self.hash, self.size, self.start = hashed, size, start
        self.requests: set[int] = set()
        self.until = 0.0


class KeptRequest:
    """What the memory knows of a whole request: its bytes' hash, its size, the entry of its body."""

    __slots__ = ("entry", "hash", "size")

    def __init__(self, hashed: int, size: int, entry: Any) -> None:
        self.hash, self.size, self.entry = hashed, size, entry


Body = TypeVar("Body", bound=KeptBody)
Request = TypeVar("Request", bound=KeptRequest)


class AnswerMemory(Generic[Body, Request]):
    """The three indexes are read by the answer cache, which alone confirms what they find."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.bytes = 0
        self.bodies: OrderedDict[int, Body] = OrderedDict()
        self.large: dict[Hashable, Body] = {}
        self.requests: OrderedDict[int, Request] = OrderedDict()
        self._request_bytes = 0
        self._hashes: OrderedDict[int, None] = OrderedDict()

    def came_before(self, hashed: int) -> bool:
        """Whether this is at least the second time."""
        if hashed in self._hashes:
            return True
        self._hashes[hashed] = None
        if len(self._hashes) > MAX_HASHES:
            self._hashes.popitem(last=False)
        return False

    def add(self, entry: Body) -> None:
        """Keep a body in the place of the one of its hash."""
        before = self.bodies.pop(entry.hash, None)
        if before is not None:
            self._forget(before)
        self.bodies[entry.hash] = entry
        if entry.start is not None:
            self.large[entry.start] = entry
        self.bytes += entry.size
        self._fit()

    def grow(self, entry: Body, more: int) -> None:
        """A kept body takes so many bytes more, or less."""
        entry.size += more
        self.bytes += more
        self._fit()

    def add_request(self, request: Request) -> None:
        """Keep a request whose body is kept."""
        self._forget_request(request.hash)
        self.requests[request.hash] = request
        request.entry.requests.add(request.hash)
        self._request_bytes += request.size
        self.bytes += request.size
        self._fit()

    def forget_requests(self, entry: Body) -> None:
        for hashed in list(entry.requests):
            self._forget_request(hashed)

    def close(self) -> None:
        """Keep nothing any more."""
        self.capacity_bytes = 0
        self._fit()

    def _fit(self) -> None:
        while self.bytes > self.capacity_bytes:
            if self._request_bytes * REQUESTS_SHARE > self.capacity_bytes and self.requests:
                self._forget_request(next(iter(self.requests)))
            else:
                self._forget(self.bodies.popitem(last=False)[1])

    def _forget(self, entry: Body) -> None:
        """An entry that is out of the index goes with its requests."""
        self.bytes -= entry.size
        entry.until = 0.0
        self.forget_requests(entry)
        if entry.start is not None and self.large.get(entry.start) is entry:
            del self.large[entry.start]

    def _forget_request(self, hashed: int) -> None:
        request = self.requests.pop(hashed, None)
        if request is not None:
            request.entry.requests.discard(hashed)
            self._request_bytes -= request.size
            self.bytes -= request.size
