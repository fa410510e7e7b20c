"""Requests → replies over kept-alive connections to a unix socket: HTTP/1.1 as our own model process speaks it.

A general HTTP client costs more than the model's answer to a short row (aiohttp's 150 µs of CPU, this 25 µs; see
docs/performance.md). What is understood is little on purpose: a status line and headers that end within 16 KiB, exactly
one Content-Length, no transfer coding. Anything else is refused and its connection closed, so a reply never runs into
the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import cast

from msgspec import Struct

MAX_HEAD_BYTES = 16 * 1024
_END = b"\r\n\r\n"


class LineError(Exception):
    """An exchange that did not come to a reply."""


class NotReached(LineError):
    """There is no connection: nothing was sent."""


class Broken(LineError):
    """The connection ended after the request was sent."""


class Unreadable(LineError):
    """What came is not a reply as we understand it."""


class HttpReply(Struct, frozen=True):
    """A reply. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _HttpConnection(asyncio.Protocol):
    """One request at a time. `idle` once the reply is whole and another request may follow."""

    def __init__(self, line: HttpPool) -> None:
        self._line = line
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[HttpReply] | None = None
        self._parts: list[bytes] = []
        self._missing = 0
        self._status = 0
        self._headers: dict[str, str] = {}
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are of no common class

    async def ask(self, head: bytes, body: bytes) -> HttpReply:
        """Raises Broken, Unreadable. Whoever is cancelled meanwhile takes the connection along."""
        if self._lost or self._transport is None:
            raise NotReached
        waiting = self._waiting = asyncio.get_running_loop().create_future()
        self._transport.writelines((head, body))
        try:
            told: HttpReply = await waiting
        except BaseException:
            self.close()
            raise
        self._waiting = None
        again = told.headers.get("connection", "").lower() != "close" and not self._transport.get_write_buffer_size()
        if again and not self._lost:
            self._line.park(self)
        else:
            self.close()
        return told

    def data_received(self, data: bytes) -> None:
        waiting = self._waiting
        if waiting is None or waiting.done():  # nobody has asked for this
            self.close()
            return
        try:
            told = self._read(data)
        except (ValueError, KeyError, UnicodeDecodeError):
            waiting.set_exception(Unreadable())
            return
        if told is not None:
            waiting.set_result(told)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._line.forget(self)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(Broken())

    def close(self) -> None:
        self._lost = True
        self._line.forget(self)
        if self._transport is not None:
            self._transport.abort()

    def _read(self, data: bytes) -> HttpReply | None:
        """The reply where it is whole now. Raises ValueError or KeyError where it is none."""
        if not self._missing:
            data = b"".join((*self._parts, data))
            end = data.find(_END)
            if end < 0 or end > MAX_HEAD_BYTES:
                if len(data) > MAX_HEAD_BYTES:
                    raise ValueError
                self._parts = [data]
                return None
            self._status, self._headers = _head(data[:end])
            self._missing = _length(self._headers["content-length"])
            self._parts, data = [], data[end + len(_END) :]
        self._parts.append(data)
        self._missing -= len(data)
        if self._missing > 0:
            return None
        if self._missing < 0:
            raise ValueError
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        return HttpReply(self._status, self._headers, body)


class HttpPool:
    """The connections to one socket: as many as there are requests at a time, the latest used first."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._idle: dict[_HttpConnection, None] = {}
        self._closed = False

    def __repr__(self) -> str:
        return f"<Line {self._path} {len(self._idle)} idle>"

    async def post(self, target: str, headers: Mapping[str, str], body: bytes) -> HttpReply:
        """One exchange. Raises NotReached, Broken, Unreadable. The caller bounds its time, by cancelling it."""
        lines = [f"POST {target} HTTP/1.1\r\nHost: model\r\nContent-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join((*lines, "\r\n")).encode("latin-1")
        connection = self._idle.popitem()[0] if self._idle else await self._connected()
        return await connection.ask(head, body)

    def park(self, connection: _HttpConnection) -> None:
        if self._closed:
            connection.close()
        else:
            self._idle[connection] = None

    def forget(self, connection: _HttpConnection) -> None:
        self._idle.pop(connection, None)

    def close(self) -> None:
        """Close what is idle now, and what is under way when it is answered."""
        self._closed = True
        for connection in list(self._idle):
            connection.close()

    async def _connected(self) -> _HttpConnection:
        try:
            _, connection = await asyncio.get_running_loop().create_unix_connection(
                lambda: _HttpConnection(self), self._path
            )
        except OSError:
            raise NotReached from None
        return connection


def _head(raw: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = raw.decode("latin-1").split("\r\n")
    if not first.startswith("HTTP/1.1 ") or not first[9:12].isdigit() or first[12:13] not in ("", " "):
        raise ValueError
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or not name or name in headers or name != name.strip():
            raise ValueError  # also a folded line, and a length that is given twice
        headers[name] = value.strip()
    if "transfer-encoding" in headers:
        raise ValueError
    return int(first[9:12]), headers


def _length(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise ValueError
    return int(text)
