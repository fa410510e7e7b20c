"""Runs an aiohttp application over our connections, and accepts all waiting connections in one event-loop turn."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from foreseen.web.connection import Connection
from foreseen.web.head_checks import checked
from foreseen.web.limits import Gate, ListenerLimits

ACCEPTED_A_TURN = 64
"""Most connections accepted in one turn; each costs 0.1 ms."""
TAKEN_IN_SECONDS = 1.0
"""Most time from accepting a connection to serving it; usually a turn or two."""

Connect = Callable[..., RequestHandler]


class AppRunner(web.AppRunner):
    """Runs an application without an access log. Bodies stay as they came, for `read_body` to decode, and what is not
    valid HTTP gets the same kind of error as everything else."""

    def __init__(
        self, app: web.Application, connect: Connect | None = None, gate: Gate | None = None, **options: Any
    ) -> None:
        # aiohttp accepts a truncated gzip body, and refuses br and zstd before a handler can.
        super().__init__(app, access_log=None, auto_decompress=False, **options)
        self._connect = connect or Connection
        self._gate = Gate(ListenerLimits()) if gate is None else gate  # an empty gate is falsy

    def announce_close(self) -> None:
        """From now on every answer carries `Connection: close`."""
        assert isinstance(self.server, _Server)
        self.server.draining = True

    def accept_all(self, listener: socket.socket) -> None:
        """Accept all connections that wait at this listener in one turn of the event loop, not one per turn."""
        assert isinstance(self.server, _Server)
        self.server.listener = listener

    async def accept_no_more(self) -> None:
        """Wait until every accepted connection is registered. Later ones on the same socket go to another process."""
        assert isinstance(self.server, _Server)
        self.server.listener = None
        if self.server.taken:
            await asyncio.wait(self.server.taken, timeout=TAKEN_IN_SECONDS)

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            self._connect,
            checked(made.request_handler),
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            gate=self._gate,
            **made._kwargs,  # noqa: SLF001 - aiohttp has no way to name the class of connections
        )


class _Server(web.Server):
    """`draining`: from now on every reply is the last of its connection, see `drain.py`. `taken`: tasks of accepted
    sockets that are not yet connections.

    libuv accepts one connection per turn of the event loop. Under load, the last of 64 simultaneous connections waited
    for 64 turns, half a second; so accepting the first one accepts the others, too.
    """

    def __init__(self, connect: Connect, handler: Any, **options: Any) -> None:
        super().__init__(handler, **options)
        self._connect = connect
        self.draining = False
        self.listener: socket.socket | None = None
        self._looking = False
        self.taken: set[asyncio.Task[None]] = set()

    def __call__(self) -> RequestHandler:
        if self.listener is not None and not self._looking:
            self._looking = True
            self._loop.call_soon(self._accept_more)
        return self._connect(self, loop=self._loop, **self._kwargs)

    def _accept_more(self) -> None:
        self._looking = False
        listener = self.listener
        if listener is None:
            return
        for _ in range(ACCEPTED_A_TURN):
            try:
                accepted, _ = listener.accept()
            except OSError:  # none waits, it is closed, or descriptors are exhausted, which libuv handles
                return
            accepted.setblocking(False)
            task = self._loop.create_task(self._take(accepted))
            self.taken.add(task)
            task.add_done_callback(self.taken.discard)

    async def _take(self, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self, accepted)
        except OSError:
            accepted.close()  # the client has disconnected
