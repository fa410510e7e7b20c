"""Commands of one moment as one pipeline: to each its own reply or error, whoever else leaves, fails or is too many."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import exceptions as gone
from redis.asyncio import Redis

from foreseen.stores.command_batching import MOST_BYTES, MOST_COMMANDS, Grouped
from foreseen.stores.master_locator import WAIT_SECONDS
from foreseen.stores.redis_urls import connect
from tests.redis_servers import Server, serving

pytestmark = pytest.mark.processes

SECONDS = 0.5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("grouped")) as one:
        yield one


@contextlib.asynccontextmanager
async def grouped(
    server: Server, replicas: int = 0, seconds: float = SECONDS
) -> AsyncIterator[tuple[Grouped, list[int]]]:
    """One client's groups, and how many commands each pipeline had."""
    client: Redis = connect(f"redis://{server.address}", seconds)
    sizes: list[int] = []
    made = client.pipeline

    def pipeline(*args: Any, **options: Any) -> Any:
        pipe = made(*args, **options)
        execute = pipe.execute

        async def counted(*given: Any, **named: Any) -> Any:
            sizes.append(len(pipe))
            return await execute(*given, **named)

        pipe.execute = counted
        return pipe

    client.pipeline = pipeline  # type: ignore[method-assign]
    try:
        yield Grouped(client, seconds, replicas), sizes
    finally:
        await client.aclose()


async def test_what_is_asked_in_one_moment_goes_together(server: Server) -> None:
    """The first alone, as nobody else has asked yet; those that come meanwhile as one; each has its own reply."""
    async with grouped(server) as (group, sizes):
        assert await group.ask("ECHO", "alone") == b"alone"
        told = await asyncio.gather(*(group.ask("ECHO", str(number)) for number in range(40)))
        assert told == [str(number).encode() for number in range(40)]
        assert sum(sizes) == 41
        assert len(sizes) <= 3


async def test_a_group_is_bounded(server: Server) -> None:
    """In commands and in bytes; one that is larger than all goes by itself."""
    async with grouped(server) as (group, sizes):
        many = 3 * MOST_COMMANDS + 5
        assert len(await asyncio.gather(*(group.ask("ECHO", str(number)) for number in range(many)))) == many
        assert max(sizes) == MOST_COMMANDS
        sizes.clear()
        large = b"x" * (MOST_BYTES // 2 - 100)
        told = await asyncio.gather(*(group.ask("ECHO", one) for one in (large, large, large, large + large + large)))
        assert [len(one) for one in told] == [len(large)] * 3 + [3 * len(large)]
        assert max(sizes) <= 2


async def test_an_error_is_of_who_made_it(server: Server) -> None:
    """The others of the same pipeline have their replies."""
    async with grouped(server) as (group, _):
        asked = [("SET", "text", "x"), ("INCR", "text"), ("NOSUCH",), ("GET", "text"), ("EVALSHA", "0" * 40, 0)]
        told = await asyncio.gather(*(group.ask(*one) for one in asked), return_exceptions=True)
        assert told[3] == b"x"
        assert [type(one) for one in told] == [bool, gone.ResponseError, gone.ResponseError, bytes, gone.NoScriptError]


async def test_who_leaves_takes_nobody_along(server: Server) -> None:
    """Also who leads: others get theirs, and who left before the departure is not asked for."""
    async with grouped(server) as (group, sizes):
        asking = [asyncio.ensure_future(group.ask("INCRBY", "left", 10**number)) for number in range(4)]
        await asyncio.sleep(0)
        asking[0].cancel()
        asking[2].cancel()
        told = await asyncio.gather(*asking, return_exceptions=True)
        assert [isinstance(one, asyncio.CancelledError) for one in told] == [True, False, True, False]
        again = await group.ask("GET", "left")
        assert {again, told[3]} == {b"1010", 1010}
        assert sum(sizes) == 3


async def test_a_server_that_is_silent_holds_nobody_for_long(server: Server) -> None:
    """Who waits behind the group that finds it out is told, too; afterwards it goes on."""
    async with grouped(server) as (group, _):
        server.signal(signal.SIGSTOP)
        try:
            first = asyncio.ensure_future(group.ask("ECHO", "1"))
            await asyncio.sleep(0.1)
            async with asyncio.timeout(10 * SECONDS):
                told = await asyncio.gather(first, *(group.ask("ECHO", "2") for _ in range(5)), return_exceptions=True)
        finally:
            server.signal(signal.SIGCONT)
        assert all(isinstance(one, gone.RedisError | TimeoutError | OSError) for one in told)
        assert await group.ask("ECHO", "3") == b"3"


class Slow:
    """A client whose first pipeline fails when the test says so."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.sent: list[list[str]] = []

    def pipeline(self, transaction: bool) -> Slow:
        assert not transaction
        self.sent.append([])
        return self

    def execute_command(self, *words: str) -> None:
        self.sent[-1].append(words[0])

    async def execute(self, raise_on_error: bool) -> list[str]:
        assert not raise_on_error
        if len(self.sent) == 1:
            await self.gate.wait()
            raise TimeoutError
        return self.sent[-1]


async def test_who_waits_behind_a_group_that_fails_is_asked_for_all_the_same() -> None:
    """Only those whose turn does not come in time are not."""
    client: Any = Slow()
    group = Grouped(client, SECONDS)
    first = asyncio.ensure_future(group.ask("first"))
    await asyncio.sleep(0.01)
    late = asyncio.ensure_future(group.ask("late"))
    await asyncio.sleep(SECONDS + 0.05)
    waits = asyncio.ensure_future(group.ask("waits"))
    await asyncio.sleep(0)
    client.gate.set()
    told = await asyncio.gather(first, late, waits, return_exceptions=True)
    assert [type(one) for one in told] == [TimeoutError, TimeoutError, str]
    assert client.sent == [["first"], ["waits"]]


async def test_a_server_that_ends_ends_nobodys_wait(tmp_path: Path) -> None:
    """An error for all; and once it is there again, replies."""
    with serving(tmp_path) as own:
        async with grouped(own) as (group, _):
            assert await group.ask("PING")
            own.signal(signal.SIGSTOP)
            waiting = [asyncio.ensure_future(group.ask("ECHO", "1")) for _ in range(3)]
            await asyncio.sleep(0.05)
            own.kill()
            told = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(one, gone.RedisError | OSError) for one in told)
            own.again()
            async with asyncio.timeout(10):
                while True:
                    with contextlib.suppress(gone.RedisError, OSError):
                        assert await group.ask("ECHO", "2") == b"2"
                        break


async def test_a_promise_waits_for_replicas(server: Server) -> None:
    """There are none here: what is promised fails, though it was carried out; the rest of the group has its reply."""
    async with grouped(server, replicas=1, seconds=3 * WAIT_SECONDS) as (group, _):
        asked = (group.ask("SET", "promised", "x", promised=True), group.ask("ECHO", "free"))
        promised, free = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(promised, gone.ConnectionError)
        assert "0 of 1 replicas" in str(promised)
        assert free == b"free"
        assert await group.ask("GET", "promised") == b"x"
