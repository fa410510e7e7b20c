"""A hit beside a web server's: `make bench-hit`.

One 1 KB JSON request repeated, against nginx `proxy_cache` keyed by `$request_body` and a bare aiohttp application that
answers from a dict; then what a hit costs when the body differs (a fresh `id`, known rows in a body never seen), when
it comes from Redis, when head and body come apart, for text, for batches of 64 rows and for tensors of 602 KB; last the
latency at half of what saturates it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np

from bench.hit_servers import Running, ask, dict_server, foreseen, nginx
from bench.interleaved import (
    LOAD_CORE,
    Turn,
    awake,
    end,
    metered,
    report,
    says,
    take_turns,
    verdict,
    wrk,
)
from bench.peers import mlserver, prove_cached, triton
from bench.split_packet import Lines, as_fast_as_answered
from bench.wrk_scripts import (
    CREDENTIAL,
    FRESH_ID,
    FRESH_TRACE,
    FRESH_USER,
    JSON,
    KNOWN_ROWS,
    OTHER_CASE,
    PACED,
    PAIRS,
    RESTING,
    SHUFFLED,
    THREE,
    binary,
    script,
)
from foreseen.types import Array
from tests.questions import ask_minilm

BASE = "nginx proxy_cache"
PARTS = ("numbers", "rows", "texts", "batches", "tensors")
POOL = 1024
SINGLE_ROWS = 200_000
FILL_ROWS = 1024


def raw_request(url: str, body: bytes) -> bytes:
    """What `apart` sends."""
    place, path = url.removeprefix("http://").split("/", 1)
    head = f"POST /{path} HTTP/1.1\r\nHost: {place}\r\nContent-Type: {JSON}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


GOALS = {
    "near, the same bytes": 1.13,
    "near, a fresh id": 0.7,
    "far, the same bytes": 0.48,
    "8 known rows of 16 numbers, a body never seen": 0.25,
    "8 known rows of 128 numbers, a body never seen": 0.25,
    "8 known rows of 16 numbers, 384 in the answer, a body never seen": 0.25,
    "1 known row of 16 numbers, a body never seen": 0.35,
    "two known texts, a pair never seen": 0.25,
    "1 known text, written as never before": 0.25,
    "OpenAI body never seen, 3 known texts, base64": 0.2,
}
"""Times nginx."""


class Bench:
    """The systems, and the turns of everybody."""

    def __init__(self, folder: Path, running: contextlib.ExitStack, settings: argparse.Namespace) -> None:
        self.folder = folder
        self.settings = settings
        self.pids: dict[str, int] = {}
        self.here = self._running(running.enter_context(foreseen(folder, "near", f"--near-bytes={1 << 30}")))
        self.far = self._running(running.enter_context(foreseen(folder, "far", "--near-bytes=0")))
        numbers = [(i * 102_953) % 30_522 for i in range(128)]
        self.one = json.dumps(
            {"inputs": [{"name": "x", "shape": [1, 128], "datatype": "INT64", "data": numbers}]}
        ).encode()
        wide = "/v2/models/wide/infer"
        answer = ask(self.here + wide, self.one)
        self.nginx = self._running(running.enter_context(nginx(folder, self.here))) + wide
        self.dict = self._running(running.enter_context(dict_server(folder, answer))) + wide
        self.wide, self.far_wide = self.here + wide, self.far + wide
        self.peers = {
            "Triton, cache on": running.enter_context(triton(folder)),
            "MLServer, cache on": running.enter_context(mlserver(folder)),
        }
        self.turns: dict[str, Turn] = {}

    def _running(self, server: Running) -> str:
        """Its URL; what it uses of the processor is measured from now on."""
        self.pids[server.url] = server.pid
        return server.url

    def add(self, what: str, url: str, script: Path, connections: int | None = None) -> None:
        wrk(url, script, connections=2, seconds=1)  # what can be remembered is
        count = connections or self.settings.connections
        seconds = max(1, round(self.settings.seconds))
        pid = next((pid for known, pid in self.pids.items() if url.startswith(f"{known}/")), None)

        def turn() -> tuple[float, ...]:
            return wrk(url, script, connections=count, seconds=seconds)

        self.turns[what] = turn if pid is None else metered(turn, pid, seconds)

    def add_apart(self, what: str, url: str) -> None:
        lines = Lines(url, self.settings.connections, raw_request(url, self.one))
        self.turns[what] = lambda: as_fast_as_answered(lines, self.settings.seconds)

    def numbers(self) -> None:
        """1 KB of JSON: one row of 128 INT64."""
        exact = script(self.folder, "exact", self.one)
        fresh = script(self.folder, "fresh", self.one, FRESH_ID)
        self.add(BASE, self.nginx, exact)
        self.add("aiohttp application, dict", self.dict, exact)
        self.add("near, the same bytes", self.wide, exact)
        self.add("near, a fresh id", self.wide, fresh)
        self.add("near, a traceparent in each request", self.wide, script(self.folder, "trace", self.one, FRESH_TRACE))
        self.add("far, the same bytes", self.far_wide, exact)
        self.add("far, a fresh id", self.far_wide, fresh)
        self.add_apart("nginx, head and body apart", self.nginx)
        self.add_apart("near, head and body apart", self.wide)

        for name, peer in self.peers.items():
            if peer is not None:
                self.add(name, f"{peer}/v2/models/wide/infer", exact)

    def rows(self) -> None:
        """Known rows in bodies never seen, as JSON."""
        dice = np.random.default_rng(5)
        few = dice.integers(0, 30_522, (POOL, 128))
        self.known("8 known rows of 128 numbers, a body never seen", "wide", "x", few, 8)
        embedded = dice.integers(0, 2**40, (POOL, 16))
        self.known("8 known rows of 16 numbers, 384 in the answer, a body never seen", "embed", "x", embedded, 8)
        self.known("8 known rows of 16 numbers, a body never seen", "fingerprint", "x", embedded, 8)
        many = dice.integers(0, 2**40, (SINGLE_ROWS, 16))
        self.known("1 known row of 16 numbers, a body never seen", "fingerprint", "x", many, 1)

    def known(self, what: str, model: str, name: str, rows: Array, count: int) -> None:
        """Rows that are stored, and asked for so many at a time."""
        url, width = f"{self.here}/v2/models/{model}/infer", rows.shape[1]
        for at in range(0, len(rows), FILL_ROWS):
            part = rows[at : at + FILL_ROWS]
            ask(url, *binary(name, [*part.shape], "INT64", part.tobytes()))
        file = self.folder / f"{model}-{count}.rows"
        file.write_text("".join(",".join(map(str, row)) + "\n" for row in rows.tolist()))
        tensor = {"name": name, "shape": [count, width], "datatype": "INT64", "data": ["ROWS"]}
        body = json.dumps({"inputs": [tensor]}).replace('"ROWS"', "ROWS").encode()
        lua = KNOWN_ROWS.format(file=file, count=count)
        self.add(what, url, script(self.folder, f"{model}-{count}", body, lua))

    def texts(self) -> None:
        url = f"{self.here}/v2/models/minilm/infer"
        texts = [f"A man is eating {number} pieces of bread." for number in range(200)]
        ask(url, json.dumps(ask_minilm(*texts)).encode())
        one = json.dumps(ask_minilm(texts[0])).encode()
        pairs = PAIRS.format(texts=", ".join(f'"{text}"' for text in texts))
        self.add("text, the same bytes", url, script(self.folder, "text", one))
        self.add("text, a fresh id", url, script(self.folder, "text-fresh", one, FRESH_ID))
        self.add("two known texts, a pair never seen", url, script(self.folder, "pairs", one, pairs))
        listed = ", ".join(f'"{text}"' for text in texts)
        other = script(self.folder, "case", one, OTHER_CASE.format(texts=listed))
        self.add("1 known text, written as never before", url, other)
        asked, openai = json.dumps({"model": "minilm", "input": texts[0]}).encode(), f"{self.here}/v1/embeddings"
        same = script(self.folder, "openai", asked, CREDENTIAL)
        self.add("nginx, an OpenAI body", f"{self.nginx.partition('/v2/')[0]}/v1/embeddings", same)
        self.add("OpenAI body with Authorization, the same bytes", openai, same)
        fresh = script(self.folder, "openai-fresh", asked, CREDENTIAL, FRESH_USER)
        self.add("OpenAI body with a user never seen, of a known text", openai, fresh)
        three = script(self.folder, "openai-three", asked, CREDENTIAL, THREE.format(texts=listed))
        self.add("OpenAI body never seen, 3 known texts, base64", openai, three)

    def batches(self) -> None:
        """64 rows of 16 INT64, 384 FP32 each in the reply, all binary."""
        url = f"{self.here}/v2/models/embed/infer"
        pool = np.random.default_rng(3).integers(0, 2**40, (POOL, 16))
        for at in range(0, POOL, 64):
            ask(url, *binary("x", [64, 16], "INT64", pool[at : at + 64].tobytes()))
        known, length = binary("x", [64, 16], "INT64", pool[:64].tobytes())
        every = known[:length] + pool.tobytes()
        options = {"head": length, "pool": POOL}
        self.add("64 rows, the same bytes", url, script(self.folder, "batch", known, length=length))
        mixed = script(self.folder, "mixed", every, SHUFFLED.format(**options, fresh=0), length=length)
        self.add("64 known rows, in an order never seen", url, mixed)
        some = script(self.folder, "some", every, SHUFFLED.format(**options, fresh=16), length=length)
        self.add("64 rows, 16 of them new", url, some)

    def tensors(self) -> None:
        """224×224×3 FP32: 602 KB binary."""
        url = f"{self.here}/v2/models/picture/infer"
        picture = (np.random.default_rng(4).integers(0, 256, (1, 224, 224, 3)) / 256).astype(np.float32)
        tensor = {"name": "x", "shape": [1, 224, 224, 3], "datatype": "FP32", "data": picture.ravel().tolist()}
        text = json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()
        raw, length = binary("x", [1, 224, 224, 3], "FP32", picture.tobytes())
        self.add(f"picture as JSON, {len(text) // 1000} KB", url, script(self.folder, "picture", text), 4)
        self.add("picture, binary, 602 KB", url, script(self.folder, "raw", raw, length=length), 4)
        for name, peer in self.peers.items():
            if peer is not None:
                where = f"{peer}/v2/models/picture/infer"
                self.add(f"picture as JSON, {name}", where, self.folder / "picture.lua", 4)
                if name.startswith("Triton"):
                    self.add(f"picture, binary, {name}", where, self.folder / "raw.lua", 4)

    def at_half(self, rate: float, rounds: int) -> bool:
        """Latency where the server has as much to do as it can do in half of the time, and nginx's at that rate: many
        connections that each rest between a reply and the next request. Whether near's p99 is no more than nginx's."""
        rest = 2 * RESTING / rate  # seconds from one request of a connection to its next
        paced = script(self.folder, "paced", self.one, PACED.format(most=round(2000 * rest)))
        took: dict[str, list[tuple[float, float, float]]] = {"near": [], "nginx": []}
        for _ in range(rounds):
            for name, url in (("near", self.wide), ("nginx", self.nginx)):
                took[name].append(wrk(url, paced, connections=RESTING, seconds=self.settings.seconds))
        for name, turns in took.items():
            got, p50, p99 = (statistics.median(one) for one in zip(*turns, strict=True))
            least, most = (choose(turn[2] for turn in turns) * 1e3 for choose in (min, max))
            print(f"{name}, the same bytes, at half of near's saturation: {got:,.0f} requests/s,", end=" ")
            print(f"p50 {p50 * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms ({least:.2f}–{most:.2f})")
        ours, theirs = (statistics.median(turn[2] for turn in took[name]) * 1e3 for name in ("near", "nginx"))
        return says("p99 at half of saturation", ours, theirs, "ms", least=False)


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--only", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--report-only", action="store_true", help="exit 0 also where a goal is missed")
    settings = parser.parse_args()
    os.sched_setaffinity(0, {int(LOAD_CORE)})  # what is started here is put on the server's core where it serves
    with tempfile.TemporaryDirectory(prefix="fsn") as name, contextlib.ExitStack() as running:
        bench = Bench(Path(name), running, settings)
        bench.numbers()
        for part in settings.only or PARTS[1:]:
            if part != "numbers":
                getattr(bench, part)()
        figures = take_turns(bench.turns, settings.rounds)
        prove_cached(bench.peers["Triton, cache on"])
        report("A repeated request", figures, BASE, body_bytes=len(bench.one))
        for one in figures:
            if one.name.startswith("64"):
                print(f"{one.name}: {64 * statistics.median(one.rates):,.0f} rows/s")
        saturated = next(statistics.median(one.rates) for one in figures if one.name == "near, the same bytes")
        met = bench.at_half(saturated, settings.rounds)
        end(verdict(figures, BASE, GOALS) and met, report_only=settings.report_only)


if __name__ == "__main__":
    with awake():
        main()
