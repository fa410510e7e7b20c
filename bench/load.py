"""Requests → how long each took: a load that costs little itself, for traffic of which no request comes twice.

`wrk` repeats one body or pays for a Lua script; here bodies are made beforehand and sent by plain sockets. Latency
counts from just before a request is written until its last byte is read.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Address = str
"""`unix:/path` or `http://host:port`."""
TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Took:
    """Seconds of every request, and of all together."""

    each: tuple[float, ...]
    whole: float

    @property
    def rate(self) -> float:
        return len(self.each) / self.whole

    def quantile(self, share: float) -> float:
        return float(np.quantile(self.each, share))


def post(path: str, body: bytes, header_length: int | None = None, headers: str = "") -> bytes:
    """The bytes of a whole request; with a `header_length` its tensors are binary."""
    kind = "application/json"
    if header_length is not None:
        kind = f"application/octet-stream\r\nInference-Header-Content-Length: {header_length}"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode() + body


def connect(address: Address) -> socket.socket:
    if address.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(TIMEOUT_SECONDS)
        connection.connect(address.removeprefix("unix:"))
        return connection
    host, port = address.removeprefix("http://").rsplit(":", 1)
    connection = socket.create_connection((host, int(port)), TIMEOUT_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


class _Reply:
    """Collects one reply; `whole` once its last byte is there. Anything but 200 ends the bench."""

    __slots__ = ("got", "wants")

    def __init__(self) -> None:
        self.got = b""
        self.wants = 0

    def feed(self, part: bytes) -> bool:
        if not part:
            raise SystemExit("bench: the connection was closed")
        self.got += part
        if not self.wants:
            end = self.got.find(b"\r\n\r\n")
            if end < 0:
                return False
            head = self.got[:end].lower()
            if not head.startswith(b"http/1.1 200"):
                raise SystemExit(f"bench: {self.got[:400]!r}")
            self.wants = end + 4 + int(head.split(b"\r\ncontent-length:", 1)[1].split(b"\r\n", 1)[0])
        return len(self.got) >= self.wants


def in_turn(address: Address, requests: Sequence[bytes], replies: list[bytes] | None = None) -> Took:
    """One client that asks when it has been answered."""
    each = []
    with connect(address) as connection:
        began = time.perf_counter()
        for request in requests:
            reply = _Reply()
            started = time.perf_counter()
            connection.sendall(request)
            while not reply.feed(connection.recv(1 << 20)):
                pass
            each.append(time.perf_counter() - started)
            if replies is not None:
                replies.append(reply.got)
        return Took(tuple(each), time.perf_counter() - began)


def at_once(address: Address, requests: Sequence[bytes], clients: int) -> Took:
    """So many clients, each of which asks when it has been answered, until no request is left."""
    left = list(reversed(requests))
    each: list[float] = []
    with selectors.EpollSelector() as selector:
        asking: dict[socket.socket, tuple[_Reply, float]] = {}

        def ask(connection: socket.socket) -> None:
            asking[connection] = _Reply(), time.perf_counter()
            connection.sendall(left.pop())

        began = time.perf_counter()
        for _ in range(min(clients, len(requests))):
            connection = connect(address)
            selector.register(connection, selectors.EVENT_READ)
            ask(connection)
        while asking:
            for key, _ in selector.select(TIMEOUT_SECONDS):
                readable = key.fileobj
                assert isinstance(readable, socket.socket)
                connection = readable
                reply, started = asking[connection]
                if not reply.feed(connection.recv(1 << 20)):
                    continue
                each.append(time.perf_counter() - started)
                if left:
                    ask(connection)
                else:
                    del asking[connection]
                    selector.unregister(connection)
                    connection.close()
        return Took(tuple(each), time.perf_counter() - began)
