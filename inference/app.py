"""The model process: opens one model and serves it on a unix socket or a port.

It listens and is live at once; it is ready when the model has passed its self-test.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop
from aiohttp import web

from foreseen.gc_freeze import settle
from foreseen.inference.handlers import ModelRoutes
from foreseen.inference.row_connection import RowConnection
from foreseen.inference.served import LoadedModel
from foreseen.settings import InferenceSettings
from foreseen.telemetry.spans import SpanSink
from foreseen.telemetry.traces import traces_of
from foreseen.web.drain import Shutdown, announce, drain, serve_orphaned
from foreseen.web.runner import AppRunner

_SWITCH_SECONDS = 0.0005
"""CPython lets a busy thread keep the interpreter for 5 ms; an instance that has finished a run would wait that long
for its next batch while the event loop parses requests."""

_KEEPALIVE_SECONDS = 3600.0
"""The peer is a proxy that keeps a pool; a server that closes first makes it race."""

_SHUTDOWN_SECONDS = 30.0


async def start(settings: InferenceSettings, served: LoadedModel, spans: SpanSink | None = None) -> AppRunner:
    """Listen. The model opens separately; `cleanup()` of what this returns stops listening and finishes requests."""
    routes = ModelRoutes(served, settings, spans)
    runner = AppRunner(
        routes.application(),
        lambda manager, **options: RowConnection(manager, routes, **options),
        handler_cancellation=True,  # a caller that hangs up gives its place in the queue back
        keepalive_timeout=_KEEPALIVE_SECONDS,
        shutdown_timeout=_SHUTDOWN_SECONDS,
    )
    await runner.setup()
    site: web.BaseSite
    if settings.uds is not None:
        site = web.UnixSite(runner, str(settings.uds))
    else:
        site = web.TCPSite(runner, settings.host, settings.port)
    await site.start()
    return runner


async def _serve(settings: InferenceSettings) -> None:
    served = LoadedModel(settings)
    ending, traces = Shutdown(), traces_of("foreseen-model")
    runner = await start(settings, served, traces)
    opening = asyncio.ensure_future(served.open())
    waiting = asyncio.ensure_future(ending.begun.wait())
    try:
        await asyncio.wait((opening, waiting), return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            opening.result()
            settle()
            announce(settings.ready_fd)
            await waiting
            if ending.is_orphaned:  # the remaining proxies still send requests
                await ending.unless_at_once(serve_orphaned(runner, settings.drain_seconds + settings.deadline_seconds))
            await ending.unless_at_once(drain(runner, settings.drain_seconds, settings.deadline_seconds))
    finally:
        await runner.cleanup()
        await served.close()
        if traces is not None:
            await traces.close()


def serve(settings: InferenceSettings) -> None:
    """Serve one model until SIGTERM (then drain) or SIGINT. Raises SetupError where it cannot be opened."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    uvloop.run(_serve(settings))
