"""Commands → replies over kept-alive connections to one Redis, pipelined, within a budget of time.

redis-py stands for everything else: TLS, Sentinel, Cluster, scripts. For the two commands of every request its client
costs more than Redis and the way there: MGET of one key 66 µs of CPU and 107 µs in all, SET 108 and 174; here 9 and 22,
10 and 23 (2 cores, unix socket). One call at a time has a connection, so no reply can be taken for another's; whatever
is not exactly as many replies as commands, in time, ends its connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import hiredis

LOOK_AGAIN_SECONDS = 0.001
"""An event loop that was busy fires its timers before it looks at its sockets (libuv's order), where the reply may have
lain for long: when the budget is over it looks once more. Ten thousand callers at once opened the breaker otherwise."""

Words = tuple[Any, ...]
"""A command: bytes, str, int."""
Open = Callable[[Callable[[], asyncio.BaseProtocol]], Awaitable[tuple[asyncio.BaseTransport, asyncio.BaseProtocol]]]
"""Opens a connection for a protocol."""


class NotResp(ConnectionError):
    """What came is not the protocol, or not an answer to what was asked."""


class _RedisConnection(asyncio.Protocol):
    def __init__(self, wire: RedisPool) -> None:
        self._wire = wire
        self._reader = hiredis.Reader(replyError=wire.error)
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[list[Any]] | None = None
        self._replies: list[Any] = []
        self._wanted = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    async def ask(self, packed: bytes, count: int) -> list[Any]:
        """The replies to `count` commands. Whoever stops waiting takes the connection along."""
        if self._transport is None:
            raise ConnectionError
        loop = asyncio.get_running_loop()
        waiting = self._waiting = loop.create_future()
        self._replies, self._wanted = [], count
        self._transport.write(packed)
        late = loop.call_later(self._wire.seconds, loop.call_later, LOOK_AGAIN_SECONDS, _give_up, waiting)
        try:
            replies: list[Any] = await waiting
        except BaseException:
            self.close()
            raise
        finally:
            late.cancel()
            self._waiting = None
        return replies

    def data_received(self, data: bytes) -> None:
        waiting = self._waiting
        if waiting is None or waiting.done():
            self.close()
            return
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:  # RESP2 has no booleans
                self._replies.append(reply)
        except hiredis.HiredisError:
            waiting.set_exception(NotResp())
            return
        if len(self._replies) > self._wanted:
            waiting.set_exception(NotResp())
        elif len(self._replies) == self._wanted:
            waiting.set_result(self._replies)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._wire.forget(self)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionError())

    def close(self) -> None:
        self._wire.forget(self)
        if self._transport is not None:
            self._transport.abort()
            self._transport = None


def _give_up(waiting: asyncio.Future[list[Any]]) -> None:
    if not waiting.done():
        waiting.set_exception(TimeoutError())


class RedisPool:
    """The connections to one Redis: as many as there are calls at a time, the latest used first."""

    def __init__(
        self, opened: Open, hello: Sequence[Words], seconds: float, error: Callable[[str], Exception] = ConnectionError
    ) -> None:
        """`hello` goes first over each connection; `error` makes an exception of what Redis says after `-`."""
        self.seconds = seconds
        self.error = error
        self._open = opened
        self._hello = hello
        self._idle: dict[_RedisConnection, None] = {}

    def __repr__(self) -> str:
        return f"<Wire {len(self._idle)} idle>"

    async def ask(self, commands: Sequence[Words]) -> list[Any]:
        """One reply to each, in order; an exception in its place where Redis refused it.

        Raises TimeoutError after the budget, OSError where the connection failed, what `error` made of a refused hello.
        """
        packed = b"".join(map(hiredis.pack_command, commands))
        connection = self._idle.popitem()[0] if self._idle else await self._connected()
        replies = await connection.ask(packed, len(commands))
        self._idle[connection] = None
        return replies

    def forget(self, connection: _RedisConnection) -> None:
        self._idle.pop(connection, None)

    def close(self) -> None:
        """Close what is idle; what is asked is closed by those who ask."""
        for connection in list(self._idle):
            connection.close()

    async def _connected(self) -> _RedisConnection:
        async with asyncio.timeout(self.seconds):
            _, protocol = await self._open(lambda: _RedisConnection(self))
        connection = cast("_RedisConnection", protocol)
        if self._hello:
            for reply in await connection.ask(b"".join(map(hiredis.pack_command, self._hello)), len(self._hello)):
                if isinstance(reply, Exception):
                    connection.close()
                    raise reply
        return connection
