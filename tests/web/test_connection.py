"""The connection: requests with a known head are answered without aiohttp; all else reaches aiohttp."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import uvloop
from aiohttp import web

from foreseen.proxy.fastpath.fast_connection import HOLD_SECONDS, FastConnection
from foreseen.proxy.fastpath.known_heads import END_OF_HEAD, TRACES, KnownHeads
from foreseen.proxy.fastpath.responder import Responder
from foreseen.proxy.predict.answer_cache import Lookup
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.pending_request import PendingRequest
from foreseen.proxy.predict.response_bytes import Reply
from foreseen.tenants.tenant import PUBLIC_TENANT
from foreseen.web.caller import Caller
from foreseen.web.drain import drain
from foreseen.web.listen import listen
from foreseen.web.runner import AppRunner

ASK = RequestHead("m", None, "v2", PUBLIC_TENANT)
JSON = "Server: foreseen\r\nContent-Type: application/json\r\n"
OPENING = b"POST /x HTTP/1.1\r\nHost: h\r\n"


def request(body: bytes = b"question", **headers: str) -> bytes:
    lines = ["POST /x HTTP/1.1", "Host: h", f"Content-Length: {len(body)}", *(f"{n}: {v}" for n, v in headers.items())]
    return "\r\n".join(lines).encode() + END_OF_HEAD + body


def fast(body: bytes) -> Reply:
    return Reply(200, JSON, b"fast " + body)


class ScriptedResponder:
    """Answers `fast ` and the body at once; bodies that begin with `late` when its gate opens, by a task. What it keeps
    it repeats."""

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}
        self.keeps = False
        self.asked: list[bytes] = []
        self.traces: list[str | None] = []
        self.entered = asyncio.Event()
        self.gate = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    def repeat(self, raw: bytes, caller: Caller | None = None) -> bytes | None:
        body = self.kept.get(raw)
        return None if body is None else b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    def begin(
        self,
        head: RequestHead,
        body: bytes,
        reached: Callable[[Reply], None],
        raw: bytes | None = None,
        lookup: Lookup | None = None,
    ) -> bytes | Reply | PendingRequest:
        self.asked.append(body)
        self.traces.append(head.traceparent)
        self.entered.set()
        if self.keeps and raw is not None:
            self.kept[raw] = b"repeated " + body
        if not body.startswith(b"late"):
            return fast(body)

        async def answer() -> None:
            await self.gate.wait()
            reached(fast(body))

        self.tasks.append(asyncio.get_running_loop().create_task(answer()))
        return cast(PendingRequest, object())

    def find_large(self, head: RequestHead, pieces: Sequence[bytes], length: int) -> Lookup | None:
        assert sum(map(len, pieces)) == length
        text = b"".join(pieces)
        return Lookup(None, ("m", "v2", None, True), text, 0) if text.startswith(b"known") else None


class Served:
    """An aiohttp application whose connections learn what it answers, and which counts what reaches it."""

    def __init__(self) -> None:
        self.responder = ScriptedResponder()
        self.heads = KnownHeads(body_bytes=1_000_000)
        self.reached: list[bytes] = []
        self.open: list[FastConnection] = []
        self.port = 0
        self.runner: AppRunner

    def connect(self, manager: Any, **options: Any) -> FastConnection:
        self.open.append(FastConnection(manager, cast(Responder, self.responder), self.heads, **options))
        return self.open[-1]

    async def answer(self, asked: web.Request) -> web.Response:
        body = await asked.read()
        self.reached.append(body)
        assert isinstance(asked.protocol, FastConnection)
        asked.protocol.learn(asked, ASK, fast(body))
        return web.Response(body=b"aiohttp " + body)


@asynccontextmanager
async def serving() -> AsyncIterator[Served]:
    served = Served()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", served.answer)
    served.runner = runner = AppRunner(app, served.connect, shutdown_timeout=5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    served.port = runner.addresses[0][1]
    try:
        yield served
    finally:
        served.responder.gate.set()
        await runner.cleanup()


class Wire:
    """One connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.head = b""

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def ask(self, *parts: bytes) -> bytes:
        await self.send(*parts)
        return await self.reply()

    async def reply(self) -> bytes:
        self.head = (await asyncio.wait_for(self.reader.readuntil(END_OF_HEAD), 10)).lower()
        head = self.head.decode()
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


async def test_a_known_head_is_answered_on_any_connection_with_any_body() -> None:
    """The first reaches aiohttp; the same head again does not, here and on a new connection, whatever its body."""
    async with serving() as served, wire(served) as one, wire(served) as other:
        assert await one.ask(request()) == b"aiohttp question"
        assert await one.ask(request()) == b"fast question"
        assert await other.ask(request(b"another, longer")) == b"fast another, longer"
        assert served.reached == [b"question"]


