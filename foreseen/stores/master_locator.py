"""The address of the state store or queue → a client that follows its master through failovers.

Each of the two keeps all its keys in one slot, so that its scripts are atomic: on a Cluster they are on the master of
that slot, behind Sentinels on the master. The locator asks again once its answer is a second old: a master that was
partitioned accepts writes after it returns, until it is demoted, and then discards them. `--state-replicas` protects
the writes of that second. A call goes to one server or fails; the caller decides whether to repeat it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog
from redis import exceptions as gone
from redis.asyncio import Connection, ConnectionPool, Redis

from foreseen.errors import FarError
from foreseen.stores.redis_urls import (
    BY_ADDRESS,
    MAX_CONNECTIONS,
    Access,
    RedisHosts,
    connect,
    execute,
    several,
    slot_of,
)

LOOK_SECONDS = 1.0
"""How long the located master is trusted."""
ASK_SECONDS = 0.5
"""Timeout of one Sentinel or node; then the next one is tried."""

WAIT_SECONDS = 1.0
"""How long WAIT waits for replicas."""

log = structlog.get_logger()


class MasterLocator:
    """Locates the master of a key's slot. `moves` counts the servers that it has found."""

    def __init__(self, many: RedisHosts, key: str, access: Access) -> None:
        self.moves = 0
        self._many = many
        self._slot = slot_of(key.encode())
        self._access = access
        self._address: tuple[str, int] | None = None
        self._look_at = 0.0
        self._looking: asyncio.Task[None] | None = None
        self._why = ""

    async def now(self) -> tuple[str, int]:
        """Host and port of the master. Raises redis' ConnectionError where it was never found."""
        loop = asyncio.get_running_loop()
        if self._address is None or loop.time() >= self._look_at:
            if self._looking is None:
                self._looking = loop.create_task(self._look())
                self._looking.add_done_callback(self._looked)
            await asyncio.shield(self._looking)
        if self._address is None:
            raise gone.ConnectionError(f"master not found: {self._why}")
        return self._address

    async def close(self) -> None:
        if self._looking is not None:
            await asyncio.wait([self._looking])

    def _looked(self, task: asyncio.Task[None]) -> None:
        self._looking = None

    async def _look(self) -> None:
        """Without an answer the last master is kept: without Sentinels no failover happens either."""
        try:
            slot_map = await self._many.locate(ASK_SECONDS, self._access)
        except FarError as error:
            if error.kind != self._why:
                log.warning("state store: master not found", kind=error.kind)
            self._why = error.kind
        else:
            self._why = ""
            self._adopt(next((where for first, last, where in slot_map if first <= self._slot <= last), None))
        self._look_at = asyncio.get_running_loop().time() + LOOK_SECONDS

    def _adopt(self, where: str | None) -> None:
        host, _, port = (where or "").rpartition(":")
        address = (host.strip("[]"), int(port)) if where else None
        if address != self._address:
            if self.moves:
                log.warning("state: server", now=where, before=self._address and ":".join(map(str, self._address)))
            self.moves += 1
        self._address = address
        self._why = "" if where else "clusterdown"


class FailoverPool(ConnectionPool):
    """Connections to the current master: a connection to another server is reopened when it is taken."""

    def __init__(self, place: MasterLocator, **options: Any) -> None:
        super().__init__(**options)
        self.place = place

    async def ensure_connection(self, connection: Any) -> None:
        where = await self.place.now()
        assert isinstance(connection, Connection)
        if (connection.host, connection.port) != where:
            await connection.disconnect()
            connection.host, connection.port = where
        await super().ensure_connection(connection)

    async def aclose(self) -> None:
        await self.place.close()
        await super().aclose()


def client_at(url: str, key: str, budget_seconds: float, access: Access = BY_ADDRESS) -> Redis:
    """A client of the key's master. Opens no connection yet. Raises SetupError for a malformed address."""
    many = several(url)
    if many is None:
        return connect(url, budget_seconds, access)
    pool = connect(many.server("localhost:0"), budget_seconds, access).connection_pool
    options = {**pool.connection_kwargs, "connection_class": pool.connection_class}
    return Redis.from_pool(FailoverPool(MasterLocator(many, key, access), max_connections=MAX_CONNECTIONS, **options))


def moves_of(client: Redis) -> int:
    """How often the client's server has changed; always 0 for a client of one fixed server."""
    pool = client.connection_pool
    return pool.place.moves if isinstance(pool, FailoverPool) else 0


async def waited(client: Redis, replicas: int, *words: Any) -> Any:
    """The reply to a command once `replicas` replicas have its writes. Raises redis' ConnectionError if they do not in
    time; the write remains, and may be lost with the server."""
    if not replicas:
        return await execute(client, *words)
    (reply,), lack = await pipelined(client, [words], replicas)
    if isinstance(reply, Exception):
        raise reply
    if lack is not None:
        raise lack
    return reply


async def pipelined(
    client: Redis, commands: Sequence[tuple[Any, ...]], replicas: int
) -> tuple[list[Any], Exception | None]:
    """The replies to commands, each possibly an error, and why too few replicas have their writes, or None."""
    pipe = client.pipeline(transaction=False)  # WAIT is for what came before on the same connection
    for words in commands:
        pipe.execute_command(*words)
    if not replicas:
        return await pipe.execute(raise_on_error=False), None
    pipe.execute_command("WAIT", replicas, int(WAIT_SECONDS * 1000))
    *replies, reached = await pipe.execute(raise_on_error=False)
    if isinstance(reached, Exception):
        return replies, reached
    few = reached < replicas
    return replies, gone.ConnectionError(f"{reached} of {replicas} replicas have it") if few else None
