"""Replay: bytes that equal an accepted request get the kept reply; everything else reaches aiohttp untouched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from foreseen.http import Runner
from foreseen.nouns import Key, Prediction
from proxy.near import Near
from proxy.replay import END_OF_HEAD, HOLD_SECONDS, Kept, Memory, ReplayConnection, may_be_kept
from tests.doubles import Clock, numbered, predicted

KEYS = numbered(3)


def kept(
    near: Near, *, keys: list[Key] | None = None, body: bytes = b"kept", clock: Clock | None = None, **more: Any
) -> Kept:
    """A reply that stands on entries which are in near."""
    now = (clock or Clock())()
    rows: list[tuple[Key, Prediction]] = []
    for key in keys or KEYS[:1]:
        prediction = near.peek(key)
        if prediction is None:
            prediction = predicted(1, made_at=now - 5, ttl=100)
            near.put(key, prediction)
        rows.append((key, prediction))
    options: dict[str, Any] = {"alive": lambda: True, "count": lambda seconds: None} | more
    return Kept(rows, now + 95, [("Content-Type", "application/json")], body, **options)


def request(body: bytes = b"question", **headers: str) -> bytes:
    lines = ["POST /x HTTP/1.1", "Host: h", f"Content-Length: {len(body)}", *(f"{n}: {v}" for n, v in headers.items())]
    return "\r\n".join(lines).encode() + END_OF_HEAD + body


def test_a_reply_carries_the_time_of_its_replay() -> None:
    """Age and ttl are those of the second; within a second the very same bytes are sent."""
    near, clock = Near(10_000), Clock()
    clock.now = 1_000_000.0
    memory = Memory(near, 10_000, clock)
    memory.keep(request(), kept(near, clock=clock))
    first = memory.reply(request())
    assert first is not None
    assert b"\r\nCache-Status: foreseen;hit;ttl=95;detail=near\r\nAge: 5\r\n" in first
    assert b"\r\nDate: Mon, 12 Jan 1970 13:46:40 GMT\r\n" in first
    assert first.endswith(b"\r\nContent-Length: 4\r\nDate: Mon, 12 Jan 1970 13:46:40 GMT\r\n\r\nkept")
    assert memory.reply(request()) is first
    clock.now += 10
    later = memory.reply(request())
    assert later is not None
    assert b";ttl=85;" in later
    assert b"Age: 15\r\n" in later


def test_one_changed_byte_is_another_request() -> None:
    """Every byte of head and body counts."""
    near = Near(10_000)
    memory = Memory(near, 10_000)
    memory.keep(request(), kept(near))
    known = request()
    for at in range(len(known)):
        changed = known[:at] + bytes([known[at] ^ 1]) + known[at + 1 :]
        assert memory.reply(changed) is None
    assert memory.reply(known[:-1]) is memory.reply(known + b"x") is memory.reply(b"") is None
    assert memory.reply(known) is not None


@pytest.mark.parametrize(
    "gone",
    [
        lambda near, clock: near.forget(KEYS[1]),
        lambda near, clock: near.put(KEYS[1], predicted(1)),
        lambda near, clock: near.clear(),
        lambda near, clock: setattr(clock, "now", clock.now + 95),
    ],
    ids=["forgotten", "replaced", "cleared", "expired"],
)
def test_a_reply_goes_with_what_it_stands_on(gone: Callable[[Near, Clock], object]) -> None:
    """One entry of several forgotten, replaced or expired takes the reply with it, for good."""
    near, clock = Near(10_000), Clock()
    memory = Memory(near, 10_000, clock)
    memory.keep(request(), kept(near, keys=KEYS, clock=clock))
    assert memory.reply(request()) is not None
    gone(near, clock)
    assert memory.reply(request()) is None
    assert (len(memory), memory.bytes, memory._heads) == (0, 0, {})


def test_another_space_in_force_takes_the_reply() -> None:
    """A new digest or generation: what was kept of the old one is gone at once."""
    near, now = Near(10_000), [True]
    memory = Memory(near, 10_000)
    memory.keep(request(), kept(near, alive=lambda: now[0]))
    assert memory.reply(request()) is not None
    now[0] = False
    assert memory.reply(request()) is None
    assert len(memory) == 0


def test_every_replay_is_counted() -> None:
    """Per request, when it happens."""
    near = Near(10_000)
    counted: list[float] = []
    memory = Memory(near, 10_000)
    memory.keep(request(), kept(near, count=counted.append))
    for _ in range(5):
        memory.reply(request())
    assert len(counted) == 5


def test_memory_is_bounded_and_the_oldest_go() -> None:
    """Bytes are counted exactly over any number of requests; a reply larger than all of it is not kept."""
    near = Near(1_000_000)
    memory = Memory(near, 10_000)
    for n in range(100):
        memory.keep(request(b"%d" % n), kept(near))
        assert memory.bytes <= 10_000
    assert memory.reply(request(b"99")) is not None
    assert memory.reply(request(b"0")) is None
    assert sum(count for count, _ in memory._heads.values()) == len(memory) > 3
    memory.keep(request(b"huge"), kept(near, body=bytes(20_000)))
    assert memory.reply(request(b"huge")) is None


def test_a_request_is_kept_at_its_second_hit() -> None:
    """Requests that never come again cost a hint; hints are bounded; nothing is kept where there is no room at all."""
    memory = Memory(Near(10), 10_000)
    assert [memory.worth_keeping(request()), memory.worth_keeping(request())] == [False, True]
    for n in range(memory.MAX_HINTS + 10):
        memory.worth_keeping(b"%d" % n)
    assert len(memory._hints) == memory.MAX_HINTS
    assert not any(Memory(Near(10), 0).worth_keeping(request()) for _ in range(3))


class Served:
    """An aiohttp application that keeps every POST it answers, and counts those that reach it."""

    def __init__(self) -> None:
        self.near = Near(1_000_000)
        self.memory = Memory(self.near, 1_000_000)
        self.reached: list[bytes] = []
        self.port = 0

    async def answer(self, asked: web.Request) -> web.Response:
        body = await asked.read()
        self.reached.append(body)
        assert isinstance(asked.protocol, ReplayConnection)
        raw = asked.protocol.account_for(asked)
        if raw is not None and asked.method == "POST" and may_be_kept(asked):
            self.memory.keep(raw, kept(self.near, body=b"replayed " + body))
        return web.Response(body=b"answered " + body)


@asynccontextmanager
async def serving() -> AsyncIterator[Served]:
    served = Served()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", served.answer)
    runner = Runner(app, lambda manager, **options: ReplayConnection(manager, served.memory, **options))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    served.port = runner.addresses[0][1]
    try:
        yield served
    finally:
        await runner.cleanup()


class Wire:
    """One connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, *parts: bytes) -> bytes:
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            await asyncio.sleep(0)
        return await self.reply()

    async def reply(self) -> bytes:
        head = (await asyncio.wait_for(self.reader.readuntil(END_OF_HEAD), 10)).decode().lower()
        (length,) = (int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length"))
        return await self.reader.readexactly(length)


@asynccontextmanager
async def wire(served: Served) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()


async def test_the_same_bytes_are_replayed_on_any_connection() -> None:
    """The first reaches aiohttp; the same bytes again do not, here and on a new connection."""
    async with serving() as served, wire(served) as one, wire(served) as other:
        assert await one.ask(request()) == b"answered question"
        assert await one.ask(request()) == b"replayed question"
        assert await other.ask(request()) == b"replayed question"
        assert await other.ask(request(b"new")) == b"answered new"
        assert await other.ask(request(b"new")) == b"replayed new"
        assert served.reached == [b"question", b"new"]


async def test_head_and_body_that_arrive_apart_are_recognised() -> None:
    """Clients send them in two packets: the head of a known request waits for its body, for a moment."""
    async with serving() as served, wire(served) as one:
        await one.ask(request())
        assert await one.ask(request()[: -len(b"question")], b"quest", b"ion") == b"replayed question"
        assert served.reached == [b"question"]


async def test_a_known_head_with_another_body_reaches_aiohttp_whole() -> None:
    """What was held is handed over with what followed."""
    async with serving() as served, wire(served) as one:
        await one.ask(request())
        head = request()[: -len(b"question")]
        assert await one.ask(head, b"qu", b"estioX") == b"answered questioX"
        assert served.reached == [b"question", b"questioX"]


async def test_a_body_that_does_not_come_leaves_the_head_to_aiohttp() -> None:
    """After a moment the head is handed over; a body that comes at last is answered there."""
    async with serving() as served, wire(served) as one:
        await one.ask(request())
        one.writer.write(request()[: -len(b"question")])
        await one.writer.drain()
        loop = asyncio.get_running_loop()
        waited = loop.create_future()
        loop.call_later(3 * HOLD_SECONDS, waited.set_result, None)
        await waited
        assert await one.ask(b"question") == b"answered question"
        assert served.reached == [b"question"] * 2


async def test_pipelined_requests_are_never_replayed_on_their_connection() -> None:
    """Two in one packet: aiohttp answers both in order, and goes on answering this connection."""
    async with serving() as served, wire(served) as one, wire(served) as other:
        await other.ask(request())
        assert await one.ask(request(b"a") + request()) == b"answered a"
        assert await one.reply() == b"answered question"
        assert await one.ask(request()) == b"answered question"
        assert await other.ask(request()) == b"replayed question"


async def test_part_of_a_head_behind_a_request_is_never_taken_for_nothing() -> None:
    """Smuggling: bytes of a next request's head are pending, then bytes come that equal a known request. They are part
    of what aiohttp is reading, and it decides."""
    async with serving() as served, wire(served) as one, wire(served) as other:
        await other.ask(request())
        assert await one.ask(request(b"a") + b"POST /evil HTTP/1.1\r\nHost: h\r\nX: ") == b"answered a"
        # What follows completes the pending header line with the known request's own request line.
        assert b'"bad_request"' in await one.ask(request())  # a head with two Hosts, and no replay
        assert served.reached == [b"question", b"a"]


async def test_chunked_bodies_take_the_normal_road() -> None:
    """No Content-Length accounts for them, so their connection is not replayed on any more."""
    async with serving() as served, wire(served) as one, wire(served) as other:
        await other.ask(request())
        chunked = b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
        assert await one.ask(chunked) == b"answered a"
        assert await one.ask(request()) == b"answered question"


async def test_an_empty_line_before_a_request_is_part_of_its_bytes() -> None:
    """llhttp skips it; with it and without it are two requests, each recognised as itself."""
    async with serving() as served, wire(served) as one:
        assert await one.ask(b"\r\n" + request()) == b"answered question"
        assert await one.ask(request()) == b"answered question"
        assert await one.ask(b"\r\n" + request()) == b"replayed question"
        assert await one.ask(b"\r\n\r\n" + request(b"b")) == b"answered b"
        assert await one.ask(b"\r\n\r\n" + request(b"b")) == b"answered b"  # its account does not come out even


@pytest.mark.parametrize("name", ["Cache-Control", "Authorization", "traceparent", "Connection", "Prefer", "Cookie"])
async def test_requests_that_are_more_than_their_bytes_are_not_kept(name: str) -> None:
    """What decides about freshness, callers, traces or the connection is read every time."""
    async with serving() as served, wire(served) as one:
        for _ in range(2):
            assert await one.ask(request(**{name: "keep-alive"})) == b"answered question"
        assert len(served.memory) == 0


async def test_a_long_request_takes_the_normal_road() -> None:
    """Its connection is then not replayed on; others are."""
    async with serving() as served, wire(served) as one, wire(served) as other:
        body = b"x" * 100_000
        for _ in range(2):
            assert await one.ask(request(body)) == b"answered " + body
        assert len(served.memory) == 0
        await other.ask(request())
        assert await other.ask(request()) == b"replayed question"


async def test_get_requests_keep_the_account_even() -> None:
    """A request without a body in between does not cost a connection its replays."""
    async with serving() as served, wire(served) as one:
        await one.ask(request())
        assert await one.ask(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n") == b"answered "
        assert await one.ask(request()) == b"replayed question"
