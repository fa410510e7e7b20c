"""The address of a Redis that is several servers → the far tier over them, each behind a breaker of its own.

    redis+cluster://HOST:PORT,HOST:PORT          a Redis Cluster, by some of its nodes
    redis+sentinel://HOST:PORT,HOST:PORT/NAME    the master called NAME, as these Sentinels say

(`rediss+…` over TLS; USER:PASSWORD@ before the first host is for the Redis servers, not for Sentinels.) Who holds which
slot is asked once and again whenever a server fails or says that a key lies elsewhere, never on the way of a request:
that costs a miss at most. A server that is down costs its own keys only. Sentinels' master holds all slots.
"""

from __future__ import annotations

import asyncio
import binascii
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import structlog

from foreseen.errors import FarError, SetupError
from foreseen.far import PREFIX, Command, Entries, Far, Moved, ask_once, connect
from foreseen.nouns import DOWN, FarState, Key

SLOTS = 16384
AGAIN_SECONDS = 0.2
"""Between two questions who is where, while something is wrong."""
KINDS = ("cluster", "sentinel")

log = structlog.get_logger()

Whereabouts = Sequence[tuple[int, int, str]]
"""First slot, last slot, HOST:PORT of the server that holds them."""


def far_at(url: str, budget_seconds: float, *, keys_per_call: int = 256, ca_file: Path | None = None) -> Entries:
    """The far tier at an address, whatever is there. Opens no connection yet. Raises SetupError for no address."""

    def one(address: str) -> Far:
        return Far(connect(address, budget_seconds, ca_file), keys_per_call=keys_per_call)

    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    if scheme not in ("redis", "rediss", "unix") or kind not in ("", *KINDS) or (scheme == "unix" and kind):
        raise SetupError(f"redis {shown(url)}: give redis://, rediss://, unix://PATH, or +cluster or +sentinel of them")
    if not kind:
        return one(url)
    several = Several(parts, scheme, kind)

    async def locate() -> Whereabouts:
        ask = _ask_cluster if kind == "cluster" else _ask_sentinel
        return await several.asked(ask, lambda address: connect(address, budget_seconds, ca_file))

    return Spread(locate, lambda address: one(several.server(address)), budget_seconds)


def shown(url: str) -> str:
    """An address that may be logged: without its password."""
    before, at, after = url.rpartition("@")
    return f"{before.split('://')[0]}://…{at}{after}" if at else url


class Several:
    """An address with several hosts, taken apart."""

    def __init__(self, parts: SplitResult, scheme: str, kind: str) -> None:
        user, at, hosts = parts.netloc.rpartition("@")
        self.hosts = [host for host in hosts.split(",") if host]
        self.name = parts.path.strip("/")
        self._scheme, self._user, self._query = scheme, user + at, f"?{parts.query}" if parts.query else ""
        if not self.hosts or any(":" not in host for host in self.hosts):
            raise SetupError(f"redis+{kind}: give HOST:PORT,HOST:PORT")
        if kind == "sentinel" and not self.name:
            raise SetupError("redis+sentinel: give the master's name, redis+sentinel://HOST:PORT/NAME")
        self._sentinel = kind == "sentinel"

    def server(self, address: str) -> str:
        """The whole address of one Redis server."""
        return f"{self._scheme}://{self._user}{address}/0{self._query}"

    async def asked(
        self, ask: Callable[[Any, str, str], Awaitable[Whereabouts]], client: Callable[[str], Any]
    ) -> Whereabouts:
        """What the first host that knows says; the next time it is asked first. Raises the last FarError."""
        failure = FarError("connect")
        for host in list(self.hosts):
            address = f"{self._scheme}://{host}{self._query}" if self._sentinel else self.server(host)
            try:
                told = await ask(client(address), host, self.name)
            except (FarError, TypeError, ValueError) as error:
                failure = error if isinstance(error, FarError) else FarError("protocol")
                self.hosts.remove(host)
                self.hosts.append(host)
            else:
                return told
        raise failure


async def _ask_cluster(client: Any, host: str, name: str) -> Whereabouts:
    """CLUSTER SLOTS: [first, last, [ip, port, …], replicas …], where an empty ip is the node that was asked."""
    own = host.rpartition(":")[0]
    told = []
    for first, last, master, *_ in await ask_once(client, "CLUSTER", "SLOTS"):
        ip = master[0].decode() if master[0] else own
        told.append((int(first), int(last), f"[{ip}]:{master[1]}" if ":" in ip.strip("[]") else f"{ip}:{master[1]}"))
    return told


