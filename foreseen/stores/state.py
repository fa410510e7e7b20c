"""Redis in its state role: generations, the log of purges, and the last purge that each worker has confirmed.

Unlike the cache it must not lose data: append-only file, no eviction. One script raises a generation and appends to the
log, so that both agree for every reader:

    fsn1.generations   hash     "last", "all:", "model:NAME", "digest:DIGEST", "scope:SCOPE" → generation
    fsn1.purges        stream   id GENERATION-1: kind (all, model, digest, scope, key), what
    fsn1.workers       hash     worker → the last generation that it has confirmed
    fsn1.served        hash     "MODEL:DIGEST" → "MICROSECONDS ARTIFACT": what was ever served, the latest 4,096

On a Cluster their names begin with `{fsn1}` instead, so that they lie in one slot; elsewhere they have no braces, as in
earlier versions, so that proxies of both versions read the same keys.

A generation is at least the previous one + 1 and at least the server's clock in µs, so that it never repeats, even
after the state was lost. A store that starts empty begins with a purge of everything at its clock, so that purges which
it may have lost stay in force. The log keeps every purge of a key, since an entry can be stored again as long as it can
live; when the log is full, one purge of everything replaces its contents. Workers stay registered until they leave: a
worker that is partitioned must be reported, not dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, Literal

import structlog
from msgspec import Struct
from redis import exceptions as gone
from redis.asyncio import Redis

from foreseen.errors import StateUnavailable
from foreseen.lua_scripts import lua_script
from foreseen.stores.master_locator import client_at, moves_of, waited
from foreseen.stores.redis_urls import BY_ADDRESS, MAX_CONNECTIONS, Access, several
from foreseen.types import Scope

TAG, CLUSTER_TAG = "fsn1", "{fsn1}"
KEPT_PURGES = 100_000
KEPT_SERVED = 4096
BUDGET_SECONDS = 5.0
BLOCK_SECONDS = 1.0
"""How long one read of the log blocks; a new purge ends it at once."""
PURGES_PER_CALL = 5000

Kind = Literal["all", "model", "digest", "scope", "key"]

log = structlog.get_logger()

_NEXT = lua_script("foreseen.stores", "state_next")
_PURGE = _NEXT + lua_script("foreseen.stores", "state_purge")
_BEGIN = _NEXT + lua_script("foreseen.stores", "state_begin")
_RAISE = lua_script("foreseen.stores", "state_raise")
_SERVED = lua_script("foreseen.stores", "state_served")
_LOG_AGAIN = lua_script("foreseen.stores", "state_log_again")


class Purge(Struct, frozen=True):
    """One line of the log."""

    generation: int
    kind: Kind
    what: str


class ServedDigest(Struct, frozen=True):
    """A model digest that some proxy on this state store serves or served: answers may be stored under it."""

    model: str
    digest: str
    artifact: str | None = None
    """The artifact digest, of models that are built."""


class State:
    """The state store. Everything raises StateUnavailable where it does not answer. Purges and registrations of workers
    are acknowledged once `replicas` replicas have them."""

    def __init__(self, client: Redis, tag: str = TAG, replicas: int = 0) -> None:
        self._client = client
        self._generations, self._purges, self._workers, self._served = (
            f"{tag}.{name}" for name in ("generations", "purges", "workers", "served")
        )
        self.kept_purges = KEPT_PURGES
        self._replicas = replicas
        self._registered_at = 0
        self._places = asyncio.Semaphore(MAX_CONNECTIONS)  # calls take turns: a client with no connection left raises

    async def purge(self, kind: Kind, what: str) -> int:
        """Raise a generation, or log a key's purge; the generation that every worker has to confirm."""
        words = ("EVAL", _PURGE, 2, self._generations, self._purges, kind, what, str(self.kept_purges))
        return int(await self._call(waited(self._client, self._replicas, *words)))

    async def generations(self) -> dict[str, int]:
        """Every generation ever raised, by "kind:what", and "last"."""
        raw: dict[bytes, bytes] = await self._call(self._client.hgetall(self._generations))
        return {name.decode(): int(value) for name, value in raw.items()}

    async def begun(self, seen: int = 0) -> dict[str, int]:
        """The same of an initialised store: an empty one, or one that lost a purge which a worker has seen, begins now
        with a purge of everything."""
        words = ("EVAL", _BEGIN, 2, self._generations, self._purges, str(seen))
        raw: list[bytes] = await self._call(waited(self._client, self._replicas, *words))
        return {name.decode(): int(value) for name, value in zip(raw[::2], raw[1::2], strict=True)}

    async def last(self) -> int:
        """The generation of the last purge; 0 where there was none, or the store lost it."""
        return int(await self._call(self._client.hget(self._generations, "last")) or 0)

    async def raise_to(self, generations: dict[str, int]) -> None:
        """Re-send generations that a worker knows to a store that lost some of them."""
        pairs = [part for name, value in generations.items() for part in (name, str(value))]
        if pairs:
            await self._call(self._client.eval(_RAISE, 1, self._generations, *pairs))

    async def log_again(self, keys: Sequence[tuple[int, str]]) -> None:
        """Re-send purges of keys, by generation, the oldest first, to a store that lost some of them."""
        for at in range(0, len(keys), PURGES_PER_CALL):
            flat = [part for one in keys[at : at + PURGES_PER_CALL] for part in map(str, one)]
            await self._call(self._client.eval(_LOG_AGAIN, 1, self._purges, *flat))

    async def since(self, generation: int) -> list[Purge]:
        """The purges after a generation."""
        found: list[Purge] = []
        while True:
            low = f"({generation}-1" if generation else "-"
            part = await self._call(self._client.xrange(self._purges, min=low, count=PURGES_PER_CALL))
            found += [_purge(*one) for one in part]
            if len(part) < PURGES_PER_CALL:
                return found
            generation = found[-1].generation

    async def next(self, generation: int) -> list[Purge]:
        """The same; where there are none, wait a moment for the next. Raises StateUnavailable also where the store has
        moved to another server since this worker registered: that server may lack a purge."""
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

    async def note_served(self, served: Iterable[ServedDigest]) -> None:
        """Record the digests under which answers may be stored, so that a purge of a misspelt one is refused."""
        pairs = [part for one in served for part in (f"{one.model}:{one.digest}", one.artifact or "")]
        if pairs:
            await self._call(self._client.eval(_SERVED, 1, self._served, str(KEPT_SERVED), *pairs))

    async def served(self) -> list[ServedDigest]:
        """The recorded digests, the latest 4,096."""
        raw: dict[bytes, bytes] = await self._call(self._client.hgetall(self._served))
        found = []
        for name, value in raw.items():
            model, _, digest = name.decode().rpartition(":")
            found.append(ServedDigest(model, digest, value.decode().partition(" ")[2] or None))
        return found

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
    """A state store by its address. Opens no connection yet. Raises SetupError for a malformed address."""
    many = several(url)
    tag = CLUSTER_TAG if many is not None and many.kind == "cluster" else TAG
    return State(client_at(url, f"{tag}.generations", BUDGET_SECONDS, access), tag, replicas)


def generation_of(generations: dict[str, int], scope: Scope, model: str, digest: str) -> int:
    """The generation of a scope's space of a model: the highest of everything, the scope, the model and the digest."""
    get = generations.get
    return max(get("all:", 0), get(f"scope:{scope}", 0), get(f"model:{model}", 0), get(f"digest:{digest}", 0))


def read_generations(url: str, access: Access = BY_ADDRESS) -> dict[str, int]:
    """The generations, for a program without an event loop. An empty store is initialised."""

    async def read() -> dict[str, int]:
        state = connect_state(url, access)
        try:
            return await state.begun()
        finally:
            await state.close()

    return asyncio.run(read())


def _purge(entry: bytes, fields: dict[bytes, bytes]) -> Purge:
    kind: Any = fields[b"kind"].decode()
    return Purge(int(entry.split(b"-")[0]), kind, fields[b"what"].decode())
