"""The fast path answers like aiohttp: same status, headers and body, same counters, nothing crossed."""

from __future__ import annotations

import json
import random
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from foreseen.models.build.build import build
from foreseen.models.progress import SilentProgress
from foreseen.modelspec.manifest import find
from tests.live import Live, started, sum_of
from tests.models_fixture import PACKAGED
from tests.questions import ask_fingerprint, ask_minilm, fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT, MINILM
from tests.stories.test_60_start_and_stop import foreseen

TIMES = ("age", "date", "server-timing")


@pytest.fixture(scope="module")
def plain(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A system without an answer cache. What it is asked carries a cookie, so that aiohttp reads all of it."""
    with started(
        built, tmp_path_factory.mktemp("plain") / "d", "--reply-cache-bytes=0", models=["fingerprint"]
    ) as system:
        yield system


class Line:
    """A keep-alive connection that sends bytes and reads replies."""

    open_ones: ClassVar[list[Line]] = []

    def __init__(self, live: Live) -> None:
        self.socket = socket.create_connection(("127.0.0.1", live.port), 20)
        self.file = self.socket.makefile("rb")
        Line.open_ones.append(self)

    def ask(self, raw: bytes) -> tuple[list[tuple[str, str]], bytes]:
        self.socket.sendall(raw)
        return self.reply()

    def reply(self) -> tuple[list[tuple[str, str]], bytes]:
        """Status line and headers in order, then the body."""
        head = [("", self.file.readline().decode().strip())]
        while line := self.file.readline().decode().strip():
            name, _, value = line.partition(": ")
            head.append((name.lower(), value))
        return head, self.file.read(int(dict(head)["content-length"]))

    def close(self) -> None:
        self.file.close()
        self.socket.close()


@pytest.fixture(autouse=True)
def _closed_lines() -> Iterator[None]:
    """Whatever a test opened is closed, also where it failed."""
    yield
    while Line.open_ones:
        Line.open_ones.pop().close()


def raw(body: bytes, path: str = FINGERPRINT, **headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def by_aiohttp(asked: bytes) -> bytes:
    """The same request with a header that no known head has."""
    return asked.replace(b"Host:", b"Cookie: a=b\r\nHost:", 1)


def replayed(head: list[tuple[str, str]]) -> bool:
    return dict(head).get("server-timing") == "replay"


def without_times(head: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Headers in order; what changes with time has its name only, a ttl its absence of digits."""
    return [(n, "" if n in TIMES else v.split(";ttl=")[0]) for n, v in head]


def counted(live: Live) -> dict[str, float]:
    """What a system has counted of fingerprint."""
    text = live.get("/metrics")[2].decode()
    names = [("foreseen_requests_total", "code", code) for code in ("200", "400")]
    names += [("foreseen_rows_total", "result", result) for result in ("near", "far", "model", "collapsed", "error")]
    names += [("foreseen_request_duration_seconds_count", "result", result) for result in ("hit", "miss", "partial")]
    return {
        f"{name} {value}": sum_of(text, name, {"model": "fingerprint", label: value}) for name, label, value in names
    }


def test_the_third_time_it_is_replayed_with_the_same_bytes(live: Live) -> None:
    """Computed, then a hit, then a hit that is remembered, then replayed: headers in the same order, the body equal."""
    line, asked = Line(live), raw(json.dumps(ask_minilm("Replay this, please.")).encode(), MINILM)
    first, *rest = [line.ask(asked) for _ in range(5)]
    assert [replayed(head) for head, _ in rest] == [False, False, True, True]
    assert len({body for _, body in (first, *rest)}) == 1
    assert len({tuple(without_times(head)) for head, _ in rest}) == 1


def test_replays_are_counted_like_any_other_hit(live: Live) -> None:
    """Requests, rows by result, durations: what was asked is what is counted, at once."""
    line, asked = Line(live), raw(json.dumps(ask_fingerprint(numbers(2500), numbers(2501))).encode())
    names = ("foreseen_requests_total", "foreseen_rows_total", "foreseen_request_duration_seconds_count")
    before = [live.metric(name, model="fingerprint") for name in names]
    replays = sum(replayed(line.ask(asked)[0]) for _ in range(20))
    assert replays >= 17
    after = [live.metric(name, model="fingerprint") for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [20, 40, 20]


def test_mixed_traffic_is_the_same_on_both_ways(live: Live, plain: Live) -> None:
    """The same seeded stream of requests, some repeated to the byte, cut in pieces or malformed, to a system with
    an answer cache and to aiohttp alone: every reply is the same but for its times."""
    rng = random.Random(25)
    lines = {system.url: Line(system) for system in (live, plain)}
    pool = [
        json.dumps(ask_fingerprint(*(numbers(26_000 + n) for n in range(k, k + 1 + k % 3)))).encode() for k in range(12)
    ]
    before = {system.url: counted(system) for system in (live, plain)}
    ways: Counter[str | None] = Counter()
    for step in range(600):
        body = rng.choice(pool)
        if rng.random() < 0.3:
            body = b'{"id":"%d",' % rng.randrange(10**6) + body[1:]
        kind = rng.random()
        if kind < 0.75:
            pieces = [raw(body)]
        elif kind < 0.85:
            cut = rng.randrange(1, len(raw(body)))
            pieces = [raw(body)[:cut], raw(body)[cut:]]
        elif kind < 0.9:
            pieces = [raw(body, Cache_Control="max-age=100")]
        elif kind < 0.95:
            pieces = [raw(body[:-1] + b" }")]
        else:
            pieces = [raw(body.replace(b"INT64", b"INT63"))]
        heads = []
        for url, line in lines.items():
            whole = b"".join(pieces) if url == live.url else by_aiohttp(b"".join(pieces))
            for piece in (whole[: len(pieces[0])], whole[len(pieces[0]) :]):
                line.socket.sendall(piece)
            head, answer = line.reply()
            heads.append((without_times(head), answer))
            if url == live.url:
                ways[dict(head).get("server-timing", "").split(",")[0].split(";")[0]] += 1
        if step > 50:  # by then both have computed all of the pool
            assert heads[0] == heads[1], step
    assert ways["replay"] > 150
    assert ways["shortcut"] > 50
    after = {system.url: counted(system) for system in (live, plain)}
    one, other = ({name: after[url][name] - before[url][name] for name in after[url]} for url in lines)
    assert one == other


def test_pipelined_known_requests_are_answered_in_order(live: Live) -> None:
    """Two known requests in one packet, then a third: each gets its own answer."""
    line = Line(live)
    bodies = [json.dumps(ask_fingerprint(numbers(27_000 + n))).encode() for n in range(2)]
    for body in bodies * 3:
        line.ask(raw(body))
    line.socket.sendall(raw(bodies[0]) + raw(bodies[1]) + raw(bodies[0]))
    for n in (0, 1, 0):
        _, answer = line.reply()
        assert json.loads(answer)["outputs"][0]["data"] == fingerprint(numbers(27_000 + n))


def test_no_cache_and_other_wishes_are_never_answered_by_replay(live: Live) -> None:
    """The same body with Cache-Control: no-cache is computed anew, between replays of the plain request."""
    line = Line(live)
    body = json.dumps(ask_fingerprint(numbers(28_000))).encode()
    for _ in range(4):
        line.ask(raw(body))
    head, _ = line.ask(raw(body, Cache_Control="no-cache"))
    assert dict(head)["cache-status"] == "foreseen;fwd=request"


def test_far_hits_of_known_bodies_are_the_same_on_both_ways(built: Path, tmp_path: Path) -> None:
    """Without near every hit is far's: the same bytes under changing ids, alone and many at once, to a system that
    answers them itself and to one whose aiohttp does: equal replies, equal counts."""
    with (
        started(built, tmp_path / "fast", "--near-bytes=0", models=["fingerprint"]) as fast,
        started(built, tmp_path / "plain", "--near-bytes=0", "--reply-cache-bytes=0", models=["fingerprint"]) as plain,
    ):
        bodies = [json.dumps(ask_fingerprint(*(numbers(30_000 + n + k) for k in range(n)))).encode() for n in (1, 3)]
        told: dict[str, list[Any]] = {}
        for system in (fast, plain):
            lines = [Line(system) for _ in range(8)]
            told[system.url] = []
            for body in bodies:
                lines[0].ask(raw(body))
                system.until("foreseen_far_pending_bytes", lambda value: value == 0)
            for turn in range(30):
                asked = [b'{"id":"%d",' % (turn * n) + bodies[turn % 2][1:] for n in range(1, 9)]
                for line, body in zip(lines, asked, strict=True):
                    whole = raw(body if turn % 3 else bodies[turn % 2])
                    line.socket.sendall(whole if system is fast else by_aiohttp(whole))
                for line in lines:
                    head, body = line.reply()
                    told[system.url].append((without_times(head), body))
        assert told[fast.url] == told[plain.url]
        assert counted(fast) == counted(plain)
        assert counted(fast)["foreseen_rows_total far"] == 30 * 8 * 2


def test_a_purge_ends_replays_at_once(own: Live) -> None:
    """What was replayed a moment ago is computed anew after the purge's acknowledgement, and replayed again later."""
    line, asked = Line(own), raw(json.dumps(ask_fingerprint(numbers(29_000))).encode())
    assert [replayed(line.ask(asked)[0]) for _ in range(5)][-2:] == [True, True]
    done = foreseen("purge", f"--data={own.data}", "--model=fingerprint")
    assert done.returncode == 0, done.stderr
    head, body = line.ask(asked)
    assert dict(head)["cache-status"] == "foreseen;fwd=miss;stored"
    assert json.loads(body)["outputs"][0]["data"] == fingerprint(numbers(29_000))
    assert [replayed(line.ask(asked)[0]) for _ in range(4)][-1]


def test_replay_goes_when_the_model_changes(own: Live) -> None:
    """The model process comes back with another artifact in force: no kept reply of the old one is sent."""
    line, asked = Line(own), raw(json.dumps(ask_fingerprint(numbers(29_001))).encode())
    assert [replayed(line.ask(asked)[0]) for _ in range(5)][-1]
    before = json.loads(own.get("/v2/models/fingerprint")[2])["parameters"]["digest"]
    with_seal(own, 2)
    own.signal("model:fingerprint", signal.SIGKILL)
    while json.loads(own.get("/v2/models/fingerprint")[2])["parameters"]["digest"] == before:
        line.ask(asked)  # the old model's answers, until the new one has spoken
    assert json.loads(line.ask(asked)[1])["outputs"][1]["data"] == [2]


def with_seal(live: Live, seal: int) -> None:
    """Put a fingerprint of another version in force."""
    manifest = find("fingerprint", PACKAGED)
    assert manifest.source is not None
    source = msgspec.structs.replace(manifest.source, options={"seal": seal})
    build(msgspec.structs.replace(manifest, source=source), live.data, quick=True, say=SilentProgress())
