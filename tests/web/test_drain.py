"""A server that drains loses nobody's request: what comes on open connections is answered, and told to be the last."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from foreseen.web.drain import Shutdown, drain
from foreseen.web.runner import AppRunner

PATIENCE_SECONDS = 20.0


class Site:
    """A server with one route that waits at a gate."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self.answered = 0
        app = web.Application()
        app.router.add_post("/", self._answer)
        self.runner = AppRunner(app)
        self.port = 0
        self.clients: list[Client] = []

    async def _answer(self, request: web.Request) -> web.Response:
        self.entered.set()
        await request.read()
        await self.gate.wait()
        self.answered += 1
        return web.Response(text="yes")


@asynccontextmanager
async def serving() -> AsyncIterator[Site]:
    site = Site()
    await site.runner.setup()
    await web.TCPSite(site.runner, "127.0.0.1", 0).start()
    site.port = site.runner.addresses[0][1]
    try:
        yield site
    finally:
        for client in site.clients:
            client.writer.close()
            with contextlib.suppress(ConnectionError):
                await client.writer.wait_closed()
        await site.runner.cleanup()


class Client:
    """One connection, of which nothing is hidden."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, site: Site) -> Client:
        client = cls(*await asyncio.open_connection("127.0.0.1", site.port))
        site.clients.append(client)
        return client

    def send(self, times: int = 1) -> None:
        self.writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi" * times)

    async def reply(self) -> bytes:
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert await self.reader.readexactly(3) == b"yes"
        return head

    async def closed(self) -> bool:
        return await self.reader.read(1) == b""


async def connected(site: Site, count: int) -> list[Client]:
    """Connections that have all been answered once."""
    clients = [await Client.to(site) for _ in range(count)]
    for client in clients:
        client.send()
        assert b"Connection: close" not in await client.reply()
    return clients


async def test_an_idle_connection_is_answered_once_more_and_told_so() -> None:
    """Whoever sends while the server drains gets an answer with `Connection: close`; with the last, draining ends."""
    async with serving() as site:
        clients = await connected(site, 3)
        new = await Client.to(site)  # it has not asked anything yet
        draining = asyncio.create_task(drain(site.runner, PATIENCE_SECONDS, PATIENCE_SECONDS))
        for client in (*clients, new):
            client.send()
            assert b"Connection: close" in await client.reply()
            assert await client.closed()
        await draining
        assert site.answered == 7


async def test_a_request_under_way_is_finished() -> None:
    """Its answer says that it is the last."""
    async with serving() as site:
        (client,) = await connected(site, 1)
        site.gate.clear()
        site.entered.clear()
        client.send()
        await site.entered.wait()
        draining = asyncio.create_task(drain(site.runner, 0.0, PATIENCE_SECONDS))
        await asyncio.sleep(0)
        site.gate.set()
        assert b"Connection: close" in await client.reply()
        await draining


async def test_what_was_pipelined_is_answered_to_the_last() -> None:
    """Three requests in one packet are three answers; only the third closes."""
    async with serving() as site:
        (client,) = await connected(site, 1)
        site.gate.clear()
        site.entered.clear()
        client.send(3)
        await site.entered.wait()
        draining = asyncio.create_task(drain(site.runner, PATIENCE_SECONDS, PATIENCE_SECONDS))
        await asyncio.sleep(0.01)
        site.gate.set()
        heads = [await client.reply() for _ in range(3)]
        assert [b"Connection: close" in head for head in heads] == [False, False, True]
        await draining


async def test_who_stays_idle_is_closed_and_new_ones_are_refused() -> None:
    """The wait for idle connections is bounded; nobody new is accepted meanwhile."""
    async with serving() as site:
        (client,) = await connected(site, 1)
        await drain(site.runner, 0.05, PATIENCE_SECONDS)
        assert await client.closed()
        with pytest.raises(ConnectionRefusedError):
            await Client.to(site)


async def test_a_request_that_never_ends_does_not_hold_up_the_end() -> None:
    """The wait for what is under way is bounded too."""
    async with serving() as site:
        (client,) = await connected(site, 1)
        site.gate.clear()
        site.entered.clear()
        client.send()
        await site.entered.wait()
        await drain(site.runner, 0.02, 0.05)
        site.gate.set()


@pytest.mark.parametrize(("sent", "at_once"), [(["TERM"], False), (["INT"], True), (["TERM", "TERM"], True)])
async def test_how_it_is_to_end(sent: list[str], at_once: bool) -> None:
    """SIGTERM is gentle; SIGINT, or a second signal, is not."""
    ending = Shutdown()
    for name in sent:
        os.kill(os.getpid(), signal.Signals[f"SIG{name}"])
        await asyncio.wait_for(ending.begun.wait(), PATIENCE_SECONDS)
        await asyncio.sleep(0)
    assert ending.at_once.is_set() is at_once
    drained = asyncio.Event()
    if at_once:
        await ending.unless_at_once(asyncio.sleep(3600))
    else:
        await ending.unless_at_once(_set(drained))
        assert drained.is_set()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().remove_signal_handler(number)


async def _set(event: asyncio.Event) -> None:
    event.set()
