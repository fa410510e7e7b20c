"""Ten thousand requests of eight tenants, mixed and mutated: no answer of another text, no hit of another's entry."""

from __future__ import annotations

import hashlib
import json
import random
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foreseen.protocol.wire import parse_response
from tests.collisions import chosen_pair, second_preimage
from tests.live import Live, started
from tests.questions import ask_fingerprint, fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT

REQUESTS, TEXTS = 10_000, 24
SCOPES = {
    "t1": "own",
    "t2": "own",
    "t3": "own",
    "t4": "own",
    "s1": "team",
    "s2": "team",
    "p1": "public",
    "p2": "public",
}
TENANTS = tuple(SCOPES)
LENGTH = "Inference-Header-Content-Length"
Reply = tuple[int, dict[str, str], bytes]


def key_of(tenant: str) -> str:
    return f"key-of-{tenant}"


def shared_by(tenant: str) -> str:
    """What tenants with one scope have in common."""
    return tenant if SCOPES[tenant] == "own" else SCOPES[tenant]


@pytest.fixture(scope="module")
def crowd(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("crowd")
    tables = [
        f'[tenant.{name}]\nscope = "{scope}"\nkeys = ["sha256:{hashlib.sha256(key_of(name).encode()).hexdigest()}"]\n'
        for name, scope in SCOPES.items()
    ]
    (folder / "keys.toml").write_text("".join(tables))
    with started(built, folder / "data", f"--keys-file={folder / 'keys.toml'}", "--workers=2") as system:
        yield system


class Line:
    """One connection, opened anew where the server has closed it."""

    def __init__(self, port: int) -> None:
        self._port, self._kept = port, b""
        self._socket: socket.socket | None = None

    def send(self, data: bytes) -> None:
        if self._socket is None:
            self._socket, self._kept = socket.create_connection(("127.0.0.1", self._port), timeout=60), b""
        self._socket.sendall(data)

    def reply(self) -> Reply:
        assert self._socket is not None
        while (end := self._kept.find(b"\r\n\r\n")) < 0:
            self._more()
        head, self._kept = self._kept[:end].decode("latin-1"), self._kept[end + 4 :]
        lines = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        size = int(headers["content-length"])
        while len(self._kept) < size:
            self._more()
        body, self._kept = self._kept[:size], self._kept[size:]
        status = int(lines[0].split()[1])
        if status == 400 or headers.get("connection", "").lower() == "close":
            self.close()
        return status, headers, body

    def _more(self) -> None:
        assert self._socket is not None
        got = self._socket.recv(65536)
        assert got, "the connection ended within a reply"
        self._kept += got

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def v2(rng: random.Random, row: list[int]) -> tuple[str, bytes, list[str]]:
    body = {**({"id": f"n{rng.random()}"} if rng.random() < 0.5 else {}), **ask_fingerprint(row)}
    return FINGERPRINT, json.dumps(body, separators=(",", ":") if rng.random() < 0.5 else None).encode(), []


def binary(rng: random.Random, row: list[int]) -> tuple[str, bytes, list[str]]:
    raw = np.array(row, "<i8").tobytes()
    return FINGERPRINT, raw, [f"{LENGTH}: 0"]


def v1(rng: random.Random, row: list[int]) -> tuple[str, bytes, list[str]]:
    return "/v1/models/fingerprint:predict", json.dumps({"instances": [row]}).encode(), []


def openai(rng: random.Random, row: list[int]) -> tuple[str, bytes, list[str]]:
    return "/v1/embeddings", json.dumps({"model": "minilm", "input": f"text {row[0]}"}).encode(), []


WAYS: tuple[Callable[[random.Random, list[int]], tuple[str, bytes, list[str]]], ...] = (v2, v2, binary, v1, openai)


def key_line(rng: random.Random, tenant: str) -> str:
    name, scheme = rng.choice([("X-API-Key", ""), ("api-key", ""), ("Authorization", "Bearer ")])
    if rng.random() < 0.3:
        name = name.lower()
    return f"{name}: {scheme}{key_of(tenant)}"


def request(path: str, body: bytes, lines: list[str]) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", *lines, "", ""]).encode("latin-1") + body


def plain(rng: random.Random, tenant: str, path: str, body: bytes, more: list[str]) -> bytes:
    traces = [f"X-Request-Id: r{rng.random()}"] if rng.random() < 0.3 else []
    lines = ["Host: h", key_line(rng, tenant), f"Content-Length: {len(body)}", *more, *traces]
    if rng.random() < 0.5:
        rng.shuffle(lines)
    return request(path, body, lines)


def mutated(rng: random.Random, tenant: str, other: str, path: str, body: bytes, more: list[str]) -> tuple[bytes, Any]:
    """A request that tries to be another tenant's, and the statuses that it may have."""
    own, length = key_line(rng, tenant), f"Content-Length: {len(body)}"
    foreign = key_line(rng, other)
    match rng.randrange(7):
        case 0:  # one wrong character
            at = rng.randrange(len(own) - len(key_of(tenant)), len(own))
            return request(path, body, ["Host: h", own[:at] + "!" + own[at + 1 :], length, *more]), {401}
        case 1:  # two keys
            return request(path, body, ["Host: h", own, foreign, length, *more]), {401}
        case 2:  # another's key in a header that may be anything
            return request(path, body, ["Host: h", f"X-Request-Id: {foreign}", own, length, *more]), {200}
        case 3:  # a line within a line
            return request(path, body, ["Host: h", f"X-Request-Id: a\r{foreign}", own, length, *more]), {400}
        case 4:  # a name that is none
            return request(path, body, ["Host: h", foreign.replace(":", " :", 1), own, length, *more]), {400}
        case 5:  # a folded line
            return request(path, body, ["Host: h", own, f" {foreign}", length, *more]), {200, 400, 401}
        case _:  # no key
            return request(path, body, ["Host: h", length, *more]), {401}


def check(reply: Reply, way: Any, row: list[int], embedded: dict[int, Any]) -> None:
    """A 200 has the answer to its own row."""
    _, headers, body = reply
    if way is openai:
        found = json.loads(body)["data"][0]["embedding"]
        assert embedded.setdefault(row[0], found) == found
        return
    if way is v1:
        digest = json.loads(body)["predictions"][0]["digest"]
    elif way is binary:
        digest = parse_response(body, int(headers[LENGTH.lower()])).outputs[0].array[0].tolist()
    else:
        digest = json.loads(body)["outputs"][0]["data"]
    assert digest == fingerprint(row)


def test_ten_thousand_mixed_requests_of_eight_tenants_are_never_crossed(crowd: Live) -> None:
    """Over all HTTP dialects, on connections that tenants share, whole and in pieces, with and without mutations."""
    rng = random.Random(18)
    lines = [Line(crowd.port) for _ in range(6)]
    asked: set[tuple[str, str, int]] = set()
    embedded: dict[int, Any] = {}
    statuses: dict[int, int] = {}
    before = crowd.model_metric("fingerprint", "foreseen_model_rows_total")
    for number in range(REQUESTS):
        tenant, other = rng.sample(TENANTS, 2)
        row, way, line = numbers(940_000 + rng.randrange(TEXTS)), rng.choice(WAYS), rng.choice(lines)
        path, body, more = way(rng, row)
        allowed = {200}
        if number % 7 == 0:
            data, allowed = mutated(rng, tenant, other, path, body, more)
        else:
            data = plain(rng, tenant, path, body, more)
        if number % 11 == 0:
            cut = rng.randrange(1, len(data))
            line.send(data[:cut])
            line.send(data[cut:])
        else:
            line.send(data)
        reply = line.reply()
        statuses[reply[0]] = statuses.get(reply[0], 0) + 1
        assert reply[0] in allowed, (reply, data)
        if reply[0] == 200:
            check(reply, way, row, embedded)
            place = (shared_by(tenant), "minilm" if way is openai else "fingerprint", row[0])
            if place not in asked:
                assert "hit" not in reply[1]["cache-status"], (tenant, data)
            asked.add(place)
    for line in lines:
        line.close()
    assert sum(statuses.values()) == REQUESTS
    assert statuses[200] > 0.85 * REQUESTS
    assert statuses[401] > 200
    computed = crowd.model_metric("fingerprint", "foreseen_model_rows_total") - before
    assert computed >= len({place for place in asked if place[1] == "fingerprint"})


def test_pipelined_requests_of_two_tenants_are_two_tenants(crowd: Live) -> None:
    """A second request in the same bytes, with another's key, is answered as the other's: nothing of it is the
    first's, also where the first head is known."""
    line = Line(crowd.port)
    row, second = numbers(949_001), numbers(949_002)
    mine = request(FINGERPRINT, b"", [])
    for _ in range(6):
        body, other = json.dumps(ask_fingerprint(row)).encode(), json.dumps(ask_fingerprint(second)).encode()
        mine = request(FINGERPRINT, body, ["Host: h", "X-API-Key: key-of-t1", f"Content-Length: {len(body)}"])
        theirs = request(FINGERPRINT, other, ["Host: h", "X-API-Key: key-of-t2", f"Content-Length: {len(other)}"])
        wrong = request(FINGERPRINT, other, ["Host: h", "X-API-Key: key-of-xx", f"Content-Length: {len(other)}"])
        line.send(mine + theirs + wrong + mine)
        replies = [line.reply() for _ in range(4)]
        assert [reply[0] for reply in replies] == [200, 200, 401, 200]
        for reply, wanted in zip(replies, (row, second, None, row), strict=True):
            if wanted is not None:
                check(reply, v2, wanted, {})
    line.send(mine)
    assert line.reply()[0] == 200
    line.close()


def test_colliding_bodies_of_two_tenants_are_never_crossed(crowd: Live) -> None:
    """Bodies that XXH3 takes for one another, one of each tenant, in turns on one connection."""
    given = np.random.default_rng(18).integers(-(2**40), 2**40, 64 * 16).view(np.float32)
    line = Line(crowd.port)
    for pair in (chosen_pair(given), (given, second_preimage(given))):
        wanted = [
            [fingerprint(row) for row in np.frombuffer(one.tobytes(), "<i8").reshape(-1, 16).tolist()] for one in pair
        ]
        for turn in range(8):
            for at, tenant in ((0, "t1"), (1, "t2"), (1, "t1"), (0, "t2")):
                body = pair[at].tobytes()
                lines = ["Host: h", f"X-API-Key: {key_of(tenant)}", f"Content-Length: {len(body)}", f"{LENGTH}: 0"]
                line.send(request(FINGERPRINT, body, lines))
                status, headers, content = line.reply()
                assert status == 200
                assert re.search("hit|miss|partial", headers["cache-status"])
                found = parse_response(content, int(headers[LENGTH.lower()])).outputs[0].array.tolist()
                assert found == wanted[at], turn
    line.close()
