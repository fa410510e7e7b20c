"""Keys → entries in Redis, in its cache role: bounded in time, never retried, behind a breaker. It just raises.

The only file that imports redis. Redis 6.2 commands only: MGET, SET PX, DEL, PING. redis-py's defaults turn a stalled
Redis into a stalled proxy (5 s × 10 retries, measured), hence `Retry(NoBackoff(), 0)` and short socket timeouts. A call
that times out closes its connection (redis-py does that), so that no late reply is read by the next caller; the entry's
own key would show it if one were.

Key names in Redis:  `fsn1:` + the 32 bytes of a key  → entry;   `fsn1.secret` → the check value of the root secret;
`fsn1.lease:` + the 32 bytes of a key → the token of the proxy that computes it just now.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import structlog
from redis import exceptions as gone
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from foreseen.breaker import Breaker
from foreseen.errors import FarError, SetupError
from foreseen.nouns import DOWN, FarState, Key

PREFIX = b"fsn1:"
SECRET_CHECK = b"fsn1.secret"
LEASE = b"fsn1.lease:"
_EXTEND = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
MAX_CONNECTIONS = 32
"""Calls at a time; more wait for a place. Redis has one thread: more connections would not make it faster."""
STORE_PAUSE_SECONDS = 1.0
"""How long stores rest after Redis said that it is full or read-only; reads go on."""

log = structlog.get_logger()

_KINDS: tuple[tuple[type[Exception], str], ...] = (
    # The order matters: redis-py derives most of these from ConnectionError or ResponseError.
    (gone.TimeoutError, "timeout"),
    (gone.BusyLoadingError, "loading"),
    (gone.ReadOnlyError, "readonly"),
    (gone.OutOfMemoryError, "oom"),
    (gone.NoPermissionError, "permission"),
    (gone.AuthenticationError, "auth"),
    (gone.AuthenticationWrongNumberOfArgsError, "auth"),
    (gone.MaxConnectionsError, "busy"),
    (gone.ConnectionError, "connect"),
    (gone.InvalidResponse, "protocol"),
    (gone.ResponseError, "refused"),
    (gone.RedisError, "protocol"),
    (OSError, "connect"),
    (TimeoutError, "timeout"),
)
_REFUSED_STORES = frozenset(("oom", "readonly"))


def connect(url: str, budget_seconds: float) -> Redis:
    """A client of one Redis. Opens no connection yet."""
    client: Redis = Redis.from_url(
        url,
        protocol=2,
        decode_responses=False,
        socket_timeout=budget_seconds,
        socket_connect_timeout=budget_seconds,
        retry=Retry(NoBackoff(), 0),
        retry_on_timeout=False,
        health_check_interval=0,
        max_connections=MAX_CONNECTIONS,
        driver_info=None,  # no CLIENT SETINFO: two round trips less before the first answer
    )
    return client


class Far:
    """The far tier. `get` and `put` raise FarError, at once while the breaker is open."""

    def __init__(self, client: Redis, *, keys_per_call: int = 256, breaker: Breaker | None = None) -> None:
        self._client = client
        self._keys_per_call = keys_per_call
        self.breaker = breaker or Breaker()
        self._probe: asyncio.Task[None] | None = None
        self._no_stores_until = 0.0
        self._places = asyncio.Semaphore(MAX_CONNECTIONS)

    async def get(self, keys: Sequence[Key]) -> list[bytes | None]:
        """The entries of keys, None where there is none. More keys than one call takes go side by side."""
        self._admit()
        step = self._keys_per_call
        calls = [self._mget(keys[at : at + step]) for at in range(0, len(keys), step)]
        if len(calls) == 1:
            return await calls[0]
        found = await asyncio.gather(*calls, return_exceptions=True)
        for part in found:
            if isinstance(part, BaseException):
                raise part
        return [value for part in cast("list[list[bytes | None]]", found) for value in part]

    async def put(self, entries: Sequence[tuple[Key, bytes, int]]) -> None:
        """Store (key, entry, milliseconds to live), pipelined."""
        self._admit_store()
        pipe = self._client.pipeline(transaction=False)
        for key, value, milliseconds in entries:
            pipe.set(PREFIX + key, value, px=max(1, milliseconds))
        await self._replies(pipe)

    async def lease(self, keys: Sequence[Key], token: bytes, milliseconds: int) -> list[bool]:
        """Which of these nobody else holds: they are this token's now, for so long."""
        self._admit_store()
        told = await self._for_each(keys, lambda pipe, key: pipe.set(LEASE + key, token, nx=True, px=milliseconds))
        return [bool(reply) for reply in told]

    async def extend(self, keys: Sequence[Key], token: bytes, milliseconds: int) -> None:
        """Hold for so long from now what is still this token's."""
        self._admit()
        await self._for_each(keys, lambda pipe, key: pipe.eval(_EXTEND, 1, LEASE + key, token, milliseconds))

    async def release(self, keys: Sequence[Key], token: bytes) -> None:
        """Let go of what is still this token's."""
        self._admit()
        await self._for_each(keys, lambda pipe, key: pipe.eval(_RELEASE, 1, LEASE + key, token))

    async def forget(self, keys: Sequence[Key]) -> int:
        """Delete entries; how many there were."""
        self._admit()
        return int(await self._call(lambda: self._client.delete(*(PREFIX + key for key in keys))))

    async def check_secret(self, check: bytes) -> None:
        """Raises SetupError where this Redis was filled under another root secret: it would miss for ever."""
        await self._call(lambda: self._client.set(SECRET_CHECK, check, nx=True))
        if await self._call(lambda: self._client.get(SECRET_CHECK)) not in (check, None):
            raise SetupError(
                "the root secret is not the one that this Redis was filled with; give --secret-file of the other "
                "proxies, or empty this Redis (FLUSHALL) if it has no others"
            )

    async def state(self) -> FarState:
        """What Redis says of itself, DOWN where it does not within the budget. The breaker hears nothing of it: a Redis
        that may not be asked about itself still serves."""
        try:
            told = await self._client.info()
        except (gone.RedisError, OSError, TimeoutError):
            return DOWN
        keys = sum(value["keys"] for name, value in told.items() if name.startswith("db"))
        return FarState(
            memory=int(told["used_memory"]),
            memory_limit=int(told["maxmemory"]),
            keys=keys,
            evicted=int(told["evicted_keys"]),
            expired=int(told["expired_keys"]),
            policy=str(told["maxmemory_policy"]),
            version=str(told["redis_version"]),
            append_only=bool(told.get("aof_enabled")),
        )

    async def time(self) -> float:
        """Redis' own clock, Unix seconds."""
        seconds, micros = await self._call(self._client.time)
        return float(seconds) + float(micros) / 1e6

    async def knows(self, check: bytes) -> bool | None:
        """Whether this Redis was filled under the root secret of this check value; None where nobody has filled it."""
        found = await self._call(lambda: self._client.get(SECRET_CHECK))
        return None if found is None else bool(found == check)

    async def close(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
        await self._client.aclose()

    async def _mget(self, keys: Sequence[Key]) -> list[bytes | None]:
        values: list[bytes | None] = await self._call(lambda: self._client.mget([PREFIX + key for key in keys]))
        if len(values) != len(keys):
            raise self._failed(gone.InvalidResponse())
        return values

    async def _for_each(self, keys: Sequence[Key], command: Callable[[Any, Key], object]) -> list[Any]:
        """One command of one key for each, pipelined, so that a Cluster can take it too; their replies in order."""
        replies: list[Any] = []
        for at in range(0, len(keys), self._keys_per_call):
            pipe = self._client.pipeline(transaction=False)
            for key in keys[at : at + self._keys_per_call]:
                command(pipe, key)
            replies += await self._replies(pipe)
        return replies

    async def _replies(self, pipe: Any) -> list[Any]:
        replies: list[Any] = await self._call(lambda: pipe.execute(raise_on_error=False))
        for reply in replies:
            if isinstance(reply, Exception):
                raise self._failed(reply)
        return replies

    async def _call(self, command: Callable[[], Awaitable[Any]]) -> Any:
        """One command in its turn. A place is waited for no longer than the calls before it may take."""
        async with self._places:
            self._admit()  # it may have opened while this one waited
            try:
                reply = await command()
            except (gone.RedisError, OSError, TimeoutError) as error:
                raise self._failed(error) from None
        self.breaker.succeeded()
        return reply

    def _admit(self) -> None:
        if self.breaker.open:
            raise FarError("open")

    def _admit_store(self) -> None:
        self._admit()
        if time.monotonic() < self._no_stores_until:
            raise FarError("paused")

    def _failed(self, error: Exception) -> FarError:
        """Classify, count, and open the breaker when it is time."""
        kind = next((kind for family, kind in _KINDS if isinstance(error, family)), "protocol")
        if kind in _REFUSED_STORES:
            self._no_stores_until = time.monotonic() + STORE_PAUSE_SECONDS
        elif self.breaker.failed():
            log.warning("far: breaker opened", kind=kind)
            self._probe = asyncio.get_running_loop().create_task(self._probe_until_back())
        return FarError(kind)

    async def _probe_until_back(self) -> None:
        while True:
            await asyncio.sleep(self.breaker.probe_seconds)
            try:
                await self._client.ping()
            except (gone.RedisError, OSError, TimeoutError):
                continue
            self.breaker.succeeded()
            log.warning("far: breaker closed")
            return
