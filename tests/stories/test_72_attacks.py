"""Callers that are slow, many, or loud on purpose: each meets its limit and is counted, and hits flow all the while."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live import Live, started
from tests.questions import ask_fingerprint, ask_minilm, numbers
from tests.stories.test_10_first_question import FINGERPRINT, MINILM

CONNECTIONS = 40
LIMITS = (
    f"--connections={CONNECTIONS}",
    "--connection-requests=50",
    "--head-seconds=1",
    "--body-seconds=1",
    "--write-seconds=1",
    "--body-bytes=40000000",
)
BODY = json.dumps(ask_fingerprint(numbers(72))).encode()
HIT = f"POST {FINGERPRINT} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY


@pytest.fixture(scope="module")
def walled(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A system with low limits."""
    with started(built, tmp_path_factory.mktemp("walled") / "d", *LIMITS) as system:
        yield system


def limited(system: Live, limit: str) -> float:
    return system.metric("foreseen_limited_total", limit=limit)


def opened(system: Live) -> socket.socket:
    return socket.create_connection(("127.0.0.1", system.port), 20)


def everything(connection: socket.socket) -> bytes:
    """What the other end sends until it closes; a reset is an end, too."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            got += part
    return got


@pytest.fixture
def _hits_flow(walled: Live) -> Iterator[None]:
    """A caller asks its one question again and again while the test attacks; every answer is a hit."""
    assert walled.post(FINGERPRINT, BODY)[0] == 200
    over, told = threading.Event(), list[tuple[int, bool]]()

    def ask() -> None:
        while not over.is_set() or len(told) < 20:
            status, headers, _ = walled.post(FINGERPRINT, BODY)
            told.append((status, ";hit;" in headers.get("cache-status", "")))

    asking = threading.Thread(target=ask)
    asking.start()
    yield
    over.set()
    asking.join(60)
    assert set(told) == {(200, True)}


@pytest.mark.usefixtures("_hits_flow")
def test_a_head_that_trickles_in_is_408(walled: Live) -> None:
    """Slowloris: ten connections that send a part of a head and no more are closed with a reason, and counted."""
    before = limited(walled, "head")
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(opened(walled)) for _ in range(10)]
        for connection in slow:
            connection.sendall(b"POST /v2/models/fingerprint/infer HTTP/1.1\r\nHost: h\r\nX-A")
        for connection in slow:
            with contextlib.suppress(OSError):
                connection.sendall(b"b")
            head, _, body = everything(connection).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 408 ")
            assert json.loads(body)["code"] == "head_timeout"
    assert limited(walled, "head") == before + 10


@pytest.mark.usefixtures("_hits_flow")
def test_a_body_that_stalls_is_408(walled: Live) -> None:
    """Its head is whole, its body never comes."""
    with opened(walled) as connection:
        connection.sendall(HIT[:-20])
        reply = connection.recv(65536)
    assert reply.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"body_timeout"' in reply


@pytest.mark.usefixtures("_hits_flow")
def test_a_reader_that_does_not_read_is_cut_off(walled: Live) -> None:
    """It asks for megabytes and takes none of them; its connection ends and what it did not take is dropped."""
    before, body = limited(walled, "write"), json.dumps(ask_minilm(*["I do not read."] * 4000)).encode()
    head = f"POST {MINILM} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", walled.port))
        connection.sendall(head + body)
        walled.until("foreseen_limited_total", lambda count: count == before + 1, limit="write")
        reply = everything(connection)
    length = int(reply.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    assert len(reply) < length


@pytest.mark.usefixtures("_hits_flow")
@pytest.mark.parametrize(
    "head",
    [
        b"X-Bomb: " + b"b" * 9000 + b"\r\n",
        b"".join(b"X-%d: b\r\n" % number for number in range(140)),
        b"X-" + b"n" * 9000 + b": b\r\n",
    ],
    ids=["long value", "many fields", "long name"],
)
def test_a_head_that_is_too_large_is_431(walled: Live, head: bytes) -> None:
    """Too long a field or too many; neither its name nor its value comes back."""
    before = limited(walled, "head-size")
    with opened(walled) as connection:
        connection.sendall(b"POST /v2 HTTP/1.1\r\nHost: h\r\n" + head + b"\r\n")
        reply = everything(connection)
    assert reply.startswith(b"HTTP/1.0 431 ")  # aiohttp's own, for what it could not read
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["code"] == "head_too_large"
    assert b"bbb" not in reply
    assert limited(walled, "head-size") == before + 1


@pytest.mark.usefixtures("_hits_flow")
def test_a_head_that_never_ends_is_431(walled: Live) -> None:
    """Short fields, few at a time, for ever: the sum counts."""
    before = limited(walled, "head-size")
    with opened(walled) as connection, contextlib.suppress(OSError):
        connection.sendall(b"POST /v2 HTTP/1.1\r\n" + b"X: " + b"b" * 8000)
        for _ in range(200):
            connection.sendall(b"b" * 1000)
        everything(connection)
    assert limited(walled, "head-size") == before + 1


def test_a_thousand_connections_take_nobodys_place(walled: Live) -> None:
    """Above the limit, those that rest longest are closed, so a caller who asks gets in; never are more open than may
    be. Who was connected and asks goes on meanwhile."""
    with contextlib.ExitStack() as stack, opened(walled) as regular:
        regular.sendall(HIT)
        assert regular.recv(65536).startswith(b"HTTP/1.1 200 ")
        for _ in range(1000):
            with contextlib.suppress(OSError):
                stack.enter_context(opened(walled))
        stack.enter_context(until_it_answers(walled))
        assert walled.metric("foreseen_connections") <= CONNECTIONS
    assert limited(walled, "connections") + limited(walled, "idle") > 900
    assert limited(walled, "idle") > 0


def until_it_answers(system: Live) -> socket.socket:
    """Ask as a new caller until there is room: within the second that a connection has to rest before it may be
    closed. The connection that got in."""
    for _ in range(10_000):
        with contextlib.suppress(OSError):
            caller = opened(system)
            caller.sendall(HIT)
            if caller.recv(65536).startswith(b"HTTP/1.1 200 "):
                return caller
            caller.close()
    raise AssertionError("no room was made")


def test_who_is_refused_for_want_of_room_is_told_so(built: Path, tmp_path: Path) -> None:
    """503 with `Retry-After`, unread: the one place is taken by a request that is at work."""
    with (
        started(built, tmp_path / "d", "--connections=1", models=["fingerprint"]) as system,
        until_it_answers(system) as busy,
    ):
        busy.sendall(HIT[:-20])
        with opened(system) as late:
            refused = everything(late)
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nRetry-After: 1\r\n" in refused
    assert b'"code":"overloaded"' in refused


def test_a_connection_ends_in_good_order_after_its_share(walled: Live) -> None:
    """The reply to the last request says `Connection: close`; none is lost, also where replies are replayed."""
    assert walled.post(FINGERPRINT, BODY)[0] == 200
    with opened(walled) as connection, connection.makefile("rb") as stream:
        answered, last = 0, False
        while not last:
            connection.sendall(HIT)
            head = b"".join(iter(stream.readline, b"\r\n"))
            assert head.startswith(b"HTTP/1.1 200 ")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            stream.read(length)
            answered, last = answered + 1, b"connection: close" in head.lower()
        assert stream.read() == b""
    assert 50 <= answered <= 51


def test_one_address_asks_no_faster_than_its_rate(built: Path, tmp_path: Path) -> None:
    """On both roads, the normal and the replayed one: after its burst an address gets 429 with `Retry-After`, and so
    many seconds later an answer; watchers' routes are free; every refusal is counted under the model's name."""
    flags = ("--rate=2", "--rate-burst=30", "--access-log-hits=0")
    with started(built, tmp_path / "d", *flags, models=["fingerprint"]) as system:
        told = [system.post(FINGERPRINT, BODY) for _ in range(60)]
        statuses = [status for status, _, _ in told]
        assert set(statuses) == {200, 429}
        assert 20 <= statuses.count(200) < 50  # `up` has asked, too
        _, headers, body = next(one for one in told if one[0] == 429)
        assert json.loads(body)["code"] == "rate_limited"
        assert headers["retry-after"] == "1"
        with opened(system) as connection:  # on one connection, where replies are replayed
            connection.sendall(HIT)
            assert connection.recv(65536).startswith(b"HTTP/1.1 429 ")
        assert system.get("/v2/health/live")[0] == 200
        assert system.get("/v2/models")[0] == 429
        refused = system.metric("foreseen_requests_total", code="429", model="fingerprint")
        assert refused == statuses.count(429) + 1
        assert limited(system, "rate") == refused + 1  # GET /v2/models is of no model
