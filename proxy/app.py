"""Runs a proxy process: listens, serves until it is asked to end, then drains (graceful shutdown)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

import structlog
import uvloop
from aiohttp import web

from foreseen.gc_freeze import settle
from foreseen.proxy.assembly import DRAIN_SECONDS, Proxy
from foreseen.proxy.from_settings import upstream_for
from foreseen.proxy.grpc_listener import started_grpc
from foreseen.settings import ProxySettings
from foreseen.tasks import all_of
from foreseen.web.drain import Shutdown, announce, drain
from foreseen.web.listen import BACKLOG, inherited, listen, listen_admin, warn_of_open_listener
from foreseen.web.runner import AppRunner
from foreseen.web.tls import TlsFiles, TlsSite

log = structlog.get_logger()

KNOWN_SECONDS = 1.0
"""How long a worker waits for its models before it accepts: until then it would refuse their requests. A worker that
replaces another one waits until its models are known."""
_SWITCH_SECONDS = 0.0005
"""CPython lets a busy thread keep the interpreter for 5 ms: a scrape that is rendered in a thread, or a large body that
is parsed in one, would hold every hit up for so long."""


async def _run(settings: ProxySettings) -> None:
    ending = Shutdown()
    proxy = Proxy(settings, await upstream_for(settings))
    runner = AppRunner(
        proxy.application,
        proxy.connect,
        proxy.gate,
        handler_cancellation=False,
        keepalive_timeout=settings.keepalive_seconds,
        shutdown_timeout=DRAIN_SECONDS,
    )
    async with proxy.running():
        if settings.ready_fd is not None:
            await proxy.known()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(proxy.known(), KNOWN_SECONDS)
        await runner.setup()
        listener = listen(settings.host, settings.port) if settings.fd is None else inherited(settings.fd)
        if settings.fd is None:  # else the supervisor has said so
            warn_of_open_listener(settings)
        await _start(runner, listener, proxy.tls)
        operators = AppRunner(proxy.admin, keepalive_timeout=settings.keepalive_seconds)
        await operators.setup()
        try:
            admin = listen_admin(settings) if settings.admin_fd is None else inherited(settings.admin_fd)
            if proxy.tls is None or admin.family == socket.AF_UNIX:
                await web.SockSite(operators, admin).start()
            else:
                await TlsSite(operators, admin, proxy.tls).start()
        except OSError as error:  # a data directory that is read-only: all but operators' routes works
            log.warning("no listener for operators", why=error.strerror)
        grpc_server = await started_grpc(proxy)
        settle()
        announce(settings.ready_fd)
        log.info("listening", host=settings.host, port=settings.port, models=list(proxy.served))
        try:
            await ending.begun.wait()
            proxy.answers.close()  # a cached reply says nothing of the end
            if proxy.jobs is not None:
                await proxy.jobs.news.close()
            draining = [drain(runner, settings.drain_seconds, settings.deadline_seconds)]
            if grpc_server is not None:
                draining.append(grpc_server.drain(settings.drain_seconds, settings.deadline_seconds))
            await ending.unless_at_once(all_of(draining))
        finally:
            await operators.cleanup()
            if grpc_server is not None:
                await grpc_server.close(DRAIN_SECONDS)
            await runner.cleanup()


async def _start(runner: AppRunner, listener: socket.socket, tls: TlsFiles | None) -> None:
    """Serve on the listener, over TLS where the settings have a certificate."""
    if tls is not None:
        await TlsSite(runner, listener, tls).start()
        return
    await web.SockSite(runner, listener, backlog=BACKLOG).start()
    runner.accept_all(listener)


def run(settings: ProxySettings) -> None:
    """Serve until SIGTERM (then drain) or SIGINT. Raises SetupError where something is not as it must be."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    uvloop.run(_run(settings))