async def test_the_very_same_bytes_are_repeated() -> None:
    """What the responder keeps, it is asked for before anything else."""
    async with serving() as served, wire(served) as one:
        served.responder.keeps = True
        assert await one.ask(request()) == b"aiohttp question"
        assert await one.ask(request()) == b"fast question"
        assert await one.ask(request()) == b"repeated question"
        assert await one.ask(request(b"other")) == b"fast other"
        assert await one.ask(request(b"other")) == b"repeated other"


@pytest.mark.parametrize("at", range(len(request()) - len(b"question")))
async def test_a_head_that_differs_in_one_byte_is_another(at: int) -> None:
    """Every byte but the digits of Content-Length counts; what aiohttp makes of it is aiohttp's."""
    heads = KnownHeads(body_bytes=1000)
    known = request()[: -len(b"question")]
    heads.learn(known, ASK)
    changed = known[:at] + bytes([known[at] ^ 1]) + known[at + 1 :]
    found = heads.of(changed + b"question")
    digit = known.index(b"8\r\n")
    assert (found is None) == (at != digit)
    assert heads.of(known) is not None


@pytest.mark.parametrize(
    "length", [b"+8", b"08", b"8 ", b" 8", b"8,8", b"0x8", b"8_0", b"", b"-1", b"9999999999", b"\xb2"]
)
async def test_a_length_is_plain_digits(length: bytes) -> None:
    """There is one way to read a length that is recognised; all others are for aiohttp."""
    heads = KnownHeads(body_bytes=2**40)
    heads.learn(OPENING + b"Content-Length: 8\r\n\r\n", ASK)
    assert heads.of(OPENING + b"Content-Length: " + length + END_OF_HEAD + b"question") is None


@pytest.mark.parametrize(
    "head",
    [
        OPENING + b"Content-Length: 8\r\nContent-Length: 8\r\n\r\n",
        OPENING + b"Content-Length: 8\r\ncontent-length: 8\r\n\r\n",
        OPENING + b"Content-Length: 08\r\n\r\n",
        OPENING + b"Content-Length:8\r\n\r\n",
        OPENING + b"\r\n",
        OPENING + b"X: " + bytes(5000) + b"\r\nContent-Length: 8\r\n\r\n",
    ],
)
async def test_heads_with_two_readings_are_not_learned(head: bytes) -> None:
    """Where the length does not stand once, plainly, in a head of usual size, aiohttp reads every one."""
    heads = KnownHeads(body_bytes=1000)
    heads.learn(head, ASK)
    assert len(heads) == 0


async def test_other_lengths_in_a_head_are_bytes_like_all_others() -> None:
    """A binary request's second length counts with every byte; only the body's own length may differ."""
    heads = KnownHeads(body_bytes=1000)
    head = OPENING + b"Inference-Header-Content-Length: 5\r\nContent-Length: 8\r\n\r\n"
    heads.learn(head, ASK)
    assert heads.of(head.replace(b": 8", b": 12")) is not None
    assert heads.of(head.replace(b": 5", b": 6")) is None


async def test_heads_are_bounded_and_a_body_above_the_limit_is_aiohttps() -> None:
    """The oldest go; a length above the limit on bodies is not recognised, so it is refused where it always was."""
    heads = KnownHeads(body_bytes=1000)
    for n in range(2000):
        heads.learn(b"POST /%d HTTP/1.1\r\nHost: h\r\nContent-Length: 8\r\n\r\n" % n, ASK)
    assert len(heads) == 1024
    known = b"POST /1999 HTTP/1.1\r\nHost: h\r\nContent-Length: "
    assert heads.of(b"POST /0 HTTP/1.1\r\nHost: h\r\nContent-Length: 8\r\n\r\n") is None
    assert heads.of(known + b"1000\r\n\r\n") is not None
    assert heads.of(known + b"1001\r\n\r\n") is None


async def test_head_and_body_that_arrive_apart_are_recognised() -> None:
    """Clients send them in two packets: a known head waits for its body, for a moment."""
    async with serving() as served, wire(served) as one:
        await one.ask(request())
        for body in (b"question", b"x" * 200_000):
            whole = request(body)
            assert await one.ask(whole[: -len(body)], body[:5], body[5:]) == b"fast " + body
        assert served.reached == [b"question"]


