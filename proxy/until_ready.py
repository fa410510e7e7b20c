"""Common code of processes without a public listener: their own /metrics, and waiting for their models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import structlog
from aiohttp import web

from foreseen.proxy.assembly import Proxy
from foreseen.proxy.backend.served import ServedModel
from foreseen.telemetry.exposition import CONTENT_TYPE
from foreseen.web.http import SERVER, errors
from foreseen.web.listen import listen
from foreseen.web.runner import AppRunner

KNOWN_SECONDS = 5.0

log = structlog.get_logger()


@asynccontextmanager
async def scraped(proxy: Proxy, host: str, port: int | None, keepalive_seconds: float) -> AsyncIterator[None]:
    """Show what this process counts, where a port is given. Raises SetupError where it is taken."""
    if port is None:
        yield
        return

    async def metrics(_: web.Request) -> web.Response:
        text = await proxy.heartbeat.exposition()
        return web.Response(body=text, headers={"Server": SERVER, "Content-Type": CONTENT_TYPE})

    application = web.Application(middlewares=[errors])
    application.router.add_get("/metrics", metrics)
    runner = AppRunner(application, keepalive_timeout=keepalive_seconds)
    await runner.setup()
    try:
        await web.SockSite(runner, listen(host, port, "--metrics-port")).start()
        yield
    finally:
        await runner.cleanup()


async def known_models(models: Collection[ServedModel], stopping: asyncio.Event) -> None:
    """Wait a moment for every model: what comes before it would be put back for as long as one that fails."""
    until = asyncio.get_running_loop().time() + KNOWN_SECONDS
    while not all(served.ready for served in models) and not stopping.is_set():
        if asyncio.get_running_loop().time() > until:
            log.warning("not every model is ready; their jobs wait")
            return
        await asyncio.sleep(0.02)
