"""Kept-alive connections to one server, each with one request at a time.

Subclasses speak the protocols: HTTP/1.1 in `proxy/backend/http_pool.py`, Redis in `stores/redis_pool.py`.
A connection leaves the pool for one exchange and returns when its reply is complete, so that no reply can be taken for
another request's. In every other case it is closed: bytes without a request, a malformed reply, a cancelled caller.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar, cast

LOOK_AGAIN_SECONDS = 0.001
"""After a long turn, the event loop fires timers before it reads sockets (libuv's order), although the reply may have
arrived: after the budget the sockets are read once more. Otherwise 10,000 concurrent callers opened the breaker."""

Reply = TypeVar("Reply")


class PooledConnection(asyncio.Protocol, ABC, Generic[Reply]):
    """One exchange at a time. A subclass reads the reply in `received`."""

    not_connected: type[Exception] = ConnectionError
    """Raised where there is no connection, so that nothing was sent."""
    broken: type[Exception] = ConnectionError
    """Raised where the connection ends after the request was sent."""

    def __init__(self, pool: ConnectionPool[PooledConnection[Reply]]) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Reply] | None = None

    @property
    def is_connected(self) -> bool:
        return self._transport is not None

    @property
    def is_drained(self) -> bool:
        """Whether the connection stands and all bytes of the request have left."""
        return self._transport is not None and not self._transport.get_write_buffer_size()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports have no common base class

    async def exchange(self, request: Sequence[bytes], seconds: float | None = None) -> Reply:
        """Send a request and wait for its reply. The caller puts the connection back into the pool.

        Raises TimeoutError after `seconds`, `not_connected`, `broken`, and what `received` failed with. The connection
        is closed then, and where the caller is cancelled.
        """
        transport = self._transport
        if transport is None:
            raise self.not_connected
        loop = asyncio.get_running_loop()
        waiting = self._waiting = loop.create_future()
        transport.writelines(request)
        late = None
        if seconds is not None:
            late = loop.call_later(seconds, loop.call_later, LOOK_AGAIN_SECONDS, _time_out, waiting)
        try:
            reply: Reply = await waiting
        except BaseException:
            self.close()
            raise
        finally:
            if late is not None:
                late.cancel()
            self._waiting = None
        return reply

    def data_received(self, data: bytes) -> None:
        waiting = self._waiting
        if waiting is None or waiting.done():  # bytes without a request
            self.close()
        else:
            self.received(data, waiting)

    @abstractmethod
    def received(self, data: bytes, waiting: asyncio.Future[Reply]) -> None:
        """Read a piece of the reply; end `waiting` once the reply is whole or cannot be one."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._pool.forget(self)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(self.broken())

    def close(self) -> None:
        self._pool.forget(self)
        if self._transport is not None:
            self._transport.abort()
            self._transport = None


def _time_out(waiting: asyncio.Future[Reply]) -> None:
    if not waiting.done():
        waiting.set_exception(TimeoutError())


Connection = TypeVar("Connection", bound=PooledConnection)  # type: ignore[type-arg] # whatever its replies are


class ConnectionPool(ABC, Generic[Connection]):
    """The connections to one server: as many as there are exchanges at a time, the latest used first."""

    def __init__(self) -> None:
        self._idle: dict[Connection, None] = {}
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._idle)} idle>"

    @abstractmethod
    async def connect(self) -> Connection:
        """A new connection."""

    @property
    def has_idle(self) -> bool:
        return bool(self._idle)

    def take_idle(self) -> Connection | None:
        """The connection that was used last, None where none is idle."""
        return self._idle.popitem()[0] if self._idle else None

    def put_back(self, connection: Connection) -> None:
        """Let the next exchange use the connection, unless it or the pool was closed meanwhile."""
        if self._is_closed or not connection.is_connected:
            connection.close()
        else:
            self._idle[connection] = None

    def forget(self, connection: Connection) -> None:
        self._idle.pop(connection, None)

    def close_idle(self) -> None:
        """Close what is idle; the next exchanges make new connections."""
        for connection in list(self._idle):
            connection.close()

    def close(self) -> None:
        """Close what is idle now, and each connection under way when its exchange has ended."""
        self._is_closed = True
        self.close_idle()
