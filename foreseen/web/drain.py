"""Graceful shutdown: stop accepting, finish requests in progress, close.

It stops accepting, answers requests on open connections, and sends `Connection: close` with each reply (RFC 9112
section 9.6). Idle connections stay open for a while, since a client may be sending a request at this moment; those that
are still idle then are closed, as at the end of keep-alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from foreseen.web.connection import Connection
from foreseen.web.runner import AppRunner

LOOK_SECONDS = 0.02
"""Between two checks whether a connection is left, and before the listener closes."""
ORPHANED = signal.SIGUSR1
"""The signal that a draining child gets when its supervisor was killed. The kernel may send it several times, once for
each thread of the supervisor that adopts the child, so it cannot be SIGTERM, of which the second one means "at once".
Its default action ends a child that does not handle it yet."""
ORPHANED_SECONDS = 1.0
"""Without a connection for so long, a server whose supervisor was killed has no clients left."""

log = structlog.get_logger()


class Shutdown:
    """How this process ends: SIGTERM drains it; SIGINT or a second SIGTERM ends it at once. A killed supervisor
    (`ORPHANED`, possibly several times) drains it, too."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.at_once = asyncio.Event()
        self.is_orphaned = False
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(ORPHANED, self._orphaned)
        loop.add_signal_handler(signal.SIGTERM, self._gently)
        loop.add_signal_handler(signal.SIGINT, self._now)

    def _gently(self) -> None:
        if self.begun.is_set():
            self.at_once.set()
        self.begun.set()

    def _orphaned(self) -> None:
        self.is_orphaned = True
        self.begun.set()

    def _now(self) -> None:
        self.begun.set()
        self.at_once.set()

    async def unless_at_once(self, drained: Coroutine[Any, Any, None]) -> None:
        """Drain, until done or until an end at once is requested."""
        draining = asyncio.ensure_future(drained)
        hurrying = asyncio.ensure_future(self.at_once.wait())
        await asyncio.wait((draining, hurrying), return_when=asyncio.FIRST_COMPLETED)
        hurrying.cancel()
        draining.cancel()
        await asyncio.gather(draining, hurrying, return_exceptions=True)


def announce(descriptor: int | None) -> None:
    """Signal the supervisor that this process is ready, so that it may end the previous one."""
    if descriptor is not None:
        with contextlib.suppress(OSError):  # the supervisor no longer waits
            os.write(descriptor, b"1")
        os.close(descriptor)


async def serve_orphaned(runner: AppRunner, seconds: float) -> None:
    """Continue to serve until no connection has been open for `ORPHANED_SECONDS`, at most for `seconds`."""
    server, loop = runner.server, asyncio.get_running_loop()
    asked_at = loop.time()
    until = asked_at + seconds
    while server is not None and loop.time() < min(until, asked_at + ORPHANED_SECONDS):
        if server.connections:
            asked_at = loop.time()
        await asyncio.sleep(LOOK_SECONDS)


async def drain(runner: AppRunner, idle_seconds: float, busy_seconds: float) -> None:
    """Stop listening and let connections end: idle ones within the first, requests under way within both.

    What is left then, `runner.cleanup()` ends.
    """
    server = runner.server
    if server is None:
        return
    runner.announce_close()
    await asyncio.sleep(LOOK_SECONDS)  # the next turns of the event loop accept all waiting connections
    for site in list(runner.sites):
        await site.stop()
    await runner.accept_no_more()
    if not await _until(lambda: not server.connections, idle_seconds):
        for connection in server.connections:
            if isinstance(connection, Connection) and connection.between_requests:
                connection.force_close()
    if not await _until(lambda: not server.connections, busy_seconds):
        log.warning("requests in progress cancelled", connections=len(server.connections))


async def _until(done: Callable[[], bool], seconds: float) -> bool:
    """Whether a condition became true within `seconds`."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not done():
        if loop.time() >= end:
            return False
        await asyncio.sleep(LOOK_SECONDS)
    return True
