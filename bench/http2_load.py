"""Unary gRPC calls over HTTP/2 as fast as one core can send them: prepared frames out, frame heads in.

A gRPC library as the client costs as much as the server that is measured. This sends the same HEADERS and DATA each
time, with literal header fields (RFC 7541 section 6.2.2), so that nothing of the connection's state is in them. Of what
comes it reads frame heads, answers PING and SETTINGS, and takes a stream for done at its END_STREAM.
`python -m bench.http2_load HOST:PORT PATH FILE CONNECTIONS STREAMS SECONDS` prints requests/s, p50 and p99.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
WINDOW = 2**30


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def header_block(authority: str, path: str) -> bytes:
    """Literal fields without indexing and without Huffman codes."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": authority, "te": "trailers"}
    fields["content-type"] = "application/grpc"
    made = b""
    for name, value in fields.items():
        made += b"\x00" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
    return made


class Load:
    """One connection with so many calls under way."""

    def __init__(self, address: str, path: str, body: Callable[[], bytes], streams: int) -> None:
        host, _, port = address.rpartition(":")
        self._address, self._streams = (host, int(port)), streams
        self._headers, self._body = header_block(address, path), body
        self.took: list[float] = []
        self.failed = 0
        self._finishing = False
        self._connect()

    def _connect(self) -> None:
        self.socket = socket.create_connection(self._address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        settings = frame(SETTINGS, 0, 0, struct.pack(">HI", 4, WINDOW))
        self.socket.sendall(PREFACE + settings + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW)))
        self._next, self._held, self._started = 1, b"", dict[int, float]()
        self._received, self._leaving = 0, False
        self.socket.sendall(b"".join(self._call() for _ in range(self._streams)))

    def _call(self) -> bytes:
        stream, self._next = self._next, self._next + 2
        body = self._body()
        self._started[stream] = time.perf_counter()
        message = b"\x00" + struct.pack(">I", len(body)) + body
        return frame(HEADERS, END_HEADERS, stream, self._headers) + frame(DATA, END_STREAM, stream, message)

    def receive(self) -> None:
        """Read what there is, and send what follows from it."""
        held, at, out = self._held + self.socket.recv(1 << 18), 0, []
        now = time.perf_counter()
        while len(held) - at >= 9:
            start = at + 9
            end = start + int.from_bytes(held[at : at + 3], "big")
            if len(held) < end:
                break
            out.append(self._frame(held[at + 3], held[at + 4], held[at + 5 : start], held[start:end], now))
            at = end
        self._held = held[at:]
        if self._received > WINDOW // 4:
            out.append(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._received)))
            self._received = 0
        answer = b"".join(out)
        if answer:
            self.socket.sendall(answer)
        if self._leaving and not self._started:
            self.socket.close()
            if not self._finishing:
                self._connect()

    def _frame(self, kind: int, flags: int, stream: bytes, payload: bytes, now: float) -> bytes:
        """What is to be sent because of one frame."""
        if kind == DATA:
            self._received += len(payload)
        elif (kind == HEADERS and flags & END_STREAM) or kind == RST_STREAM:
            self.took.append(now - self._started.pop(int.from_bytes(stream, "big")))
            self.failed += kind == RST_STREAM
            return b"" if self._leaving else self._call()
        elif kind == PING and not flags & ACK:
            return frame(PING, ACK, 0, payload)
        elif kind == SETTINGS and not flags & ACK:
            return frame(SETTINGS, ACK, 0, b"")
        elif kind == GOAWAY:
            self._leaving = True
        return b""

    def finish(self) -> None:
        """Wait for the calls that are under way, and close: Triton 2.51 ends with SIGSEGV where calls are cancelled."""
        self._leaving = self._finishing = True
        while self._started:
            self.receive()


def run(loads: list[Load], seconds: float) -> tuple[float, float, float]:
    """Requests/s, p50 and p99 in seconds."""
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        for one in loads:
            if select.select([one.socket], [], [], 0 if len(loads) > 1 else 1)[0]:
                one.receive()
    for one in loads:
        one.finish()
    took = sorted(second for one in loads for second in one.took)
    assert not any(one.failed for one in loads), "calls were reset"
    return len(took) / seconds, took[len(took) // 2], took[int(len(took) * 0.99)]


def main() -> None:
    address, path, file, connections, streams, seconds = sys.argv[1:]
    content = Path(file).read_bytes()
    loads = [Load(address, path, lambda: content, int(streams)) for _ in range(int(connections))]
    print(json.dumps(run(loads, float(seconds))))


if __name__ == "__main__":
    main()
