"""Ten thousand requests of eight tenants, mixed and mutated: no answer of another text, no hit of another's entry."""

from __future__ import annotations

import hashlib
import json
import random
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from foreseen.models.build.build import build
from foreseen.models.folder.add import add
from foreseen.models.progress import SilentProgress
from foreseen.modelspec.manifest import load
from foreseen.protocol.open_inference import message
from foreseen.protocol.wire import parse_response
from tests.collisions import chosen_pair, second_preimage
from tests.grpc_calls import Channel
from tests.hf_folders import WORDS, cross_encoder
from tests.live import Live, fresh, given
from tests.ports import free_port
from tests.questions import ask_fingerprint, fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT

TEXTS, FIRST = 24, 940_000
SEEDS = {numbers(seed)[0]: seed for seed in range(FIRST, FIRST + TEXTS)}
"""Of the rows that are asked, by their first number."""
PLAIN = [word for word in WORDS if word.isalpha()]
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


class Crowd(NamedTuple):
    """A system of eight tenants."""

    live: Live
    grpc_port: int

    @property
    def port(self) -> int:
        return self.live.port


@pytest.fixture(scope="module")
def crowd(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    folder, grpc_port = tmp_path_factory.mktemp("crowd"), free_port()
    tables = [
        f'[tenant.{name}]\nscope = "{scope}"\nkeys = ["sha256:{hashlib.sha256(key_of(name).encode()).hexdigest()}"]\n'
        for name, scope in SCOPES.items()
    ]
    (folder / "keys.toml").write_text("".join(tables))
    given(built, folder / "data")
    ranker = add(str(cross_encoder(folder / "one")), "ranker", folder / "mine", folder / "data", SilentProgress())
    build(load(ranker), folder / "data", say=SilentProgress())
    flags = (f"--keys-file={folder / 'keys.toml'}", "--workers=2", f"--grpc-port={grpc_port}")
    models = (f"--models={folder / 'mine'}", *(f"--model={name}" for name in ("minilm", "fingerprint", "ranker")))
    with fresh(folder / "data", *flags, *models) as system:
        yield Crowd(system, grpc_port)


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


def rerank(rng: random.Random, row: list[int]) -> tuple[str, bytes, list[str]]:
    at = SEEDS[row[0]] - FIRST
    body = {"model": "ranker", "query": PLAIN[0], "documents": [" ".join([PLAIN[1 + at % 6], PLAIN[7 + at // 6]])]}
    return rng.choice(["/v1/rerank", "/v2/rerank", "/rerank"]), json.dumps(body).encode(), []


def ticket(rng: random.Random, row: list[int]) -> tuple[str, bytes, list[str]]:
    """Half of them are computed whatever is known."""
    more = ["Cache-Control: no-cache"] if rng.random() < 0.5 else []
    return FINGERPRINT, json.dumps(ask_fingerprint(row)).encode(), ["Prefer: respond-async", *more]


def batch(rng: random.Random, row: list[int]) -> tuple[str, bytes, list[str]]:
    lines = [{"model": "fingerprint", **ask_fingerprint(one)} for one in batch_rows(row)]
    return "/v2/predictions:batch", "\n".join(map(json.dumps, lines)).encode(), []


def batch_rows(row: list[int]) -> list[list[int]]:
    """A batch's rows: this one, and one that only batches ask."""
    return [row, numbers(SEEDS[row[0]] + TEXTS)]


Way = Callable[[random.Random, list[int]], tuple[str, bytes, list[str]]]
WAYS: tuple[Way, ...] = (*((v2, binary, v1, openai, rerank) * 5), v2, ticket, batch)
MODELS: dict[Way, str] = {openai: "minilm", rerank: "ranker"}
"""Of ways that do not ask `fingerprint`."""


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


def scores_of(document: Any) -> list[float]:
    """Of a rerank reply in any form."""
    results = document if isinstance(document, list) else document["results"]
    return [one["score"] if "score" in one else one["relevance_score"] for one in results]


def check(reply: Reply, way: Any, row: list[int], known: dict[tuple[str, int], Any]) -> None:
    """A 200 has the answer to its own row. `known` is the first answer to each text of other models."""
    _, headers, body = reply
    if way in MODELS:
        document = json.loads(body)
        found = document["data"][0]["embedding"] if way is openai else scores_of(document)
        assert known.setdefault((MODELS[way], row[0]), found) == found
        return
    if way is v1:
        digest = json.loads(body)["predictions"][0]["digest"]
    elif way is binary:
        digest = parse_response(body, int(headers[LENGTH.lower()])).outputs[0].array[0].tolist()
    else:
        digest = json.loads(body)["outputs"][0]["data"]
    assert digest == fingerprint(row)


class Mixed:
    """What was asked so far, and what of it has to be fetched."""

    def __init__(self, port: int, grpc: Channel, rng: random.Random) -> None:
        self.rng = rng
        self.lines = [Line(port) for _ in range(6)]
        self.grpc = grpc
        self.asked: set[tuple[str, str, int]] = set()
        """Scope, model and text of each row that a tenant may have an entry of."""
        self.known: dict[tuple[str, int], Any] = {}
        """The first answer to each text, of models that only have to answer alike."""
        self.tickets: list[tuple[str, str, Way, list[list[int]]]] = []
        """Tenant, place, way, and rows."""
        self.statuses: Counter[int] = Counter()

    def by_http(self, number: int) -> None:
        """One request of one tenant, perhaps mutated, perhaps in two pieces."""
        rng = self.rng
        tenant, other = rng.sample(TENANTS, 2)
        row, way, line = numbers(FIRST + rng.randrange(TEXTS)), rng.choice(WAYS), rng.choice(self.lines)
        path, body, more = way(rng, row)
        allowed = {202} if way is batch else {200, 202} if way is ticket else {200}
        if number % 7 == 0:
            data, statuses = mutated(rng, tenant, other, path, body, more)
            allowed = (allowed if 200 in statuses else set()) | statuses - {200}
        else:
            data = plain(rng, tenant, path, body, more)
        cut = rng.randrange(1, len(data)) if number % 11 == 0 else 0
        for piece in (data[:cut], data[cut:]) if cut else (data,):
            line.send(piece)
        reply = line.reply()
        self.statuses[reply[0]] += 1
        assert reply[0] in allowed, (reply, data)
        if reply[0] == 200:
            check(reply, way, row, self.known)
            self.seen(tenant, way, row[0], reply[1]["cache-status"])
        elif reply[0] == 202:
            rows = batch_rows(row) if way is batch else [row]
            self.tickets.append((tenant, reply[1]["location"], way, rows))
            self.asked.update((shared_by(tenant), "fingerprint", one[0]) for one in rows)

    async def by_grpc(self) -> None:
        """One call, perhaps with a wrong key, two keys, none, or another's where anything may stand."""
        rng = self.rng
        tenant, other = rng.sample(TENANTS, 2)
        row = numbers(FIRST + rng.randrange(TEXTS))
        names = rng.sample(["x_api_key", "api_key", "authorization"], 2)
        pairs = zip((tenant, other), names, strict=True)
        own, foreign = (f"{'Bearer ' * (name == 'authorization')}{key_of(one)}" for one, name in pairs)
        given, refused = {names[0]: own}, False
        match rng.randrange(10):
            case 0:
                given, refused = {names[0]: own[:-1] + "!"}, True
            case 1:
                given, refused = {names[0]: own, names[1]: foreign}, True
            case 2:
                given, refused = {}, True
            case 3:
                given["x_request_id"] = key_of(other)
        answer = await self.grpc.infer(row, raw=rng.random() < 0.5, model="fingerprint", seconds=60, **given)
        self.statuses[401 if refused else 200] += 1
        assert answer.code.name == ("UNAUTHENTICATED" if refused else "OK"), (answer, given)
        if not refused:
            assert answer.rows == [fingerprint(row)]
            self.seen(tenant, v2, row[0], answer.cache)

    def seen(self, tenant: str, way: Any, text: int, status: str) -> None:
        """The first row of a scope is no hit."""
        place = shared_by(tenant), MODELS.get(way, "fingerprint"), text
        if place not in self.asked:
            assert "hit" not in status, (place, status)
        self.asked.add(place)

    def fetch(self, live: Live) -> None:
        """Every ticket and batch: nothing for another tenant, also of the same scope; the right answer for its own."""

        def got(path: str, tenant: str, **more: str) -> tuple[int, bytes]:
            status, _, body = live.ask("GET", path, None, {"X-API-Key": key_of(tenant), **more})
            return status, body

        for tenant, place, way, rows in self.tickets:
            for other in (one for one in TENANTS if one != tenant):
                if shared_by(other) == shared_by(tenant) or self.rng.random() < 0.1:
                    path = self.rng.choice([place, f"{place}/result"])
                    assert got(path, other)[0] == 404, (tenant, other)
            assert json.loads(got(place, tenant, Prefer="wait=60")[1])["state"] == "succeeded"
            status, body = got(f"{place}/result", tenant)
            assert status == 200
            found = (
                [json.loads(one)["response"]["body"] for one in body.splitlines()]
                if way is batch
                else [json.loads(body)]
            )
            assert [one["outputs"][0]["data"] for one in found] == [fingerprint(row) for row in rows]


@pytest.mark.parametrize("requests", [2_500, pytest.param(10_000, marks=pytest.mark.long)])
async def test_mixed_requests_of_eight_tenants_are_never_crossed(crowd: Crowd, requests: int) -> None:
    """Over all HTTP dialects, rerank, gRPC, tickets and batches, on connections that tenants share, whole and in
    pieces, with and without mutations."""
    channel = Channel(f"127.0.0.1:{crowd.grpc_port}")
    mixed = Mixed(crowd.live.port, channel, random.Random(18))
    before = crowd.live.model_metric("fingerprint", "foreseen_model_rows_total")
    try:
        for number in range(requests):
            if number % 9 == 1:
                await mixed.by_grpc()
            else:
                mixed.by_http(number)
        mixed.fetch(crowd.live)
    finally:
        await channel.close()
        for line in mixed.lines:
            line.close()
    assert mixed.statuses.total() == requests
    assert mixed.statuses[200] + mixed.statuses[202] > 0.85 * requests
    assert mixed.statuses[401] > requests / 50
    assert {way for _, _, way, _ in mixed.tickets} == {ticket, batch}
    assert len(mixed.tickets) > requests / 50
    for model in ("minilm", "ranker"):
        answers = [json.dumps(answer) for (one, _), answer in mixed.known.items() if one == model]
        assert len(answers) == len(set(answers)) == TEXTS
    computed = crowd.live.model_metric("fingerprint", "foreseen_model_rows_total") - before
    assert computed >= len({place for place in mixed.asked if place[1] == "fingerprint"})


async def test_statistics_that_count_all_tenants_are_for_no_tenant(crowd: Crowd) -> None:
    """By gRPC, which knows no operators; what a tenant may know of a model is answered."""
    channel = Channel(f"127.0.0.1:{crowd.grpc_port}")
    try:
        for name, code in (("ModelStatistics", "PERMISSION_DENIED"), ("ModelMetadata", "OK")):
            request = message(f"{name}Request")(name="fingerprint")
            assert (await channel.ask(name, request, x_api_key=key_of("t1"))).code.name == code
    finally:
        await channel.close()


def test_pipelined_requests_of_two_tenants_are_two_tenants(crowd: Crowd) -> None:
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


def test_colliding_bodies_of_two_tenants_are_never_crossed(crowd: Crowd) -> None:
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
