"""Redis in its state role: generations, the log of purges, and which workers have seen how much of it. It just raises.

Unlike the cache it must not forget: append-only file, no eviction. One script raises a generation and writes the log,
so that whoever reads the one has the other:

    fsn1.generations   hash     "last", "all:", "model:NAME", "digest:DIGEST" → generation
    fsn1.purges        stream   id GENERATION-1: kind (all, model, digest, key), what
    fsn1.workers       hash     worker → the last generation that it has confirmed

On a Cluster their names begin with `{fsn1}` instead, so that they lie in one slot; elsewhere they are as they always
were, so that proxies of before and after read the same.

A generation is at least the one before + 1 and at least the server's clock in µs, so that it never repeats, also where
the state was lost. Workers stay registered until they leave: one that is cut off must be named, not forgotten.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Literal

import structlog
from msgspec import Struct
from redis import exceptions as gone
from redis.asyncio import Redis

from foreseen.errors import StateUnavailable
from foreseen.stores.master_locator import client_at, moves_of, waited
from foreseen.stores.redis_urls import BY_ADDRESS, MAX_CONNECTIONS, Access, several

TAG, CLUSTER_TAG = "fsn1", "{fsn1}"
KEPT_PURGES = 100_000
BUDGET_SECONDS = 5.0
BLOCK_SECONDS = 1.0
"""How long one look for news waits; news end it at once."""
RECENT_MICROSECONDS = 60_000_000
"""A worker that starts reads so far back: a purged key is out of the far tier long before."""

Kind = Literal["all", "model", "digest", "key"]

log = structlog.get_logger()

_PURGE = """
local t = redis.call('TIME')
local last = tonumber(redis.call('HGET', KEYS[1], 'last') or '0')
local generation = string.format('%.0f', math.max(last + 1, t[1] * 1000000 + t[2]))
redis.call('HSET', KEYS[1], 'last', generation)
if ARGV[1] ~= 'key' then redis.call('HSET', KEYS[1], ARGV[1] .. ':' .. ARGV[2], generation) end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], generation .. '-1', 'kind', ARGV[1], 'what', ARGV[2])
return generation
"""
_RAISE = """
for i = 1, #ARGV, 2 do
  local known = tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or '0')
  if tonumber(ARGV[i + 1]) > known then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
"""


class Purge(Struct, frozen=True):
    """One line of the log."""

    generation: int
    kind: Kind
    what: str


class State:
    """The state store. Everything raises StateUnavailable where it does not answer. What is told of a purge, or of a
    worker that it waits for, has reached so many replicas first."""

    def __init__(self, client: Redis, tag: str = TAG, replicas: int = 0) -> None:
        self._client = client
        self._generations, self._purges, self._workers = (
            f"{tag}.{name}" for name in ("generations", "purges", "workers")
        )
        self._replicas = replicas
        self._registered_at = 0
        self._places = asyncio.Semaphore(MAX_CONNECTIONS)  # calls take turns: a client with no connection left raises

    async def purge(self, kind: Kind, what: str) -> int:
        """Raise a generation, or log a key's purge; the generation that every worker has to confirm."""
        words = ("EVAL", _PURGE, 2, self._generations, self._purges, kind, what, str(KEPT_PURGES))
        return int(await self._call(waited(self._client, self._replicas, *words)))

    async def generations(self) -> dict[str, int]:
        """All that were ever raised, by "kind:what", and "last"."""
        raw: dict[bytes, bytes] = await self._call(self._client.hgetall(self._generations))
        return {name.decode(): int(value) for name, value in raw.items()}

    async def raise_to(self, generations: dict[str, int]) -> None:
        """What a worker knows and a store that lost some of it does not."""
        pairs = [part for name, value in generations.items() for part in (name, str(value))]
        if pairs:
            await self._call(self._client.eval(_RAISE, 1, self._generations, *pairs))

    async def since(self, generation: int) -> list[Purge]:
        """The purges after a generation."""
        low = f"({generation}-1" if generation else "-"
        return [_purge(*one) for one in await self._call(self._client.xrange(self._purges, min=low))]

    async def next(self, generation: int) -> list[Purge]:
        """The same; where there are none, wait for the next, a moment at most. Raises StateUnavailable, too, where the
        store is on another server than when this worker was registered: that one may have missed something."""
        block = int(BLOCK_SECONDS * 1000)
        found = await self._call(self._client.xread({self._purges: f"{generation}-1"}, block=block))
        if moves_of(self._client) != self._registered_at:
            raise StateUnavailable("the state store is on another server now")
        return [_purge(*one) for _, entries in found for one in entries]

    async def register(self, worker: str) -> None:
        """From now on a purge waits for this worker."""
        before = -1
        while before != moves_of(self._client):  # it may have moved while this was on its way
            before = moves_of(self._client)
            await self._call(waited(self._client, self._replicas, "HSET", self._workers, worker, "0"))
        self._registered_at = before

    async def confirm(self, worker: str, generation: int) -> None:
        await self._call(self._client.hset(self._workers, worker, str(generation)))

    async def leave(self, worker: str) -> None:
        await self._call(self._client.hdel(self._workers, worker))

    async def workers(self) -> dict[str, int]:
        """What every registered worker has confirmed."""
        raw: dict[bytes, bytes] = await self._call(self._client.hgetall(self._workers))
        return {name.decode(): int(value) for name, value in raw.items()}

    async def close(self) -> None:
        await self._client.aclose()

    async def _call(self, call: Awaitable[Any] | Any) -> Any:
        try:
            async with self._places:
                return await call
        except (gone.RedisError, OSError, TimeoutError, RuntimeError) as error:  # the last is uvloop's of a closed one
            log.debug("state", error=type(error).__name__)
            raise StateUnavailable("the state store does not answer") from None


def connect_state(url: str, access: Access = BY_ADDRESS, replicas: int = 0) -> State:
    """A state store by its address. Opens no connection yet. Raises SetupError for no address."""
    many = several(url)
    tag = CLUSTER_TAG if many is not None and many.kind == "cluster" else TAG
    return State(client_at(url, f"{tag}.generations", BUDGET_SECONDS, access), tag, replicas)


def generation_of(generations: dict[str, int], model: str, digest: str) -> int:
    """The generation of a model's space: the highest that was raised of anything it belongs to."""
    get = generations.get
    return max(get("all:", 0), get(f"model:{model}", 0), get(f"digest:{digest}", 0))


def read_generations(url: str, access: Access = BY_ADDRESS) -> dict[str, int]:
    """The generations, for a program that is not running a loop."""

    async def read() -> dict[str, int]:
        state = connect_state(url, access)
        try:
            return await state.generations()
        finally:
            await state.close()

    return asyncio.run(read())


def _purge(entry: bytes, fields: dict[bytes, bytes]) -> Purge:
    kind: Any = fields[b"kind"].decode()
    return Purge(int(entry.split(b"-")[0]), kind, fields[b"what"].decode())
