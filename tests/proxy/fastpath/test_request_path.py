"""What one request passes, from bytes to bytes: docs/architecture.md lists it, and the running code is held to that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

import foreseen
from foreseen.proxy.fastpath.fast_connection import FastConnection
from foreseen.proxy.fastpath.known_heads import KnownHeads
from foreseen.web.connection import AppRunner
from tests.proxy.fastpath.test_responder import ASK, System

ROOT = Path(foreseen.__file__).resolve().parent.parent
MAX_FILES, MAX_TYPES = 7, 18


@asynccontextmanager
async def serving(system: System) -> AsyncIterator[int]:
    """The responder behind connections; its port."""
    heads = KnownHeads(body_bytes=1_000_000)

    async def answer(asked: web.Request) -> web.Response:
        loop = asyncio.get_running_loop()
        reply = await system.responder.answer(ASK, await asked.read(), 0.0, loop.time() + 20)
        assert isinstance(asked.protocol, FastConnection)
        asked.protocol.learn(asked, ASK, reply)
        return web.Response(body=reply.body)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = AppRunner(app, lambda manager, **options: FastConnection(manager, system.responder, heads, **options))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
