"""Some thousand malformed questions, seeded: never a 5xx, never a right status for a wrong question, nothing stored.

A mutated question may still be a good one. Then its answer must be right by the oracle, reading the question with
Python's own JSON parser: two readers that understand one body differently are how caches are poisoned.
"""

from __future__ import annotations

import copy
import gzip
import http.client
import itertools
import json
import random
import socket
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.live import Live
from tests.questions import ask_fingerprint, ask_minilm, fingerprint, numbers
from tests.raw import FINGERPRINT, HEADER_LENGTH, MINILM, Reply, binary, exchange

SEED = 70
JUNK: list[Any] = [
    None, True, False, 0, -1, 1, 1.5, -0.0, 1e308, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**400,
    "", "x", "1", "\0", "\ud800", "é" * 5000, "INT64", "__proto__",
    [], [[]], [[[[]]]], [None], [1], ["1"], [1] * 17, [[1] * 16, 1], [True] * 16, [0] * 5000, [{}],
    {}, {"": 0}, {"a": {"b": []}}, {"name": "x"}, {"binary_data_size": 128}, {"b64": "AAAA"},
]  # fmt: skip
NOT_JSON = [
    b"", b" ", b"\0", b"\xef\xbb\xbf", b"\xff\xfe{\0}\0", b"\xff", b"nul", b"nullx", b"True", b"NaN", b"-NaN",
    b"Infinity", b"-Infinity", b"undefined", b"'a'", b'"', b'"\\"', b'"a', b'"\n"', b'"\t"', b'"\0"', b'"\x1f"',
    b'"\\x00"', b'"\\a"', b'"\\u"', b'"\\u00"', b'"\\uD800"', b'"\\uD800\\u"', b'"\\uD800\\uD800"', b'"\\uDC00"',
    b'"\\u{61}"', b'"\\', b'"\xff"', b'"\xc0\xaf"', b'"\xed\xa0\x80"', b'"\xf4\xbf\xbf\xbf"', b'"\xe0\xff"',
    b'"\xf0\x82\x82\xac"', b"[", b"]", b"[1", b"[1,", b"[,1]", b"[1,]", b"[1,,2]", b"[1 2]", b"[1:2]", b"[1}",
    b"[[1]", b"[1]]", b"[1]1", b"[1]//", b"[1]/**/", b"/**/[1]", b"#\n[1]", b"[a]", b"[*]", b"[\x0b]", b"[\xc2\xa0]",
    b"[\xe2\x81\xa0]", b"[\x0c]", b"[-]", b"[+1]", b"[++1]", b"[-+1]", b"[.5]", b"[-.5]", b"[1.]", b"[1.e1]", b"[1e]",
    b"[1e+]", b"[1E-]", b"[1eE2]", b"[1.5.5]", b"[01]", b"[-01]", b"[00]", b"[0x1]", b"[0b1]", b"[1_000]", b"[1,000]",
    b"[1f]", b"[1L]", b"[1e999]", b"[-1e999]", b"[\xef\xbc\x91]", b"[1+2]", b"[- 1]", b"{", b"}", b"{]", b"{1}",
    b'{"a"}', b'{"a":}', b'{"a" 1}', b'{"a"::1}', b'{"a":1', b'{"a":1,}', b'{"a":1,,"b":2}', b'{,"a":1}', b"{a:1}",
    b"{'a':1}", b'{1:1}', b'{null:1}', b'{"a":1 "b":2}', b'{"a":1}}', b'{"a":1}#', b'{"a":1}//', b'{"a":1}{',
    b'{"a":a}', b'{"a":1;}', b'{"\\uD800":1}', b'{"a":1,"a":1}', b'{"a":1,"\\u0061":2}', b"[" * 2000, b"[" * 100_000,
    b'{"a":' * 2000, b"[" * 2000 + b"]" * 2000, b"1" * 400, b"[1]\0", b"<x/>", b"--a\r\n", b"a=1&b=2",
]  # fmt: skip
"""What no JSON parser may take, and of what it may, what this one refuses (RFC 8259 sections 4, 8 and 9)."""


