"""One request, again and again, its head in a packet of its own before its body → how long each took.

`wrk` sends a request in one piece. Plain sockets, one thread.
"""

from __future__ import annotations

import select
import socket
import time

import numpy as np

PATIENCE_SECONDS = 10.0


class Lines:
    """Connections that each have at most one request under way."""

    def __init__(self, address: str, count: int, request: bytes) -> None:
        host, port = address.removeprefix("http://").split("/", 1)[0].rsplit(":", 1)
        end = request.index(b"\r\n\r\n") + 4
        self._parts = request[:end], request[end:]
        self._poll = select.epoll()
        self._open = {}
        for _ in range(count):
            line = socket.create_connection((host, int(port)), PATIENCE_SECONDS)
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open[line.fileno()] = line
            self._poll.register(line, select.EPOLLIN)
        self.length = self._first()

    def _first(self) -> int:
        """How long a reply is; all of them are equally long within a second or two."""
        line = next(iter(self._open.values()))
        self.ask(line.fileno())
        reply = line.recv(1 << 20)
        head, _, body = reply.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"bench: {reply[:400]!r}")
        length = int(head.lower().split(b"\r\ncontent-length:", 1)[1].split(b"\r\n", 1)[0])
        while len(body) < length:
            body += line.recv(1 << 20)
        return length

    @property
    def ids(self) -> list[int]:
        return list(self._open)

    def ask(self, line: int) -> None:
        for part in self._parts:
            self._open[line].send(part)

    def answered(self, seconds: float) -> list[int]:
        """The connections whose reply is here."""
        ready = []
        for line, _ in self._poll.poll(max(0.0, seconds)):
            reply = self._open[line].recv(1 << 16)
            if not reply.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"bench: {reply[:400]!r}")
            missing = reply.index(b"\r\n\r\n") + 4 + self.length - len(reply)
            while missing > 0:
                missing -= len(self._open[line].recv(1 << 16))
            ready.append(line)
        return ready

    def close(self) -> None:
        self._poll.close()
        for line in self._open.values():
            line.close()


def as_fast_as_answered(lines: Lines, seconds: float) -> tuple[float, float, float]:
    """Requests per second, p50 and p99 in seconds."""
    clock, took, began = time.perf_counter, [], {}
    start = clock()
    for line in lines.ids:
        began[line] = clock()
        lines.ask(line)
    while clock() - start < seconds:
        for line in lines.answered(1.0):
            now = clock()
            took.append(now - began[line])
            began[line] = now
            lines.ask(line)
    whole, left = clock() - start, len(lines.ids)
    while left:
        left -= len(lines.answered(1.0))
    return len(took) / whole, float(np.quantile(took, 0.5)), float(np.quantile(took, 0.99))
