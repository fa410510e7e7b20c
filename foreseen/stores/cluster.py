"""The far tier over several servers: a Redis Cluster, or the master behind Sentinels. Each server has its own breaker.

The slot map is read at the start, and again whenever a server fails or redirects a key. A request never waits for that;
it misses instead. A server that is down costs the hits of its own keys only.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog

from foreseen.errors import FarError
from foreseen.stores.commands import PREFIX, Command, Entries
from foreseen.stores.far import Far, SlotMoved
from foreseen.stores.redis_urls import BY_ADDRESS, SLOTS, Access, SlotMap, connect, several, slot_of
from foreseen.tasks import end
from foreseen.types import DOWN, FarState, Key

AGAIN_SECONDS = 0.2
"""Between two reads of the slot map, while a server fails."""

log = structlog.get_logger()


def far_at(url: str, budget_seconds: float, *, access: Access = BY_ADDRESS) -> Entries:
    """The far tier at an address of any kind. Opens no connection yet. Raises SetupError for a malformed address."""

    def one(address: str) -> Far:
        return Far(connect(address, budget_seconds, access))

    many = several(url)
    if many is None:
        return one(url)
    return ShardedFar(
        lambda: many.locate(budget_seconds, access), lambda address: one(many.server(address)), budget_seconds
    )


class ShardedFar(Entries):
    """Entries over several servers."""

    def __init__(
        self, locate: Callable[[], Awaitable[SlotMap]], server: Callable[[str], Far], budget_seconds: float
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
        self._why = "connect"

    def __repr__(self) -> str:
        return f"<ShardedFar over {sorted(self._servers)}>"

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
            if isinstance(reply, SlotMoved):
                again[reply.address, reply.once].append(at)
                if not reply.once:
                    self._owners[reply.slot] = reply.address
        if again:
            await self._ask(again, commands, replies, stores)
        replies = [FarError("moved") if isinstance(reply, SlotMoved) else reply for reply in replies]
        if again or any(isinstance(reply, FarError) for reply in replies):
            self._doubted.set()
        return replies

    async def states(self) -> list[FarState]:
        try:
            await self._until_located()
        except FarError:
            return [DOWN]
        by_server = await asyncio.gather(*(server.states() for server in self._servers.values()))
        return [one for states in by_server for one in states]

    async def time(self) -> float:
        await self._until_located()
        return await next(iter(self._servers.values())).time()

    async def close(self) -> None:
        if self._following is not None:
            await end(self._following)
        await asyncio.gather(*(server.close() for server in self._servers.values()), *self._leaving)

    async def _ask(
        self, places: dict[tuple[str, bool], list[int]], commands: Sequence[Command], replies: list[Any], stores: bool
    ) -> None:
        """One pipeline to each server; each reply goes to its command's index in `replies`."""

        async def ask(address: str, asking: bool, at: list[int]) -> None:
            try:
                answers = await self._of(address).replies([commands[one] for one in at], stores, asking)
            except FarError as error:
                answers = [error] * len(at)
            for one, reply in zip(at, answers, strict=True):
                replies[one] = reply

        await asyncio.gather(*(ask(address, asking, at) for (address, asking), at in places.items()))

    def _of(self, address: str) -> Far:
        server = self._servers.get(address)
        if server is None:
            server = self._servers[address] = self._server(address)
        return server

    async def _until_located(self) -> None:
        """Wait for the first slot map, at most as long as for a reply. Raises FarError."""
        if self._following is None:
            self._doubted.set()
            self._following = asyncio.get_running_loop().create_task(self._follow())
        if not self._located.is_set():
            try:
                async with asyncio.timeout(2 * self._budget_seconds):
                    await self._located.wait()
            except TimeoutError:
                raise FarError(self._why) from None

    async def _follow(self) -> None:
        """Read the slot map whenever it is in doubt, until cancelled."""
        while True:
            await self._doubted.wait()
            self._doubted.clear()
            try:
                self._adopt(await self._locate())
            except FarError as error:
                self._doubted.set()
                if error.kind != self._why:
                    log.warning("far: servers not found", kind=error.kind)
                self._why = error.kind
            await asyncio.sleep(AGAIN_SECONDS)

    def _adopt(self, slot_map: SlotMap) -> None:
        owners: list[str | None] = [None] * SLOTS
        for first, last, address in slot_map:
            owners[first : last + 1] = [address] * (last + 1 - first)
        before, now = set(self._servers), {address for _, _, address in slot_map}
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


def _key_of(command: Command) -> bytes:
    key: bytes = command[3] if command[0] in ("EVAL", "EVALSHA") else command[1]
    return key
