"""The far tier on one Redis server: bounded in time, never retried, behind a breaker. Errors are raised, not handled.

The commands of every request go through our own pool (`redis_pool.py`) where it can speak to the server, the rest
through redis-py. Redis 6.2 commands only: MGET, GET, SET PX, DEL. With redis-py's defaults a stalled Redis stalls the
proxy (5 s × 10 retries, measured), hence `Retry(NoBackoff(), 0)` and short timeouts. A call that times out closes its
connection, so that the next caller cannot read its late reply; the entry's own key would reveal one.

`commands.py` has the commands; `cluster.py` spreads them over several servers, each through this file.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

import structlog
from msgspec import Struct
from redis import exceptions as gone
from redis._parsers import BaseParser
from redis.asyncio import Connection, Redis, UnixDomainSocketConnection

from foreseen.errors import FarError
from foreseen.stores.breaker import Breaker
from foreseen.stores.commands import PREFIX, SECRET_CHECK, Command, Entries
from foreseen.stores.error_kinds import kind_of
from foreseen.stores.redis_pool import Open, RedisPool
from foreseen.stores.redis_urls import MAX_CONNECTIONS, execute
from foreseen.types import DOWN, FarState, Key

KEYS_PER_CALL = 256
"""Keys of one MGET at most."""
STORE_PAUSE_SECONDS = 1.0
"""How long writes pause after Redis refused one (full, read-only, not permitted); reads continue."""

log = structlog.get_logger()

_REFUSED_STORES = frozenset(("oom", "readonly", "permission", "noreplicas"))
"""Errors that may concern writes only: writes pause, reads continue."""


class SlotMoved(Struct, frozen=True):
    """A Cluster node's reply that another node has the key: permanently (MOVED), or (`once`) while its slot is moving
    (ASK)."""

    address: str
    slot: int
    once: bool


def _wire(client: Redis) -> RedisPool | None:
    """Our own pool to the same server; None where only redis-py can connect: with TLS, or with a test double."""
    pool = client.connection_pool
    options, kind = pool.connection_kwargs, pool.connection_class
    if kind not in (Connection, UnixDomainSocketConnection) or options.get("credential_provider") is not None:
        return None
    hello: list[Command] = []
    if options.get("password") is not None:
        hello.append(("AUTH", *(options[name] for name in ("username", "password") if options.get(name) is not None)))
    if options.get("db"):
        hello.append(("SELECT", options["db"]))
    opened: Open
    if kind is UnixDomainSocketConnection:
        opened = lambda made: asyncio.get_running_loop().create_unix_connection(made, options["path"])  # noqa: E731
    else:
        where = options.get("host", "localhost"), options.get("port", 6379)
        opened = lambda made: asyncio.get_running_loop().create_connection(made, *where)  # noqa: E731
    return RedisPool(opened, hello, options["socket_timeout"], BaseParser.parse_error)


class Far(Entries):
    """The far tier on one server. Everything raises at once while the breaker is open."""

    def __init__(self, client: Redis, *, keys_per_call: int = KEYS_PER_CALL, breaker: Breaker | None = None) -> None:
        self._client = client
        self._wire = _wire(client)
        self._keys_per_call = keys_per_call
        self.breaker = breaker or Breaker()
        self._probe: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._no_stores_until = 0.0
        self._places = asyncio.Semaphore(MAX_CONNECTIONS)

    @property
    def open(self) -> bool:
        return self.breaker.open

    async def get(self, keys: Sequence[Key]) -> list[bytes | FarError | None]:
        """One MGET; for more keys than one call takes, several at once."""
        self._admit()
        if len(keys) == 1 and self._wire is not None:
            return self._values(await self._call_one(self._wire, ("MGET", PREFIX + keys[0])), 1)
        step = self._keys_per_call
        calls = [self._mget(keys[at : at + step]) for at in range(0, len(keys), step)]
        if len(calls) == 1:
            return await calls[0]
        found = await asyncio.gather(*calls, return_exceptions=True)
        for part in found:
            if isinstance(part, BaseException):
                raise part
        return [value for part in cast("list[list[bytes | FarError | None]]", found) for value in part]

    async def each(self, commands: Sequence[Command], *, stores: bool = False) -> list[Any]:
        return [
            FarError("moved") if isinstance(one, SlotMoved) else one for one in await self.replies(commands, stores)
        ]

    async def replies(self, commands: Sequence[Command], stores: bool = False, asking: bool = False) -> list[Any]:
        """The same, with SlotMoved for a redirected key. `asking`: this node is importing the slot (ASK)."""
        (self._admit_stores if stores else self._admit)()
        sent = [one for command in commands for one in (("ASKING",), command)] if asking else commands
        replies = await self._call(lambda: self._pipelined(sent))
        replies = replies[1::2] if asking else replies
        errors = {at: one for at, one in enumerate(replies) if isinstance(one, Exception)}
        for at, error in errors.items():
            replies[at] = _moved(error) or FarError(kind_of(error))
        failed = next((error for error in errors.values() if _moved(error) is None), None)
        if failed is not None:
            self._failed(failed, stores)
        return list(replies)

    async def states(self) -> list[FarState]:
        """Errors do not count for the breaker: a Redis that forbids INFO still serves keys."""
        try:
            return [_state(await self._client.info())]
        except Exception:  # noqa: BLE001 - as in _call
            return [DOWN]

    async def time(self) -> float:
        seconds, micros = await self._call(self._client.time)
        return float(seconds) + float(micros) / 1e6

    async def close(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
        if self._wire is not None:
            self._wire.close()
        await self._client.aclose()

    async def _mget(self, keys: Sequence[Key]) -> list[bytes | FarError | None]:
        return self._values(await self._call(lambda: self._asked(("MGET", *[PREFIX + key for key in keys]))), len(keys))

    def _values(self, reply: Any, count: int) -> list[bytes | FarError | None]:
        if isinstance(reply, Exception):
            raise self._failed(reply)
        if type(reply) is not list or len(reply) != count or not _entries(reply):
            raise self._failed(gone.InvalidResponse())  # damaged, or the reply to another command
        return reply

    async def put(self, entries: Sequence[tuple[Key, bytes, int]]) -> None:
        """The same; of one entry by fewer steps, as every miss has one."""
        if len(entries) != 1 or self._wire is None:
            return await super().put(entries)
        self._admit_stores()
        ((key, value, milliseconds),) = entries
        reply = await self._call_one(self._wire, ("SET", PREFIX + key, value, "PX", max(1, milliseconds)))
        if isinstance(reply, Exception):
            if _moved(reply) is not None:
                raise FarError("moved")
            raise self._failed(reply, stores=True)
        return None

    async def _asked(self, command: Command) -> Any:
        (reply,) = await self._pipelined([command])
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def _pipelined(self, commands: Sequence[Command]) -> list[Any]:
        """The replies in order, an exception for each command that Redis refused."""
        if self._wire is not None:
            return await self._wire.ask(commands)
        pipe = self._client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        replies: list[Any] = await pipe.execute(raise_on_error=False)
        return replies

    async def _call(self, command: Callable[[], Awaitable[Any]]) -> Any:
        """One call within the bound on concurrent calls; it waits for its turn at most as long as those may take."""
        async with self._places:
            self._admit()  # the breaker may have opened meanwhile
            try:
                reply = await command()
            except Exception as error:  # noqa: BLE001 - of damaged bytes redis-py and uvloop raise whatever they trip over
                raise self._failed(error) from None
        if not (isinstance(reply, list) and any(isinstance(one, Exception) for one in reply)):
            self.breaker.succeeded()
        return reply

    async def _call_one(self, wire: RedisPool, command: Command) -> Any:
        """`_call` of one command by our own pool; an exception as its reply where Redis refused it."""
        async with self._places:
            self._admit()
            try:
                (reply,) = await wire.ask((command,))
            except Exception as error:  # noqa: BLE001 - as in `_call`
                raise self._failed(error) from None
        if not isinstance(reply, Exception):
            self.breaker.succeeded()
        return reply

    def _admit_stores(self) -> None:
        self._admit()
        if time.monotonic() < self._no_stores_until:
            raise FarError("paused")

    def _admit(self) -> None:
        if self.breaker.open:
            raise FarError("open")

    def _failed(self, error: Exception, stores: bool = False) -> FarError:
        """Classify and count an error; open the breaker at its threshold."""
        kind = kind_of(error)
        if stores and kind in _REFUSED_STORES:
            self._no_stores_until = time.monotonic() + STORE_PAUSE_SECONDS
            if kind == "readonly":
                self._look_up_again()
        elif self.breaker.failed():
            log.warning("far: breaker opened", kind=kind)
            self._probe = asyncio.get_running_loop().create_task(self._probe_until_back())
        return FarError(kind)

    def _look_up_again(self) -> None:
        """Close all connections: a server that became a replica keeps them; new ones resolve its name again."""
        if self._wire is not None:
            self._wire.close_idle()
        task = asyncio.get_running_loop().create_task(self._client.connection_pool.disconnect(inuse_connections=False))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _probe_until_back(self) -> None:
        """A probe reads a key as a request would: a server that answers PING may still serve no key."""
        while True:
            await asyncio.sleep(self.breaker.probe_seconds)
            try:
                await execute(self._client, "MGET", SECRET_CHECK)
            except (gone.MovedError, gone.AskError):
                pass  # the server works; it does not hold this key
            except Exception:  # noqa: BLE001, S112 - as in _call
                continue
            self.breaker.succeeded()
            log.warning("far: breaker closed")
            return


def _state(info: Mapping[str, Any]) -> FarState:
    """INFO → FarState."""
    return FarState(
        memory=int(info["used_memory"]),
        memory_limit=int(info["maxmemory"]),
        keys=sum(int(value["keys"]) for name, value in info.items() if name.startswith("db")),
        evicted=int(info["evicted_keys"]),
        expired=int(info["expired_keys"]),
        policy=str(info["maxmemory_policy"]),
        version=str(info["redis_version"]),
        append_only=bool(info.get("aof_enabled")),
        uptime=int(info["uptime_in_seconds"]),
        replicas=int(info.get("connected_slaves", 0)),
        writable=info.get("aof_last_write_status", "ok") == "ok" and info.get("rdb_last_bgsave_status", "ok") == "ok",
    )


def _entries(values: Sequence[object]) -> bool:
    return all(value is None or type(value) is bytes for value in values)


def _moved(error: Exception) -> SlotMoved | None:
    if isinstance(error, gone.AskError):  # MovedError is one, too
        return SlotMoved(f"{error.host}:{error.port}", error.slot_id, not isinstance(error, gone.MovedError))
    return None