async def test_a_body_that_does_not_come_leaves_its_head_to_aiohttp() -> None:
    """After a moment what there is is handed over; a body that comes at last is answered there."""
    async with serving() as served, wire(served) as one:
        await one.ask(request())
        await one.send(request()[:-3])
        loop = asyncio.get_running_loop()
        waited = loop.create_future()
        loop.call_later(2 * HOLD_SECONDS, waited.set_result, None)
        await waited
        assert await one.ask(b"ion") == b"aiohttp question"
        assert await one.ask(request()) == b"fast question"
        assert served.reached == [b"question"] * 2


async def test_what_comes_while_a_request_is_under_way_waits_its_turn() -> None:
    """Three requests and a half while the first waits: answered in order, each as it can be."""
    async with serving() as served, wire(served) as one:
        await one.ask(request())
        await one.send(request(b"late one"))
        await asyncio.wait_for(served.responder.entered.wait(), 10)
        await one.send(request(b"two"), request(b"late three"), request(b"four")[:10])
        await asyncio.sleep(0)
        assert served.responder.asked == [b"late one"]
        served.responder.gate.set()
        assert await one.reply() == b"fast late one"
        assert (await one.reply()).endswith(b"two")
        assert (await one.reply()).endswith(b"late three")
        assert (await one.ask(request(b"four")[10:])).endswith(b"four")


async def test_a_caller_that_hangs_up_is_answered_into_the_void() -> None:
    """A request whose connection is gone ends without an error, and the server goes on."""
    async with serving() as served:
        async with wire(served) as one:
            await one.ask(request())
            await one.send(request(b"late"))
            await asyncio.wait_for(served.responder.entered.wait(), 10)
        served.responder.gate.set()
        async with wire(served) as other:
            assert await other.ask(request()) == b"fast question"


async def test_shutting_down_waits_for_what_is_under_way() -> None:
    """The reply is sent before the connection is closed; what was held back behind it is not answered."""
    async with serving() as served, wire(served) as one:
        await one.ask(request())
        await one.send(request(b"late"))
        await asyncio.wait_for(served.responder.entered.wait(), 10)
        await one.send(request(b"next"))
        closing = asyncio.create_task(served.open[0].shutdown(5))
        await asyncio.sleep(0)
        assert not closing.done()
        served.responder.gate.set()
        assert await one.reply() == b"fast late"
        await closing
        assert await one.reader.read() == b""
        assert b"next" not in served.responder.asked


@pytest.mark.parametrize("body", [b"at once", b"late"])
async def test_the_last_answer_of_a_drained_connection_says_so_on_the_fast_path_too(body: bytes) -> None:
    """A request that is under way when draining begins, and one that comes on an idle connection afterwards."""
    async with serving() as served, wire(served) as one, wire(served) as other:
        for connection in (one, other):
            await connection.ask(request())
        await one.send(request(b"late"))
        await asyncio.wait_for(served.responder.entered.wait(), 10)
        draining = asyncio.create_task(drain(served.runner, 10, 10))
        await asyncio.sleep(0)
        await other.send(request(body))
        served.responder.gate.set()
        for connection, answer in ((one, b"late"), (other, body)):
            assert await connection.reply() == b"fast " + answer
            assert b"connection: close" in connection.head
            assert await connection.reader.read() == b""
        await draining


async def test_what_is_held_back_is_answered_before_a_drained_connection_ends() -> None:
    """The first of two says nothing of the end, the second does."""
    async with serving() as served, wire(served) as one:
        await one.ask(request())
        await one.send(request(b"late"))
        await asyncio.wait_for(served.responder.entered.wait(), 10)
        await one.send(request(b"next"))
        draining = asyncio.create_task(drain(served.runner, 10, 10))
        await asyncio.sleep(0.05)
        served.responder.gate.set()
        assert await one.reply() == b"fast late"
        assert b"connection: close" not in one.head
        assert (await one.reply()).endswith(b"next")
        assert b"connection: close" in one.head
        await draining


async def test_an_idle_connection_is_closed_and_one_under_way_is_not() -> None:
    """aiohttp's keep-alive timer knows nothing of a request that is under way here."""
    async with serving() as served, wire(served) as one:
        await one.ask(request())
        await one.send(request(b"late"))
        await asyncio.wait_for(served.responder.entered.wait(), 10)
        served.open[0]._next_keepalive_close_time = 0.0
        served.open[0]._process_keepalive()
        served.responder.gate.set()
        assert await one.reply() == b"fast late"
        await asyncio.sleep(0)
        served.open[0]._next_keepalive_close_time = 0.0
        served.open[0]._process_keepalive()
        assert await one.reader.read() == b""