class Talk:
    """One kept-alive connection to the system, reopened when it is closed."""

    def __init__(self, live: Live) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=60)

    def post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> Reply:
        self._connection.request("POST", path, body, dict(headers or {}))
        reply = self._connection.getresponse()
        return Reply(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def talk(live: Live) -> Iterator[Talk]:
    """A connection, and the check that the system is none the worse for what was said over it."""
    errors = live.metric("foreseen_requests_total", code="500")
    one = Talk(live)
    yield one
    one.close()
    x = numbers(7000)
    assert live.post(FINGERPRINT, ask_fingerprint(x))[0] == 200
    assert live.metric("foreseen_requests_total", code="500") == errors


def stored(live: Live) -> list[float]:
    """Entries in near, and rows that each model was asked for."""
    rows = [live.model_metric(model, "foreseen_model_rows_total") for model in ("minilm", "fingerprint")]
    return [live.metric("foreseen_near_entries"), *rows]


def assert_refused(reply: Reply, what: object) -> None:
    assert 400 <= reply.status < 500, (reply, what)
    assert reply.headers["content-type"] == "application/json", (reply, what)
    assert set(reply.document) == {"error", "code"}, (reply, what)
    assert "cache-status" not in reply.headers, (reply, what)


def assert_right_or_refused(reply: Reply, x: Any, what: object) -> bool:
    """Whether it was answered; `x` are the numbers that the question holds, None where it holds none."""
    if reply.status != 200:
        assert_refused(reply, what)
        return False
    assert x is not None, (reply, what)
    right = [value for row in x for value in fingerprint(row)]
    digest, at = None, 0
    for output in reply.document["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size", 0)
        if output["name"] == "digest" and output["datatype"] == "INT64":
            digest = output.get("data", list(struct.unpack(f"<{size // 8}q", reply.tail[at : at + size])))
        at += size
    assert digest in (None, right), (reply, what)
    return True


def numbers_of(body: bytes) -> list[list[int]] | None:
    """The rows that a JSON body asks about as Python reads it, None where it is not such a question."""
    try:
        document = json.loads(body, object_pairs_hook=_each_once)
        (tensor,) = document["inputs"]
        flat: list[Any] = []
        _flatten(tensor["data"], flat)
        if (tensor["name"], tensor["datatype"], tensor["shape"]) != ("x", "INT64", [len(flat) // 16, 16]):
            return None
        assert all(type(value) in (int, float) and int(value) == value for value in flat)
        return [[int(value) for value in flat[i : i + 16]] for i in range(0, len(flat), 16)]
    except (ValueError, KeyError, TypeError, AssertionError, AttributeError, RecursionError, OverflowError):
        return None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def _flatten(value: Any, into: list[Any]) -> None:
    for one in value:
        if isinstance(one, list):
            _flatten(one, into)
        else:
            into.append(one)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every node of a document."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*path, key))


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    made = copy.deepcopy(document)
    node = made
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return made


def test_what_is_not_json_is_refused_wherever_it_stands(live: Live, talk: Talk) -> None:
    """As the body, as any part of it, before and behind a good one; nothing is asked and nothing is stored."""
    good = json.dumps(ask_fingerprint(numbers(7001))).encode()
    before = stored(live)
    for text in NOT_JSON:
        for path in (FINGERPRINT, MINILM, "/v1/models/minilm:predict"):
            assert_refused(talk.post(path, text), text)
        if not text.strip(b" "):
            continue
        for body in (
            good.replace(b'{"inputs"', b'{"id":' + text + b',"inputs"'),
            good.replace(b'"data": [', b'"data": [' + text + b","),
            good.replace(b'"shape": [1, 16]', b'"shape": ' + text),
            good[:-1] + b',"parameters":{"p":' + text + b"}}",
            good + text,
        ):
            assert_refused(talk.post(FINGERPRINT, body), body)
    assert stored(live) == before


def test_junk_in_every_place_of_a_question(talk: Talk) -> None:
    """Each node of a request that has everything, replaced by each of forty values, removed, and given twice."""
    document = {
        "id": "a",
        "parameters": {"binary_data_output": False, "priority": 1, "sequence_id": 0, "custom": 1},
        "inputs": [{"name": "x", "shape": [1, 16], "datatype": "INT64", "parameters": {}, "data": numbers(7002)}],
        "outputs": [{"name": "digest", "parameters": {"binary_data": False}}],
    }
    answered = 0
    for path, junk in itertools.product(places(document), JUNK):
        body = json.dumps(replaced(document, path, junk)).encode()
        answered += assert_right_or_refused(talk.post(FINGERPRINT, body), numbers_of(body), (path, junk))
    text = json.dumps(document)
    for word in ("id", "parameters", "inputs", "outputs", "name", "shape", "datatype", "data", "priority"):
        absent = text.replace(f'"{word}"', f'"{word}_"').encode()
        assert_right_or_refused(talk.post(FINGERPRINT, absent), numbers_of(absent), absent)
        twice = text.replace(f'"{word}":', f'"{word}": 0, "{word}":', 1).encode()
        assert_refused(talk.post(FINGERPRINT, twice), twice)
    assert answered > 50


def test_one_damaged_byte(talk: Talk) -> None:
    """Bytes flipped, dropped, doubled, moved and cut: refused, or answered as every other reader would read them."""
    dice = random.Random(SEED)
    good = json.dumps(ask_fingerprint(numbers(7003), numbers(7004))).encode()
    signs = b'{}[]",:\\0123456789-+.eE nulltrue\x00\xff\xc3'
    answered = 0
    for _ in range(3000):
        body = bytearray(good)
        for _ in range(dice.choice((1, 1, 1, 2, 5))):
            at = dice.randrange(len(body))
            match dice.randrange(5):
                case 0:
                    body[at] = dice.choice(signs)
                case 1:
                    del body[at : at + dice.choice((1, 1, 8))]
                case 2:
                    body[at:at] = body[at : at + dice.choice((1, 4, 30))]
                case 3:
                    body[at] ^= 1 << dice.randrange(8)
                case _:
                    body.insert(at, dice.choice(signs))
            body = body or bytearray(b"{")
        what = bytes(body)
        answered += assert_right_or_refused(talk.post(FINGERPRINT, what), numbers_of(what), what)
    assert answered > 50


def test_damaged_binary_tensors(talk: Talk) -> None:
    """Lengths, sizes, shapes and tails that disagree; what is answered is what the bytes say."""
    dice = random.Random(SEED + 1)
    answered = 0
    for _ in range(2000):
        count = dice.randrange(3)
        raw = struct.pack(f"<{count * 16}q", *(dice.randrange(-(2**63), 2**63) for _ in range(count * 16)))
        size = dice.choice((len(raw), len(raw), len(raw) + dice.choice((-1, 1, 128, -128)), dice.choice(JUNK)))
        shape = dice.choice(([count, 16], [count, 16], [count + 1, 16], [16, count], [count, 16, 1], [2**31 - 1, 16]))
        tensor = {"name": "x", "shape": shape, "datatype": dice.choice(("INT64",) * 9 + ("UINT64", "FP64", "BYTES"))}
        tensor["parameters"] = {"binary_data_size": size}
        head = json.dumps({"inputs": [tensor]}).encode()
        length = dice.choice((len(head),) * 9 + (len(head) + 1, len(head) - 1, 0, len(head) + len(raw), -1, 2**40))
        body = head + dice.choice((raw,) * 9 + (raw[:-1], raw + b"\0", raw[:4], raw * 2))
        reply = talk.post(FINGERPRINT, body, {HEADER_LENGTH: str(length)})
        sent = body[len(head) :]
        held = len(sent) // 128
        good = (shape, tensor["datatype"], length, len(sent)) == ([held, 16], "INT64", len(head), held * 128)
        good = good and size in (None, len(sent))  # a null size is none, and then follows from the shape
        if length == 0 and len(body) % 128 == 0:
            continue  # a raw binary request, and a good one
        rows = [list(struct.unpack_from("<16q", sent, i * 128)) for i in range(held)] if good else None
        answered += assert_right_or_refused(reply, rows, (head, length, len(sent)))
    assert answered > 100


def test_damaged_text_tensors(live: Live, talk: Talk) -> None:
    """BYTES elements whose lengths lie, and text that is not UTF-8, never reach the model."""
    dice = random.Random(SEED + 2)
    before = stored(live)
    for _ in range(200):
        text = dice.randbytes(dice.randrange(1, 40)).replace(b"\xff", b"a") + b"\xff"  # never valid UTF-8
        raw = len(text).to_bytes(4, "little") + text
        lying = (len(text) + dice.choice((1, -1, 2**20, 2**31, 2**32 - 1 - len(text)))).to_bytes(4, "little") + text
        for wrong in (raw, lying, raw[:-1], raw + b"\0", raw * 2):
            body, headers = binary([{"name": "text", "shape": [1], "datatype": "BYTES"}], wrong)
            assert_refused(talk.post(MINILM, body, headers), wrong)
        assert_refused(talk.post(MINILM, text, {HEADER_LENGTH: "0"}), text)
    for junk in JUNK:
        if not isinstance(junk, str) or junk == "\ud800":
            question = ask_minilm("x")
            question["inputs"][0]["data"] = [junk]
            assert_refused(talk.post(MINILM, json.dumps(question).encode()), junk)
    assert stored(live) == before


def test_damaged_compression(talk: Talk) -> None:
    """A flipped bit or a cut anywhere in a compressed body is seen; checksums count."""
    dice = random.Random(SEED + 3)
    body = json.dumps(ask_fingerprint(numbers(7005))).encode()
    for coding, packed in (("gzip", gzip.compress(body, mtime=0)), ("deflate", zlib.compress(body))):
        for _ in range(150):
            wrong = bytearray(packed)
            if dice.random() < 0.3:
                del wrong[dice.randrange(len(wrong)) :]
            else:
                wrong[dice.randrange(len(wrong))] ^= 1 << dice.randrange(8)
            reply = talk.post(FINGERPRINT, bytes(wrong), {"Content-Encoding": coding})
            # a bit in gzip's time or system fields changes nothing that is read
            assert_right_or_refused(reply, [numbers(7005)], (coding, bytes(wrong)))
            if len(wrong) < len(packed):
                assert_refused(reply, (coding, bytes(wrong)))


def test_junk_for_v1(talk: Talk) -> None:
    """Each node of a row and of a column request, replaced by each of forty values."""
    for path, document in (
        ("/v1/models/fingerprint:predict", {"instances": [numbers(7006)]}),
        ("/v1/models/fingerprint:predict", {"instances": [{"x": numbers(7006)}]}),
        ("/v1/models/fingerprint:predict", {"inputs": {"x": [numbers(7006)]}}),
        ("/v1/models/minilm:predict", {"instances": [{"b64": "aGVsbG8="}], "signature_name": "x"}),
        ("/v1/models/minilm:predict", {"inputs": {"text": ["hello"]}}),
    ):
        for place, junk in itertools.product(places(document), JUNK):
            reply = talk.post(path, json.dumps(replaced(document, place, junk)).encode())
            if reply.status != 200:
                assert_refused(reply, (place, junk))
            elif "fingerprint" in path:
                asked = replaced(document, place, junk)
                rows = asked.get("instances", asked.get("inputs"))
                rows = rows["x"] if isinstance(rows, dict) else [r["x"] if isinstance(r, dict) else r for r in rows]
                told = reply.document.get("predictions")
                told = reply.document["outputs"]["digest"] if told is None else [one["digest"] for one in told]
                assert told == [fingerprint([int(value) for value in row]) for row in rows], (place, junk)


def test_junk_in_headers_and_request_lines(live: Live) -> None:
    """Whatever stands there, the reply is one of HTTP's and not a 5xx, or the connection is closed."""
    dice = random.Random(SEED + 4)
    body = json.dumps(ask_fingerprint(numbers(7007))).encode()
    names = ["Content-Type", "Content-Encoding", "Accept", "Accept-Encoding", "Cache-Control", "Authorization",
             "Cookie", "traceparent", "X-Request-Id", "Range", "If-None-Match", "Expect", "Upgrade", "Prefer", "Origin",
             "TE", HEADER_LENGTH, "Forwarded", "Content-Range", "Priority"]  # fmt: skip
    values = [
        "",
        "\x7f",
        "é",
        "a" * 5000,
        ",",
        ";;==",
        '"',
        "0",
        "-1",
        "1e9",
        "*/*;q=x",
        "null",
        "%00",
        "bytes=0-",
        "\t",
    ]
    for _ in range(300):
        lines = [f"{dice.choice(names)}: {dice.choice(values)}" for _ in range(dice.randrange(1, 6))]
        lines += [f"Content-Length: {len(body)}", "Host: a", "Connection: close", "", ""]
        request = f"POST {FINGERPRINT} HTTP/1.1\r\n".encode() + "\r\n".join(lines).encode() + body
        for reply in exchange(live, request):
            assert reply.status in (100, 101, 200, 400, 415, 417), (reply, lines)
            if reply.status == 200:
                assert reply.outputs["digest"]["data"] == fingerprint(numbers(7007))
    signs = "/%.;:@#?&=~\\'\"<>[]{}|^`$ \t\0é2vmodelsinfer"
    for _ in range(200):
        target = "/" + dice.choice(("", "v2/", "v2/models/", "v1/models/")) + "".join(dice.choices(signs, k=20))
        for reply in exchange(live, f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()):
            assert reply.status in (200, 400, 404), (reply, target)


def test_random_bytes(live: Live) -> None:
    """A port that is open gets everything."""
    dice = random.Random(SEED + 5)
    for _ in range(100):
        for reply in exchange(live, dice.randbytes(dice.randrange(1, 400)) + b"\r\n\r\n", 1):
            assert reply.status == 400


def test_expectations_and_transfer_codings_that_nobody_understands(live: Live) -> None:
    """417 and 501 as our own JSON errors; `100-continue` is answered with 100 and then the answer."""
    body = json.dumps(ask_fingerprint(numbers(1))).encode()
    status, headers, text = live.post(FINGERPRINT, body, {"Expect": "a-miracle"})
    assert (status, headers["content-type"], json.loads(text)["code"]) == (
        417,
        "application/json",
        "expectation_failed",
    )
    status, _, text = live.post(FINGERPRINT, body, {"Transfer-Encoding": "gzip, chunked"})
    assert (status, json.loads(text)["code"]) in ((501, "unsupported"), (400, "bad_request"))
    with socket.create_connection(("127.0.0.1", live.port), 10) as connection:
        head = f"POST {FINGERPRINT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(1024) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
