"""The short way to Redis: what is an answer, and which connection is used again. `test_far.py` asks a Valkey."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from foreseen.stores.redis_pool import NotResp, RedisPool, Words

MGET = [("MGET", b"k")]
VALUE = b"*1\r\n$5\r\nvalue\r\n"


class Scripted:
    """Answers whatever comes with the next of its replies, in these pieces; None hangs up instead."""

    def __init__(self, *replies: tuple[bytes, ...] | None) -> None:
        self.replies = list(replies)
        self.asked: list[bytes] = []
        self.connections = 0
        self.arrived, self.hold = asyncio.Event(), asyncio.Event()
        self.hold.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError):
            while self.replies and (asked := await reader.read(65536)):
                self.asked.append(asked)
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
async def wire_to(
    scripted: Scripted, folder: Path, hello: Sequence[Words] = (), seconds: float = 20.0
) -> AsyncIterator[RedisPool]:
    path = str(folder / "s")
    server = await asyncio.start_unix_server(scripted.serve, path)
    loop = asyncio.get_running_loop()
    wire = RedisPool(lambda made: loop.create_unix_connection(made, path), hello, seconds, ValueError)
    async with server, asyncio.timeout(30):
        yield wire
        wire.close()
        await asyncio.sleep(0)


async def test_replies_are_read_in_any_pieces(tmp_path: Path) -> None:
    """Cut behind every byte; the connection stays the same one."""
    scripted = Scripted(*((VALUE[:at], VALUE[at:]) for at in range(1, len(VALUE))))
    async with wire_to(scripted, tmp_path) as wire:
        for _ in range(len(VALUE) - 1):
            assert await wire.ask(MGET) == [[b"value"]]
    assert scripted.connections == 1
    assert set(scripted.asked) == {b"*2\r\n$4\r\nMGET\r\n$1\r\nk\r\n"}


async def test_what_redis_refuses_stands_in_its_place(tmp_path: Path) -> None:
    """Of several commands that go together; nothing is None."""
    scripted = Scripted((b"+OK\r\n-OOM command not allowed\r\n$-1\r\n",))
    async with wire_to(scripted, tmp_path) as wire:
        first, second, third = await wire.ask([("SET", b"k", b"v", "PX", 5)] * 2 + [("GET", b"k")])
        assert (first, third) == (b"OK", None)
        assert isinstance(second, ValueError)
        assert str(second) == "OOM command not allowed"


@pytest.mark.parametrize("reply", [VALUE + VALUE, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"*x\r\n"])
async def test_what_is_no_answer_ends_its_connection(reply: bytes, tmp_path: Path) -> None:
    """A reply too many may be another's, so nothing of it is taken."""
    scripted = Scripted((reply,), (VALUE,))
    async with wire_to(scripted, tmp_path) as wire:
        with pytest.raises(NotResp):
            await wire.ask(MGET)
        assert await wire.ask(MGET) == [[b"value"]]
    assert scripted.connections == 2


async def test_a_late_reply_is_nobodys(tmp_path: Path) -> None:
    """Whether the budget ended or the caller left: the next exchange has another connection."""
    scripted = Scripted((b"*1\r\n$5\r\nother\r\n",), (b"*1\r\n$5\r\nother\r\n",), (VALUE,))
    scripted.hold.clear()
    async with wire_to(scripted, tmp_path, seconds=0.05) as wire:
        with pytest.raises(TimeoutError):
            await wire.ask(MGET)
        wire.seconds = 20.0
        scripted.arrived.clear()
        asking = asyncio.create_task(wire.ask(MGET))
        await scripted.arrived.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        scripted.hold.set()
        assert await wire.ask(MGET) == [[b"value"]]
    assert scripted.connections == 3


async def test_a_connection_that_ends_is_an_error_once(tmp_path: Path) -> None:
    """Nothing is sent a second time here; the next call connects anew."""
    scripted = Scripted(None, (VALUE,))
    async with wire_to(scripted, tmp_path) as wire:
        with pytest.raises(ConnectionError):
            await wire.ask(MGET)
        assert await wire.ask(MGET) == [[b"value"]]


async def test_each_connection_says_hello_first(tmp_path: Path) -> None:
    """And is of no use where Redis refuses that."""
    hello = [("AUTH", "user", "secret"), ("SELECT", 3)]
    scripted = Scripted((b"+OK\r\n+OK\r\n",), (VALUE,))
    async with wire_to(scripted, tmp_path, hello) as wire:
        assert await wire.ask(MGET) == [[b"value"]]
    assert scripted.asked[0] == b"*3\r\n$4\r\nAUTH\r\n$4\r\nuser\r\n$6\r\nsecret\r\n*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n"
    (tmp_path / "two").mkdir()
    scripted = Scripted((b"-WRONGPASS no\r\n+OK\r\n",))
    async with wire_to(scripted, tmp_path / "two", hello) as wire:
        with pytest.raises(ValueError, match="WRONGPASS"):
            await wire.ask(MGET)


async def test_calls_at_once_have_a_connection_each(tmp_path: Path) -> None:
    """The next ones take those."""
    scripted = Scripted(*[(VALUE,)] * 6)
    async with wire_to(scripted, tmp_path) as wire:
        for _ in range(2):
            assert await asyncio.gather(*(wire.ask(MGET) for _ in range(3))) == [[[b"value"]]] * 3
    assert scripted.connections == 3
