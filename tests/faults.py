"""A proxy between a client and a server that does to the bytes in between what networks and broken servers do to them.

It lives in a thread of its own, so a test that blocks does not block it. What a test sets counts from the next byte on,
also on connections that are open already. All faults but `black_hole` and those that end connections are done to what
the server says: `swap`, `shift` and `cut_after_replies` read it as RESP, the others as bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHUNK_BYTES = 65536
HELD_CHUNKS = 64
"""Chunks that are late on one connection; then the server is no longer read, as with any network."""


@dataclass
class Faults:
    """What happens to every connection. Times in seconds, sizes in bytes."""

    latency: float = 0.0
    jitter: float = 0.0
    bytes_per_second: float | None = None
    slice_bytes: int | None = None
    """Pass on at most so many at a time."""
    cut_after: int | None = None
    """End a connection when the server has said so many bytes on it."""
    cut_after_replies: int | None = None
    """End a connection in the middle of the reply that follows so many whole ones."""
    black_hole: bool = False
    """Connections are taken, and nothing is passed on in either direction."""
    flip: float = 0.0
    """The share of bytes of which one bit is flipped."""


class FaultProxy:
    """One listener in front of one server. `faults` may be changed at any time, from any thread."""

    def __init__(self, server: str, listen: str = "127.0.0.1:0", seed: int = 0) -> None:
        """Addresses are HOST:PORT or unix:/PATH."""
        self.faults = Faults()
        self.address = listen
        self.connections = 0
        self.bytes_from_server = 0
        self.swapped = 0
        self.shifted = 0
        self.server = server
        self._random = random.Random(seed)
        self._links: set[_Link] = set()
        self._listener: asyncio.Server | None = None
        self._to_swap = self._to_shift = 0
        self._held: tuple[_Link, bytes] | None = None
        self._loop = asyncio.new_event_loop()

    def reset(self) -> None:
        """Every open connection ends with a reset, on both sides where it is TCP."""
        self._in_loop(self._reset())

    def down(self) -> None:
        """Open connections are reset, new ones are refused, until `up`."""
        self._in_loop(self._down())

    def up(self) -> None:
        self._in_loop(self._up())

    def swap(self, pairs: int = 1) -> None:
        """Exchange the next two whole replies, on whichever connections they come, so many times."""
        self._to_swap += pairs

    def shift(self, connections: int = 1) -> None:
        """Say a reply twice on the next so many connections: from then on each question gets the answer before it."""
        self._to_shift += connections

    def heal(self) -> None:
        """No more faults. Connections that were shifted stay so."""
        self.faults = Faults()
        self._to_swap = self._to_shift = 0
        self.up()

    # What follows runs in the proxy's own loop.

    def replies(self, link: _Link, replies: list[bytes]) -> list[tuple[_Link, bytes]]:
        """Where whole replies go, with `swap` and `shift` done to them."""
        out: list[tuple[_Link, bytes]] = []
        for reply in replies:
            if self._held is not None:
                other, held = self._held
                self._held = None
                self.swapped += 1
                out += [(other, reply), (link, held)]
            elif self._to_swap:
                self._to_swap -= 1
                self._held = link, reply
            elif self._to_shift and not link.shifted:
                self._to_shift -= 1
                self.shifted += 1
                link.shifted = True
                out += [(link, reply), (link, reply)]
            else:
                out.append((link, reply))
        return out

    def damaged(self, data: bytes) -> bytes:
        """The bytes with a bit of some flipped."""
        share = self.faults.flip
        if not share:
            return data
        return bytes(b ^ (1 << self._random.randrange(8)) if self._random.random() < share else b for b in data)

    def late(self) -> float:
        return self.faults.latency + self.faults.jitter * self._random.random()

    def forget(self, link: _Link) -> None:
        self._links.discard(link)
        if self._held is not None and self._held[0] is link:
            self._held = None

    @property
    def reads_replies(self) -> bool:
        return bool(self._to_swap or self._to_shift or self._held or self.faults.cut_after_replies is not None)

    def _in_loop(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _reset(self) -> None:
        for link in list(self._links):
            link.end(reset=True)

    async def _down(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        await self._reset()

    async def _up(self) -> None:
        if self._listener is not None:
            return
        if self.address.startswith("unix:"):
            path = self.address.removeprefix("unix:")
            Path(path).unlink(missing_ok=True)  # noqa: ASYNC240 - a moment, and nobody else's loop
            self._listener = await asyncio.start_unix_server(self._accepted, path)
            return
        host, _, port = self.address.rpartition(":")
        self._listener = await asyncio.start_server(self._accepted, host, int(port))
        self.address = f"{host}:{self._listener.sockets[0].getsockname()[1]}"

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            if self.server.startswith("unix:"):
                server = await asyncio.open_unix_connection(self.server.removeprefix("unix:"))
            else:
                host, _, port = self.server.rpartition(":")
                server = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        link = _Link(self, (reader, writer), server)
        self._links.add(link)
        await link.run()

    def run(self, ready: Callable[[], None]) -> None:
        """The thread's work: until the loop is stopped."""
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._up())
        ready()
        self._loop.run_forever()
        self._loop.run_until_complete(self._down())
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)


