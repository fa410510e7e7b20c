"""Limits of a listener: connections, request heads, write time, and a token bucket for each client address. No I/O.

`connection.py` applies them. Other limits: `read_body` bounds bodies, the pipeline bounds rows and deadlines.
"""

from __future__ import annotations

import functools
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from math import ceil
from typing import Protocol

from msgspec import Struct

from foreseen.errors import RateLimited

MAX_ADDRESSES = 65_536
"""Callers with a token bucket; a new bucket of an evicted caller is full."""
IDLE_SECONDS = 1.0
"""A connection that has been at rest for so long may be closed to make room."""
UNIX = "unix"
"""The address of a caller that has none."""
ROOM_SHARE = 64
"""A sixty-fourth of the connections is closed at once: finding the longest idle ones visits all of them."""


class ListenerLimits(Struct, frozen=True):
    """The limits of one listener. The defaults are those of listeners that only our own processes reach."""

    connections: int = 0
    """Open connections; 0: no limit."""
    requests: int = 0
    """Most requests of one connection, which is then closed in good order; 0: no limit."""
    head_bytes: int = 64 * 1024
    header_bytes: int = 8190
    headers: int = 128
    head_seconds: float = 10.0
    write_seconds: float = 30.0
    rate: float = 0.0
    """Requests a second of one address; 0: no limit."""
    burst: int = 0
    """Requests that an idle address may send at once; at least one second's."""
    forwarded_hops: int = 0
    """Trusted proxies in front, each of which appends to X-Forwarded-For."""


class Bucket:
    """A token bucket: `burst` requests at once, then `rate` a second."""

    __slots__ = ("_at", "_clock", "_rate", "_size", "_tokens")

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._size = max(float(burst), rate, 1.0)
        self._clock = clock
        self._tokens = self._size
        self._at = clock()

    def wait(self) -> float:
        """Seconds until a request may pass; 0.0 where it may now. Takes nothing."""
        now = self._clock()
        self._tokens = min(self._size, self._tokens + (now - self._at) * self._rate)
        self._at = now
        return 0.0 if self._tokens >= 1.0 else (1.0 - self._tokens) / self._rate

    def take(self) -> None:
        """One request passes."""
        self._tokens -= 1.0


class Buckets:
    """The buckets of all addresses, the longest unused forgotten first."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def of(self, caller: str) -> Bucket | None:
        """The bucket of a caller's address; None where nothing is limited, or for a unix socket, which has no
        address."""
        if not self._rate or caller == UNIX:
            return None
        address = network_of(caller)
        bucket = self._buckets.get(address)
        if bucket is None:
            bucket = self._buckets[address] = Bucket(self._rate, self._burst, self._clock)
            if len(self._buckets) > MAX_ADDRESSES:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(address)
        return bucket


@functools.lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """The unit of rate limiting: an IPv4 address, or an IPv6 /64 network, which is what one client is given."""
    if ":" not in address:
        return address
    parsed = ipaddress.IPv6Address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped
    return str(mapped) if mapped is not None else str(ipaddress.IPv6Network((parsed, 64), strict=False))


class LimitedConnection(Protocol):
    """The part of a connection that the gate needs."""

    def rests_since(self) -> float | None:
        """Since when (event loop time) it only waits for a request; None while it works."""

    def force_close(self) -> None: ...


class Gate:
    """The open connections of one listener. `count` is called with the limit's name whenever a client exceeds it."""

    def __init__(self, limits: ListenerLimits, count: Callable[[str], None] = lambda _: None) -> None:
        self.limits = limits
        self.count = count
        self._buckets = Buckets(limits.rate, limits.burst)
        self._connections: set[LimitedConnection] = set()

    def __len__(self) -> int:
        return len(self._connections)

    def bucket(self, caller: str) -> Bucket | None:
        """The bucket of a caller's address."""
        return self._buckets.of(caller)

    def admit(self, bucket: Bucket | None) -> None:
        """Take a request out of its caller's bucket. Raises RateLimited."""
        if bucket is None:
            return
        wait = bucket.wait()
        if wait:
            self.count("rate")
            raise RateLimited("too many requests from this address", retry_after=ceil(wait))
        bucket.take()

    def enter(self, connection: LimitedConnection, now: float) -> bool:
        """Whether there is room for a connection; closes the longest idle ones to make some."""
        most = self.limits.connections
        if most and len(self._connections) >= most:
            self._make_room(max(1, most // ROOM_SHARE), now)
            if len(self._connections) >= most:
                self.count("connections")
                return False
        self._connections.add(connection)
        return True

    def leave(self, connection: LimitedConnection) -> None:
        self._connections.discard(connection)

    def _make_room(self, places: int, now: float) -> None:
        resting = [
            (since, id(connection), connection)
            for connection in self._connections
            if (since := connection.rests_since()) is not None
        ]
        for since, _, connection in sorted(resting, key=lambda one: one[:2])[:places]:
            if now - since < IDLE_SECONDS:
                break
            self._connections.discard(connection)
            self.count("idle")
            connection.force_close()
