"""Replicas of one upstream server: chooses the one with the fewest requests in flight and leaves out a failed one.

A failed replica is used again once its metadata can be read and equal the others'. They are read at every look at the
model. A replica whose metadata differ has another version and is left out as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Generic, Protocol, TypeVar

import aiohttp
import structlog

from foreseen.errors import ModelUnavailable, SetupError
from foreseen.proxy.backend.http_pool import Broken, HttpReply, NotReached
from foreseen.proxy.backend.v2_server import Unusable

log = structlog.get_logger()

_FAILED = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError, NotReached, Broken)
_NOTHING_SENT = (aiohttp.ClientConnectorError, NotReached)


class Replica(Protocol):
    """One of the servers."""

    address: str

    async def metadata(self, name: str) -> dict[str, Any]:
        """A model's metadata. Raises ModelUnavailable or SetupError where they cannot be had."""

    async def close(self) -> None: ...


R = TypeVar("R", bound=Replica)


class Replicas(Generic[R]):
    """Servers that hold the same models."""

    def __init__(self, servers: Sequence[R]) -> None:
        self.servers = tuple(servers)
        self._under_way = [0] * len(servers)
        self._left_out: set[int] = set()
        self._known: dict[str, Any] | None = None

    @property
    def left_out(self) -> list[str]:
        """The addresses of those that are not asked now."""
        return [self.servers[at].address for at in sorted(self._left_out)]

    async def close(self) -> None:
        for server in self.servers:
            await server.close()

    @asynccontextmanager
    async def chosen(self) -> AsyncIterator[R]:
        """The one to be asked now. Where all have failed, one of them is tried all the same."""
        live = [at for at in range(len(self.servers)) if at not in self._left_out] or range(len(self.servers))
        at = min(live, key=self._under_way.__getitem__)
        self._under_way[at] += 1
        try:
            yield self.servers[at]
        except _FAILED as error:
            self._leave_out(at, type(error).__name__)
            raise
        finally:
            self._under_way[at] -= 1

    async def exchange(self, ask: Callable[[R], Awaitable[HttpReply]]) -> HttpReply:
        """One exchange with the one to be asked now; with another where no connection to it was found."""
        for _ in self.servers[1:]:
            try:
                async with self.chosen() as server:
                    return await ask(server)
            except _NOTHING_SENT:
                continue
        async with self.chosen() as server:
            return await ask(server)

    async def metadata(self, name: str, seconds: float) -> tuple[dict[str, Any], R]:
        """A model's metadata, of the first replica that answers. Those that cannot, or answer otherwise, are left out.
        Raises what the first raised where none answers."""
        found = await asyncio.gather(*(self._asked(server, name, seconds) for server in self.servers))
        answered = [at for at, one in enumerate(found) if isinstance(one, dict)]
        if not answered:
            error = found[0]
            assert isinstance(error, Exception)
            raise error
        kept = [at for at in answered if found[at] == self._known]
        first = (kept or answered)[0]
        known = found[first]
        assert isinstance(known, dict)
        self._known = known
        for at, one in enumerate(found):
            if one == known:
                self._take_back(at)
            else:
                self._leave_out(at, "another version" if isinstance(one, dict) else str(one))
        return known, self.servers[first]

    async def _asked(self, server: R, name: str, seconds: float) -> dict[str, Any] | ModelUnavailable | SetupError:
        try:
            async with asyncio.timeout(seconds):
                return await server.metadata(name)
        except (ModelUnavailable, SetupError) as error:
            return error
        except TimeoutError:
            return Unusable("unreachable", f"its models were not listed in {seconds:g} seconds", "look at its log")

    def _leave_out(self, at: int, why: str) -> None:
        if at not in self._left_out and len(self.servers) > 1:
            log.warning("upstream replica left out", upstream=self.servers[at].address, why=why)
            self._left_out.add(at)

    def _take_back(self, at: int) -> None:
        if at in self._left_out:
            log.info("upstream replica is back", upstream=self.servers[at].address)
            self._left_out.discard(at)
