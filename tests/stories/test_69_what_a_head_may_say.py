"""Request heads as RFC 9110 and 9112 want them: any byte is data, and no request takes another one's answer."""

from __future__ import annotations

import json
import socket

import pytest

from foreseen.logs import LINES_AT_ONCE, Sparing
from tests.live import Live
from tests.questions import ask_fingerprint, fingerprint, numbers
from tests.raw import FINGERPRINT, exchange

QUESTIONS = [numbers(6900 + at) for at in range(3)]
ROUTES = (
    ("GET", "/v2"),
    ("GET", "/nothing/here"),
    ("POST", FINGERPRINT),
    ("POST", FINGERPRINT.replace("infer", "explain")),
    ("POST", FINGERPRINT.replace("infer", "import")),
    ("POST", "/v1/models/fingerprint:predict"),
    ("POST", "/v2/predictions:batch"),
    ("GET", "/v2/predictions/none"),
    ("DELETE", "/v2/predictions/none"),
    ("GET", "/v2/predictions/none/result"),
)
HEADERS = (
    "Authorization", "Content-Encoding", "Inference-Header-Content-Length", "Request-Timeout", "Cache-Control",
    "Prefer", "Idempotency-Key", "Foreseen-Webhook", "Accept", "Content-Type", "traceparent", "Expect", "Last-Event-ID",
    "X-Request-Id", "Upgrade", "Host",
)  # fmt: skip
VALUES = (b"\xff", b"\xc3\xa9", b"\xed\xa0\x80", b"respond-async, wait=\xff", b"max-age=\xff", b"Bearer \xff")


def head(method: str, path: str, body: bytes = b"", *lines: bytes, version: str = "HTTP/1.1") -> bytes:
    """A request; `Host` is one of the lines where it is given."""
    host = [] if any(line.lower().startswith(b"host") for line in lines) else [b"Host: h"]
    length = b"Content-Length: %d" % len(body)
    return b"\r\n".join([f"{method} {path} {version}".encode(), *host, *lines, length, b"", body])


def question(at: int, *lines: bytes, version: str = "HTTP/1.1") -> bytes:
    return head("POST", FINGERPRINT, json.dumps(ask_fingerprint(QUESTIONS[at])).encode(), *lines, version=version)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_any_byte_of_a_header_is_data(live: Live, method: str, path: str) -> None:
    """Of every header that is read anywhere, alone and on requests that prefer a ticket: nothing of it is a 500."""
    body = json.dumps(ask_fingerprint(QUESTIONS[0])).encode() if method == "POST" else b""
    for name in HEADERS:
        for value in VALUES:
            for more in ([], [b"Prefer: respond-async"]):
                line = name.encode() + b": " + value
                (reply,) = exchange(live, head(method, path, body, line, *more, b"Connection: close"))
                assert reply.status not in (500, 502), (name, value, more)


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER  "])
def test_the_scheme_of_a_token_has_no_case(live: Live, scheme: str) -> None:
    """RFC 9110 section 11.1; the token itself does."""
    token = (live.data / "admin-token").read_text().strip()
    path, body = FINGERPRINT.replace("infer", "explain"), json.dumps(ask_fingerprint(QUESTIONS[0])).encode()

    def status(given: str) -> int:
        return exchange(live, head("POST", path, body, f"Authorization: {given}".encode()), 1)[0].status

    assert status(scheme + token) == 200
    for wrong in (scheme + token.upper() + "x", scheme + token + " x", scheme, token, "Basic " + token):
        assert status(wrong) == 401


@pytest.mark.parametrize("version", ["HTTP/2.0", "HTTP/0.9"])
def test_other_versions_are_505(live: Live, version: str) -> None:
    """In a version that is spoken here; the connection ends."""
    (reply,) = exchange(live, question(0, version=version))
    assert (reply.status, reply.protocol, reply.document["code"]) == (505, "HTTP/1.1", "http_version")


@pytest.mark.parametrize("host", ["a b", "a/b", "user@h", "h:abc", "[::1", "a\\b"])
def test_a_host_that_is_none_is_400(live: Live, host: str) -> None:
    """RFC 9112 section 3.2."""
    assert exchange(live, question(0, f"Host: {host}".encode()), 1)[0].status == 400


