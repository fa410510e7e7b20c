"""The connections to a model process: what is a reply, what is none, and which connection is used again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from foreseen.proxy.backend.http_pool import MAX_HEAD_BYTES, Broken, HttpPool, NotReached, Unreadable

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello"


class Scripted:
    """Answers each request with the next of its replies, in these pieces; None hangs up instead."""

    def __init__(self, *replies: tuple[bytes, ...] | None) -> None:
        self.replies = list(replies)
        self.connections = 0
        self.asked: list[bytes] = []
        self.arrived, self.hold = asyncio.Event(), asyncio.Event()
        self.hold.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while self.replies:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.asked.append(head + await reader.readexactly(length))
                self.arrived.set()
                await self.hold.wait()
                reply = self.replies.pop(0)
                for piece in reply or ():
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if reply is None:
                    break
        writer.close()


@contextlib.asynccontextmanager
async def line_to(scripted: Scripted, folder: Path) -> AsyncIterator[HttpPool]:
    path = str(folder / "s")
    server = await asyncio.start_unix_server(scripted.serve, path)
    line = HttpPool(path)
    async with server, asyncio.timeout(20):
        yield line
        line.close()
        await asyncio.sleep(0)


async def test_a_request_is_sent_whole_and_its_reply_read_in_any_pieces(tmp_path: Path) -> None:
    """Cut behind every byte; the connection stays the same one."""
    pieces = [(OK[:at], OK[at:]) for at in range(1, len(OK))]
    scripted = Scripted(*pieces, tuple(OK[at : at + 1] for at in range(len(OK))))
    async with line_to(scripted, tmp_path) as line:
        for _ in range(len(pieces) + 1):
            told = await line.post("/x", {"A": "1"}, b"body")
            assert (told.status, told.body, told.headers["x-a"]) == (200, b"hello", "b")
    assert scripted.connections == 1
    assert set(scripted.asked) == {b"POST /x HTTP/1.1\r\nHost: model\r\nContent-Length: 4\r\nA: 1\r\n\r\nbody"}


async def test_a_reply_without_a_body_is_whole(tmp_path: Path) -> None:
    """And errors are replies, too."""
    scripted = Scripted((b"HTTP/1.1 503 \r\nContent-Length: 0\r\n\r\n",), (OK,))
    async with line_to(scripted, tmp_path) as line:
        assert (await line.post("/", {}, b"")).status == 503
        assert (await line.post("/", {}, b"")).body == b"hello"
    assert scripted.connections == 1


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 2x0 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 2000 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 4\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n folded\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nnonsense\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more",
        b"x" * (MAX_HEAD_BYTES + 1),
        OK + OK,
    ],
)
async def test_what_is_no_reply_is_refused_with_its_connection(reply: bytes, tmp_path: Path) -> None:
    """The next question goes over another one."""
    scripted = Scripted((reply,), (OK,))
    async with line_to(scripted, tmp_path) as line:
        with pytest.raises(Unreadable):
            await line.post("/", {}, b"")
        assert (await line.post("/", {}, b"")).body == b"hello"
    assert scripted.connections == 2


async def test_a_connection_that_ends_before_its_reply_is_broken(tmp_path: Path) -> None:
    """Also in the middle of it."""
    scripted = Scripted(None, (OK[:-2],))
    async with line_to(scripted, tmp_path) as line:
        for _ in range(2):
            with pytest.raises(Broken):
                await line.post("/", {}, b"")


async def test_a_server_that_says_close_is_believed(tmp_path: Path) -> None:
    """What says so is not asked again."""
    scripted = Scripted((OK.replace(b"X-A: b", b"Connection: close"),), (OK,))
    async with line_to(scripted, tmp_path) as line:
        await line.post("/", {}, b"")
        await line.post("/", {}, b"")
    assert scripted.connections == 2


async def test_who_stops_waiting_takes_the_connection_along(tmp_path: Path) -> None:
    """A late reply is nobody's."""
    scripted = Scripted((OK.replace(b"hello", b"other"),), (OK,))
    scripted.hold.clear()
    async with line_to(scripted, tmp_path) as line:
        asking = asyncio.create_task(line.post("/", {}, b""))
        await scripted.arrived.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        scripted.hold.set()
        assert (await line.post("/", {}, b"")).body == b"hello"
    assert scripted.connections == 2


async def test_requests_at_once_have_a_connection_each(tmp_path: Path) -> None:
    """The next ones take those."""
    scripted = Scripted(*[(OK,)] * 8)
    async with line_to(scripted, tmp_path) as line:
        for _ in range(2):
            await asyncio.gather(*(line.post("/", {}, b"") for _ in range(4)))
    assert scripted.connections == 4


async def test_nobody_there_is_not_reached(tmp_path: Path) -> None:
    """Nothing was sent."""
    with pytest.raises(NotReached):
        await HttpPool(str(tmp_path / "nobody")).post("/", {}, b"")


async def test_a_line_that_was_closed_keeps_no_connection(tmp_path: Path) -> None:
    """What was under way then gets its reply, and its connection is not used again: somebody else has the address."""
    scripted = Scripted((OK,), (OK,))
    async with line_to(scripted, tmp_path) as line:
        scripted.hold.clear()
        asking = asyncio.create_task(line.post("/", {}, b""))
        await scripted.arrived.wait()
        line.close()
        scripted.hold.set()
        assert (await asking).body == b"hello"
        assert (await line.post("/", {}, b"")).body == b"hello"
    assert scripted.connections == 2
