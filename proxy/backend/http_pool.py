"""HTTP over a unix socket: requests → replies on kept-alive connections, HTTP/1.1 as our own model process speaks it.

A general HTTP client costs more than the model's answer to a short row (aiohttp's 150 µs of CPU, this 25 µs; see
docs/lab-notebook.md). The pool understands little on purpose: a status line and headers that end within 16 KiB, exactly
one Content-Length, no transfer coding. It refuses anything else and closes the connection, so a reply never runs into
the next one.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping

from msgspec import Struct

from foreseen.connection_pool import ConnectionPool, PooledConnection

MAX_HEAD_BYTES = 16 * 1024
_END = b"\r\n\r\n"
_BINARY_HEAD = re.compile(
    rb"HTTP/1\.1 200 OK\r\nServer: foreseen\r\nContent-Type: application/octet-stream\r\n"
    rb"Inference-Header-Content-Length: ([0-9]{1,12})\r\nContent-Length: ([0-9]{1,12})\r\nDate: [ -~]*\r\n\r\n"
)
"""The head of an answer as our model process writes it. A match takes a tenth of reading it line by line."""


class HttpExchangeError(Exception):
    """An exchange that ended without a reply."""


class NotReached(HttpExchangeError):
    """There is no connection: nothing was sent."""


class Broken(HttpExchangeError):
    """The connection ended after the request was sent."""


class Unreadable(HttpExchangeError):
    """The bytes that came are not a reply as this pool understands it."""


class HttpReply(Struct, frozen=True):
    """A reply. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    json_length: int | None = None
    """Of an ordinary answer of our model process, whose headers say nothing else."""


class HttpConnection(PooledConnection[HttpReply]):
    """Reads one reply at a time."""

    not_connected, broken = NotReached, Broken

    def __init__(self, pool: HttpPool) -> None:
        super().__init__(pool)  # type: ignore[arg-type] # a pool of a subclass of connections
        self._parts: list[bytes] = []
        self._missing = 0
        self._status = 0
        self._headers: dict[str, str] = {}

    def received(self, data: bytes, waiting: asyncio.Future[HttpReply]) -> None:
        try:
            reply = self._read(data)
        except (ValueError, KeyError, UnicodeDecodeError):
            waiting.set_exception(Unreadable())
            return
        if reply is not None:
            waiting.set_result(reply)

    def _read(self, data: bytes) -> HttpReply | None:
        """The reply where it is whole now. Raises ValueError or KeyError where it is none."""
        if not self._missing:
            known = None if self._parts else _BINARY_HEAD.match(data)
            if known is not None and len(data) - known.end() == int(known[2]):
                head = {"inference-header-content-length": known[1].decode()}
                return HttpReply(200, head, data[known.end() :], int(known[1]))
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


class HttpPool(ConnectionPool[HttpConnection]):
    """The connections to one unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    async def post(self, target: str, headers: Mapping[str, str], body: bytes) -> HttpReply:
        """One exchange. Raises NotReached, Broken, Unreadable. The caller bounds its time, by cancelling it."""
        lines = [f"POST {target} HTTP/1.1\r\nHost: model\r\nContent-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return await self.exchange("\r\n".join((*lines, "\r\n")).encode("latin-1"), body)

    async def exchange(self, head: bytes, body: bytes, seconds: float | None = None) -> HttpReply:
        """The same with a head that is written already; raises TimeoutError after so many seconds."""
        connection = self.take_idle() or await self.connect()
        reply = await connection.exchange((head, body), seconds)
        if reply.headers.get("connection", "").lower() != "close" and connection.is_drained:
            self.put_back(connection)
        else:
            connection.close()
        return reply

    async def connect(self) -> HttpConnection:
        try:
            _, connection = await asyncio.get_running_loop().create_unix_connection(
                lambda: HttpConnection(self), self._path
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