async def test_pipelined_requests_are_never_recognised_on_their_connection() -> None:
    """Two in one packet: aiohttp answers both in order, and goes on answering this connection."""
    async with serving() as served, wire(served) as one, wire(served) as other:
        await other.ask(request())
        assert await one.ask(request(b"a") + request()) == b"aiohttp a"
        assert await one.reply() == b"aiohttp question"
        assert await one.ask(request()) == b"aiohttp question"
        assert await other.ask(request()) == b"fast question"


async def test_part_of_a_head_behind_a_request_is_never_taken_for_nothing() -> None:
    """Smuggling: bytes of a next request's head are pending, then bytes come that equal a known request. They are part
    of what aiohttp is reading, and it decides."""
    async with serving() as served, wire(served) as one, wire(served) as other:
        await other.ask(request())
        assert await one.ask(request(b"a") + b"POST /evil HTTP/1.1\r\nHost: h\r\nX: ") == b"aiohttp a"
        # What follows completes the pending header line with the known request's own request line.
        assert b'"bad_request"' in await one.ask(request())  # a head with two Hosts, and no recognition
        assert served.reached == [b"question", b"a"]


async def test_chunked_bodies_are_aiohttps() -> None:
    """No Content-Length accounts for them, so nothing is recognised on their connection any more."""
    async with serving() as served, wire(served) as one, wire(served) as other:
        await other.ask(request())
        chunked = b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
        assert await one.ask(chunked) == b"aiohttp a"
        assert await one.ask(request()) == b"aiohttp question"


async def test_an_empty_line_before_a_request_is_part_of_its_head() -> None:
    """llhttp skips it; with it and without it are two heads, each recognised as itself."""
    async with serving() as served, wire(served) as one:
        assert await one.ask(b"\r\n" + request()) == b"aiohttp question"
        assert await one.ask(request()) == b"aiohttp question"
        assert await one.ask(b"\r\n" + request(b"other")) == b"fast other"
        assert await one.ask(b"\r\n\r\n" + request(b"b")) == b"aiohttp b"
        assert await one.ask(b"\r\n\r\n" + request(b"b")) == b"aiohttp b"  # its account does not come out even


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Cache-Control", "no-cache"),
        ("Connection", "Upgrade"),
        ("Prefer", "respond-async"),
        ("Cookie", "a=b"),
        ("Content-Encoding", "identity"),
    ],
)
async def test_requests_that_are_more_than_their_bytes_are_not_recognised(name: str, value: str) -> None:
    """What decides about freshness, callers or the connection is read every time."""
    async with serving() as served, wire(served) as one:
        served.responder.keeps = True
        for _ in range(2):
            assert await one.ask(request(**{name: value})) == b"aiohttp question"
        assert (len(served.heads), served.responder.kept) == (0, {})


TRACE = "00-{:032x}-00000000000000a1-01"


@pytest.mark.parametrize("name", TRACES)
async def test_headers_that_name_a_request_may_differ(name: str) -> None:
    """Whatever is printable in them: the fast path, never as a whole request. A W3C trace context goes along."""
    async with serving() as served, wire(served) as one:
        served.responder.keeps = True
        assert await one.ask(request(**{name: TRACE.format(1)})) == b"aiohttp question"
        for value in (TRACE.format(2), TRACE.format(2), "a", 'b "c"; d=(e)', "x" * 1024, TRACE.format(3).upper()):
            assert await one.ask(request(**{name: value})) == b"fast question"
        own = [TRACE.format(2), TRACE.format(2), None, None, None, None] if name == "traceparent" else [None] * 6
        assert served.responder.traces == own
        assert await one.ask(request()) == b"aiohttp question"  # without it it is another head


@pytest.mark.parametrize("value", ["x" * 1025, "a\x80b", "a\tb", "caf\u00e9"])
async def test_a_name_of_a_request_that_is_not_plain_is_read_by_aiohttp(value: str) -> None:
    """Also one that is too long. (An empty one has nothing that could differ.)"""
    async with serving() as served, wire(served) as one:
        assert await one.ask(request(**{"X-Request-Id": "a"})) == b"aiohttp question"
        assert await one.ask(request(**{"X-Request-Id": "b"})) == b"fast question"
        for _ in range(2):  # nor is it learned
            assert await one.ask(request(**{"X-Request-Id": value})) == b"aiohttp question"
        assert len(served.heads) == 1


async def test_blanks_around_a_trace_are_not_part_of_it() -> None:
    """As aiohttp reads them: none, several, tabs; an empty one is none."""
    async with serving() as served, wire(served) as one:
        trace = TRACE.format(1)
        for value in (trace, f"  {trace}", f"\t{trace} \t", "", trace):
            await one.ask(request(traceparent=value))
        assert served.responder.traces == [trace, trace, None, trace]