@pytest.mark.parametrize("host", ["", "h", "exa_mple-1.test:80", "[::1]:8000", "10.0.0.1:", "%41"])
def test_a_host_may_be_whatever_one_is(live: Live, host: str) -> None:
    """Nobody is served by name, so it decides about nothing."""
    assert exchange(live, question(0, f"Host: {host}".encode()), 1)[0].status == 200


def test_only_http_1_1_is_told_to_continue(live: Live) -> None:
    """An HTTP/1.0 client takes the 100 for the answer."""
    old = exchange(live, question(0, b"Expect: 100-continue", version="HTTP/1.0"))
    assert [reply.status for reply in old] == [200]
    new = exchange(live, question(0, b"Expect: 100-continue"), 2, head=(0,))
    assert [reply.status for reply in new] == [100, 200]
    for path in ("/v2", "/nothing/here"):
        assert exchange(live, head("GET", path, b"", b"Expect: more"), 1)[0].status == 417


def test_options_of_the_server(live: Live) -> None:
    """RFC 9110 section 9.3.7: `*` is the server itself."""
    (reply,) = exchange(live, head("OPTIONS", "*"), 1)
    assert reply.status == 204
    assert "QUERY" in reply.headers["allow"]


@pytest.mark.parametrize("protocol", [b"x", b"h2c", b"websocket"])
def test_what_follows_an_upgrade_is_answered_rightly_or_not_at_all(live: Live, protocol: bytes) -> None:
    """Pipelined behind it, the connection ends with the answer that says so; asked after it, it goes on."""
    upgrade = (b"Connection: Upgrade", b"Upgrade: " + protocol)
    replies = exchange(live, question(0, *upgrade) + question(1))
    assert [reply.outputs["digest"]["data"] for reply in replies] == [fingerprint(QUESTIONS[0])]
    assert replies[0].headers["connection"] == "close"
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as connection:
        for at in (0, 1, 0, 2):
            connection.sendall(question(at, *upgrade))
            got = b""
            while str(fingerprint(QUESTIONS[at])[0]).encode() not in got:
                part = connection.recv(65536)
                assert part, "it was closed"
                got += part


@pytest.mark.parametrize(
    "wrong", [b"GET /v2 HTTP/1.1\r\nno header\r\n\r\n", b"\x16\x03\x01\x02\x00", b"GET /v2 HTTP/3.0\r\n\r\n"]
)
def test_a_mistake_takes_no_answer_of_those_before_it(live: Live, wrong: bytes) -> None:
    """Valid requests in the same piece are answered, in order; then comes the 400, and the end."""
    replies = exchange(live, question(0) + head("GET", "/v2") + question(1) + wrong + question(2))
    assert [reply.status for reply in replies] == [200, 200, 200, 400]
    assert [replies[at].outputs["digest"]["data"] for at in (0, 2)] == [fingerprint(QUESTIONS[at]) for at in (0, 1)]


@pytest.mark.parametrize("apart", [False, True])
def test_a_mistake_in_a_body_is_that_requests(live: Live, apart: bool) -> None:
    """Chunks that are none are 400 at once, not a wait for the rest; nothing behind them is a request."""
    path = FINGERPRINT.encode()
    chunked = b"POST " + path + b" HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as connection:
        connection.sendall(question(0) + chunked)
        if apart:
            assert connection.recv(1), "the first is answered"
        connection.sendall(b"zz\r\n" + question(1))
        got = b"".join(iter(lambda: connection.recv(65536), b""))
    assert got.count(b"HTTP/1.1 400") == 1
    assert got.count(b"TTP/1.") == 2


def test_a_flood_of_errors_is_no_flood_of_lines() -> None:
    """Ten at once, then one a second, which says how many were left out; other kinds have their own."""
    now = [0.0]
    sparing = Sparing(lambda: now[0])
    assert [sparing.skipped("a") for _ in range(LINES_AT_ONCE + 5)] == [{}] * LINES_AT_ONCE + [None] * 5
    assert sparing.skipped("b") == {}
    now[0] = 1.0
    assert [sparing.skipped("a"), sparing.skipped("a")] == [{"skipped": 5}, None]
    now[0] = 100.0
    assert sparing.skipped("a") == {"skipped": 1}