class _Link:
    """One client's connection and its own to the server."""

    def __init__(
        self,
        proxy: FaultProxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self.shifted = False
        self._proxy = proxy
        self._client, self._server = client, server
        self._late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(HELD_CHUNKS)
        self._unread = b""
        self._said = self._replied = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Until either side ends it, or the test does."""
        ways = (self._questions(), self._answers(), self._deliver())
        self._tasks = [asyncio.ensure_future(way) for way in ways]
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        self.end()

    def end(self, reset: bool = False) -> None:
        for task in self._tasks:
            task.cancel()
        for _, writer in (self._client, self._server):
            plug = writer.get_extra_info("socket")
            if reset and plug is not None and plug.family != socket.AF_UNIX:
                plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        self._proxy.forget(self)

    async def pass_on(self, data: bytes) -> None:
        """Towards the client, late, in slices, damaged: as the faults are now."""
        faults, loop = self._proxy.faults, asyncio.get_running_loop()
        step = faults.slice_bytes or CHUNK_BYTES
        for at in range(0, len(data), step):
            await self._late.put((loop.time() + self._proxy.late(), self._proxy.damaged(data[at : at + step])))

    async def _questions(self) -> None:
        with contextlib.suppress(OSError):
            while data := await self._client[0].read(CHUNK_BYTES):
                await self._while_black()
                self._server[1].write(data)
                await self._server[1].drain()

    async def _answers(self) -> None:
        proxy = self._proxy
        with contextlib.suppress(OSError):
            while data := await self._server[0].read(CHUNK_BYTES):
                await self._while_black()
                proxy.bytes_from_server += len(data)
                if proxy.reads_replies or self._unread:
                    whole, self._unread = cut_replies(self._unread + data)
                    most = proxy.faults.cut_after_replies
                    if most is not None and self._replied + len(whole) > most:
                        cut = whole[most - self._replied]
                        await self.pass_on(cut[: len(cut) // 2])
                        break
                    self._replied += len(whole)
                    for link, reply in proxy.replies(self, whole):
                        await link.pass_on(reply)
                    continue
                limit = proxy.faults.cut_after
                if limit is not None and self._said + len(data) >= limit:
                    await self.pass_on(data[: max(0, limit - self._said)])
                    break
                self._said += len(data)
                await self.pass_on(data)
        await self._late.join()  # what was said before the end still arrives

    async def _deliver(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while True:
                at, data = await self._late.get()
                await asyncio.sleep(max(0.0, at - loop.time()))
                rate = self._proxy.faults.bytes_per_second
                if rate is not None:
                    await asyncio.sleep(len(data) / rate)
                await self._while_black()
                self._client[1].write(data)
                await self._client[1].drain()
                self._late.task_done()

    async def _while_black(self) -> None:
        while self._proxy.faults.black_hole:  # noqa: ASYNC110 - another thread sets it
            await asyncio.sleep(0.005)


def cut_replies(data: bytes) -> tuple[list[bytes], bytes]:
    """Whole RESP2 replies, and the begun one that is left."""
    whole, at = [], 0
    while (end := _end_of_reply(data, at)) is not None:
        whole.append(data[at:end])
        at = end
    return whole, data[at:]


def _end_of_reply(data: bytes, at: int) -> int | None:
    line = data.find(b"\r\n", at)
    if line < 0:
        return None
    kind, count, end = data[at : at + 1], data[at + 1 : line], line + 2
    if kind == b"$" and int(count) >= 0:
        end += int(count) + 2
        return end if end <= len(data) else None
    if kind == b"*":
        for _ in range(int(count)):
            inner = _end_of_reply(data, end)
            if inner is None:
                return None
            end = inner
    return end


@contextlib.contextmanager
def between(server: str, listen: str = "127.0.0.1:0", seed: int = 0) -> Iterator[FaultProxy]:
    """A fault proxy that listens; `address` says where."""
    proxy, ready = FaultProxy(server, listen, seed), threading.Event()
    thread = threading.Thread(target=proxy.run, args=(ready.set,), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join(10)