@pytest.mark.parametrize("headers", [b"Connection: keep-alive\r\nConnection: close", b"Proxy-Connection: close"])
async def test_a_head_that_ends_its_connection_is_not_learned(headers: bytes) -> None:
    """However it says so; each is aiohttp's, and the last of its connection."""
    async with serving() as served:
        for _ in range(2):
            async with wire(served) as one:
                asked = request().replace(b"Host: h", b"Host: h\r\n" + headers)
                assert await one.ask(asked) == b"aiohttp question"
                assert await one.reader.read() == b""


async def test_the_first_trace_counts_as_for_aiohttp() -> None:
    """Two traces, in any spelling, around another name; nothing but their values may differ."""
    async with serving() as served, wire(served) as one:

        def twice(first: str, second: str, last: bytes = b"z") -> bytes:
            lines = b"X-Request-Id: q\r\nTraceParent: %b\r\nx: %b\r\ntraceparent:%b\r\n"
            return request().replace(b"Host:", lines % (first.encode(), last, second.encode()) + b"Host:", 1)

        assert await one.ask(twice(TRACE.format(1), TRACE.format(2))) == b"aiohttp question"
        assert await one.ask(twice(TRACE.format(3), TRACE.format(4))) == b"fast question"
        assert await one.ask(twice("malformed", TRACE.format(5))) == b"fast question"
        assert served.responder.traces == [TRACE.format(3), None]
        assert await one.ask(twice(TRACE.format(3), TRACE.format(4), b"y")) == b"aiohttp question"


async def test_connection_keep_alive_is_what_http_does_anyhow() -> None:
    """Many clients send it with every request."""
    async with serving() as served, wire(served) as one:
        assert await one.ask(request(Connection="keep-alive")) == b"aiohttp question"
        assert await one.ask(request(Connection="keep-alive")) == b"fast question"


async def test_a_long_request_is_learned_too() -> None:
    """Its head is; its connection stays between requests."""
    async with serving() as served, wire(served) as one:
        for body in (b"x" * 300_000, b"known" + b"x" * 299_995):
            assert await one.ask(request(body)) == (b"fast " if body.startswith(b"known") else b"aiohttp ") + body
            assert await one.ask(request(body)) == b"fast " + body
        assert await one.ask(request()) == b"fast question"


async def test_get_requests_keep_the_account_even() -> None:
    """A request without a body in between does not cost a connection its fast path."""
    async with serving() as served, wire(served) as one:
        await one.ask(request())
        assert await one.ask(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n") == b"aiohttp "
        assert await one.ask(request()) == b"fast question"


@pytest.mark.parametrize("all_of_them", [False, True])
def test_who_comes_with_many_others_is_let_in_with_them(all_of_them: bool) -> None:
    """Forty connect before the server looks. libuv lets one in a turn; that is how long the last would wait, were the
    others not taken in with the first."""

    async def turns() -> int:
        runner = AppRunner(web.Application())
        await runner.setup()
        listener = listen("127.0.0.1", 0)
        await web.SockSite(runner, listener).start()
        if all_of_them:
            runner.accept_all(listener)
        came = [socket.create_connection(listener.getsockname()) for _ in range(40)]
        taken = 0
        async with asyncio.timeout(20):
            while len(runner.server.connections) < len(came):  # type: ignore[union-attr]
                taken += 1
                await asyncio.sleep(0)
        for one in came:
            one.close()
        await runner.cleanup()
        return taken

    assert (uvloop.run(turns()) < 40) == all_of_them


def test_who_comes_to_a_process_that_is_told_to_end_is_left_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others listen on the same socket. Who was accepted is in by then; nobody follows."""
    monkeypatch.setattr("foreseen.web.runner.ACCEPTED_A_TURN", 1)

    async def left() -> tuple[int, int]:
        runner = AppRunner(web.Application())
        await runner.setup()
        shared = listen("127.0.0.1", 0)
        await web.SockSite(runner, shared.dup()).start()
        runner.accept_all(shared)
        server = runner.server
        assert server is not None
        came = [socket.create_connection(shared.getsockname()) for _ in range(40)]
        for _ in range(100):
            if server.connections:
                break
            await asyncio.sleep(0)
        for site in list(runner.sites):
            await site.stop()
        await runner.accept_no_more()
        within = len(server.connections)
        for _ in range(100):
            await asyncio.sleep(0)
        after = len(server.connections)
        for one in (*came, shared):
            one.close()
        await runner.cleanup()
        return within, after

    within, after = uvloop.run(left())
    assert 0 < within == after < 40