async def _ask_sentinel(client: Any, host: str, name: str) -> Whereabouts:
    """SENTINEL GET-MASTER-ADDR-BY-NAME: [ip, port], nothing where it does not know the name."""
    told = await ask_once(client, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)
    if not told:
        raise FarError("connect")
    ip, port = (part.decode() for part in told)
    return [(0, SLOTS - 1, f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}")]


class Spread(Entries):
    """Entries over several servers."""

    def __init__(
        self, locate: Callable[[], Awaitable[Whereabouts]], server: Callable[[str], Far], budget_seconds: float
    ) -> None:
        self._locate = locate
        self._server = server
        self._budget_seconds = budget_seconds
        self._owners: list[str | None] = [None] * SLOTS
        self._servers: dict[str, Far] = {}
        self._located = asyncio.Event()
        self._doubted = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Spread over {sorted(self._servers)}>"

    @property
    def open(self) -> bool:
        return not self._servers or any(server.open for server in self._servers.values())

    async def get(self, keys: Sequence[Key]) -> list[bytes | FarError | None]:
        """A GET each, one pipeline per server: MGET takes keys of one slot only. Raises where no server answered."""
        replies = await self.each([("GET", PREFIX + key) for key in keys])
        if replies and all(isinstance(reply, FarError) for reply in replies):
            raise replies[0]
        return replies

    async def each(self, commands: Sequence[Command], *, stores: bool = False) -> list[Any]:
        await self._until_located()
        slots = [slot_of(_key_of(command)) for command in commands]
        replies: list[Any] = [FarError("clusterdown")] * len(commands)
        places = defaultdict[tuple[str, bool], list[int]](list)
        for at, slot in enumerate(slots):
            owner = self._owners[slot]
            if owner is not None:
                places[owner, False].append(at)
        await self._ask(places, commands, replies, stores)
        again = defaultdict[tuple[str, bool], list[int]](list)
        for at, reply in enumerate(replies):
            if isinstance(reply, Moved):
                again[reply.address, reply.once].append(at)
                if not reply.once:
                    self._owners[reply.slot] = reply.address
        if again:
            await self._ask(again, commands, replies, stores)
        replies = [FarError("moved") if isinstance(reply, Moved) else reply for reply in replies]
        if again or any(isinstance(reply, FarError) for reply in replies):
            self._doubted.set()
        return replies

    async def state(self) -> FarState:
        """The sums over the servers that answer, the least time that one has run; DOWN where one does not."""
        if not self._located.is_set():
            return DOWN
        told = await asyncio.gather(*(server.state() for server in self._servers.values()))
        if DOWN in told or not told:
            return DOWN
        return FarState(
            memory=sum(one.memory for one in told),
            memory_limit=sum(one.memory_limit for one in told) if all(one.memory_limit for one in told) else 0,
            keys=sum(one.keys for one in told),
            evicted=sum(one.evicted for one in told),
            expired=sum(one.expired for one in told),
            policy=min(one.policy for one in told),
            version=min(one.version for one in told),
            append_only=any(one.append_only for one in told),
            uptime=min(one.uptime for one in told),
        )

    async def time(self) -> float:
        await self._until_located()
        return await next(iter(self._servers.values())).time()

    async def close(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])
        await asyncio.gather(*(server.close() for server in self._servers.values()), *self._leaving)

    async def _ask(
        self, places: dict[tuple[str, bool], list[int]], commands: Sequence[Command], replies: list[Any], stores: bool
    ) -> None:
        """One pipeline to each server; what it replies goes to where its commands stand."""

        async def ask(address: str, asking: bool, at: list[int]) -> None:
            try:
                told = await self._of(address).replies([commands[one] for one in at], stores, asking)
            except FarError as error:
                told = [error] * len(at)
            for one, reply in zip(at, told, strict=True):
                replies[one] = reply

        await asyncio.gather(*(ask(address, asking, at) for (address, asking), at in places.items()))

    def _of(self, address: str) -> Far:
        server = self._servers.get(address)
        if server is None:
            server = self._servers[address] = self._server(address)
        return server

    async def _until_located(self) -> None:
        """Nobody waits longer for it than for an answer."""
        if self._following is None:
            self._doubted.set()
            self._following = asyncio.get_running_loop().create_task(self._follow())
        if not self._located.is_set():
            try:
                async with asyncio.timeout(2 * self._budget_seconds):
                    await self._located.wait()
            except TimeoutError:
                raise FarError("connect") from None

    async def _follow(self) -> None:
        """Ask who is where whenever that is in doubt, for ever."""
        while True:
            await self._doubted.wait()
            self._doubted.clear()
            try:
                self._adopt(await self._locate())
            except FarError as error:
                self._doubted.set()
                log.debug("far: nobody says where it is", kind=error.kind)
            await asyncio.sleep(AGAIN_SECONDS)

    def _adopt(self, told: Whereabouts) -> None:
        owners: list[str | None] = [None] * SLOTS
        for first, last, address in told:
            owners[first : last + 1] = [address] * (last + 1 - first)
        before, now = set(self._servers), {address for _, _, address in told}
        if now != before:
            log.warning("far: servers", now=sorted(now), before=sorted(before))
        self._owners = owners
        for address in now:
            self._of(address)
        for address in before - now:
            task = asyncio.get_running_loop().create_task(self._servers.pop(address).close())
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
        if now:
            self._located.set()


def slot_of(name: bytes) -> int:
    """The Cluster's slot of a key: CRC16 of what stands in its first braces, else of all of it."""
    begin = name.find(b"{")
    end = name.find(b"}", begin + 1)
    tag = name[begin + 1 : end] if begin >= 0 and end > begin + 1 else name
    return binascii.crc_hqx(tag, 0) % SLOTS


def _key_of(command: Command) -> bytes:
    key: bytes = command[3] if command[0] in ("EVAL", "EVALSHA") else command[1]
    return key
