"""The address of a store that lies on one server at a time → a client that follows it from server to server.

The state store and the queue keep each all their keys in one slot, so that their scripts are atomic: on a Cluster they
lie on the master of that slot, behind Sentinels on the master. Who that is is asked again once the last answer is a
second old: a master that was cut off, and comes back, takes writes until it is told that it is none, and throws them
away. (What it takes in that second is why `--state-replicas` is there.) A call goes to one server, or fails; whoever
asks repeats it or not.
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
"""How long an answer who the master is holds."""
ASK_SECONDS = 0.5
"""How long one Sentinel or node may take to answer it; then the next is asked."""

WAIT_SECONDS = 1.0
"""How long replicas have for what is not told before they have it."""

log = structlog.get_logger()


class MasterLocator:
    """Where the slot of a key is. `moves` counts the servers that it has been on."""

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
        """Host and port. Raises redis' ConnectionError where nobody has ever said."""
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
        """Where nobody says, the last answer holds on: without Sentinels there is no failover either."""
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
    """Connections to wherever the place is now: one that led elsewhere is made anew when it is taken."""

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
    """A client of the server that holds this key. Opens no connection yet. Raises SetupError for no address."""
    many = several(url)
    if many is None:
        return connect(url, budget_seconds, access)
    pool = connect(many.server("localhost:0"), budget_seconds, access).connection_pool
    options = {**pool.connection_kwargs, "connection_class": pool.connection_class}
    return Redis.from_pool(FailoverPool(MasterLocator(many, key, access), max_connections=MAX_CONNECTIONS, **options))


def moves_of(client: Redis) -> int:
    """How often the client's server has changed. Raises nothing; 0 for one that cannot."""
    pool = client.connection_pool
    return pool.place.moves if isinstance(pool, FailoverPool) else 0


async def waited(client: Redis, replicas: int, *words: Any) -> Any:
    """The reply to a command once so many replicas have its writes. Raises redis' ConnectionError where they have not
    in time: what was written stays, and may be lost with the server."""
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
    """The replies to commands, which an error may be, and why so many replicas do not have their writes, if so."""
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
