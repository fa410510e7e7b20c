"""A hit beside a web server's: `make bench-hit`.

One 1 KB JSON request repeated, against nginx `proxy_cache` keyed by `$request_body` and a bare aiohttp application that
answers from a dict; then what a hit costs when the body differs (a fresh `id`, known rows in a body never seen), when
it comes from Redis, when head and body come apart, for text, for batches of 64 rows and for tensors of 602 KB; last the
latency at half of what saturates it.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench import shapes
from bench.interleaved import (
    LOAD_CORE,
    ROOT,
    Turn,
    awake,
    end,
    listens,
    metered,
    need,
    pinned,
    report,
    says,
    take_turns,
    verdict,
    wrk,
)
from bench.peers import mlserver, prove_cached, triton
from bench.split_packet import Lines, as_fast_as_answered
from foreseen.types import Array
from tests.models_fixture import built_data
from tests.ports import free_port
from tests.questions import ask_minilm

MODELS = ("minilm", "fingerprint", *shapes.NAMES)
BASE = "nginx proxy_cache"
PARTS = ("numbers", "rows", "texts", "batches", "tensors")
NGINX = """
user {user};
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_buffer_size 1m;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/temp; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  proxy_cache_path {folder}/cache keys_zone=hits:10m max_size=100m;
  keepalive_requests 100000000;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://127.0.0.1:{upstream};
      proxy_cache hits; proxy_cache_methods POST; proxy_cache_key "$request_uri|$request_body";
      proxy_cache_valid 200 1h; proxy_ignore_headers Cache-Control Expires;
    }}
  }}
}}
"""

DICT_SERVER = """
import sys, uvloop, asyncio
from aiohttp import web
body = open(sys.argv[2], 'rb').read()
kept = {}
async def answer(request):
    asked = await request.read()
    return web.Response(body=kept.setdefault(asked, body), content_type='application/json')
async def main():
    app = web.Application(); app.router.add_post('/{path:.*}', answer)
    runner = web.AppRunner(app, access_log=None); await runner.setup()
    await web.TCPSite(runner, '127.0.0.1', int(sys.argv[1])).start(); await asyncio.Event().wait()
uvloop.run(main())
"""


JSON, BINARY = "application/json", "application/octet-stream"
FRESH_ID = """local n = 0
request = function() n = n + 1
  return wrk.format(nil, nil, nil, '{"id":"' .. n .. '",' .. wrk.body:sub(2)) end"""
FRESH_USER = """local n = 10000000 + os.time() % 50000 * 100000
request = function() n = n + 1
  return wrk.format(nil, nil, nil, '{"user":"' .. n .. '",' .. wrk.body:sub(2)) end"""
CREDENTIAL = 'wrk.headers["Authorization"] = "Bearer sk-bench"'
FRESH_TRACE = """local n = os.time() % 50000 * 100000
request = function() n = n + 1
  wrk.headers["traceparent"] = string.format("00-%032x-%016x-00", n, n)
  return wrk.format() end"""
KNOWN_ROWS = """local rows = {{}}
for line in io.lines("{file}") do rows[#rows + 1] = line end
math.randomseed(os.time())
local at = math.random(#rows)
local head, tail = wrk.body:match("^(.-)ROWS(.*)$")
local t = {{}}
request = function()
  for i = 1, {count} do
    at = {count} == 1 and at % #rows + 1 or math.random(#rows)
    t[i] = rows[at]
  end
  return wrk.format(nil, nil, nil, head .. table.concat(t, ",") .. tail) end"""
"""Known rows in a body that was never seen: of several any of a pool, of one the next of more than a turn asks for."""
OTHER_CASE = """math.randomseed(os.time())
local texts = {{ {texts} }}
request = function()
  local text = texts[math.random(#texts)]:gsub("%l", function(c) return math.random(2) == 1 and c:upper() or c end)
  return wrk.format(nil, nil, nil,
    '{{"inputs":[{{"name":"text","shape":[1],"datatype":"BYTES","data":["' .. text .. '"]}}]}}') end"""
"""A known text as nobody has written it before: to this tokenizer, upper case is the same."""
THREE = """math.randomseed(os.time())
local texts = {{ {texts} }}
request = function()
  local t = {{}}
  for i = 1, 3 do t[i] = texts[math.random(#texts)] end
  return wrk.format(nil, nil, nil, '{{"input":["' .. table.concat(t, '","') ..
    '"],"model":"minilm","encoding_format":"base64"}}') end"""
PACED = """math.randomseed(1)
delay = function() return math.random(0, {most}) end"""
"""Milliseconds that a connection rests before its next request."""
RESTING = 256
SHUFFLED = """local head, rows = wrk.body:sub(1, {head}), {{}}
for i = 0, {pool} - 1 do rows[i + 1] = wrk.body:sub({head} + 128 * i + 1, {head} + 128 * (i + 1)) end
math.randomseed(1)
local n, t = 0, {{}}
request = function()
  for i = 1, 64 do t[i] = rows[math.random({pool})] end
  for i = 1, {fresh} do n = n + 1
    t[i] = string.char(n % 256, math.floor(n / 256) % 256, math.floor(n / 65536) % 256) .. t[i]:sub(4) end
  return wrk.format(nil, nil, nil, head .. table.concat(t)) end"""
"""64 rows of a pool in an order that never comes again, `fresh` of them unheard of."""
PAIRS = """local texts = {{ {texts} }}
math.randomseed(1)
request = function()
  local one, two = texts[math.random(#texts)], texts[math.random(#texts)]
  return wrk.format(nil, nil, nil,
    '{{"inputs":[{{"name":"text","shape":[2],"datatype":"BYTES","data":["' .. one .. '","' .. two .. '"]}}]}}') end"""
POOL = 1024
SINGLE_ROWS = 200_000
FILL_ROWS = 1024


def script(folder: Path, name: str, body: bytes, *lines: str, length: int | None = None) -> Path:
    """A wrk script that posts one body for ever, or what its Lua makes of it. `length`: of a binary one's JSON."""
    (folder / name).write_bytes(body)
    path = folder / f"{name}.lua"
    head = [f'wrk.headers["Content-Type"] = "{JSON if length is None else BINARY}"']
    if length is not None:
        head.append(f'wrk.headers["Inference-Header-Content-Length"] = "{length}"')
    read = f'local file = io.open("{folder / name}", "rb")\nwrk.body = file:read("*a")\nfile:close()'
    path.write_text("\n".join(['wrk.method = "POST"', *head, read, *lines]) + "\n")
    return path


def binary(name: str, shape: list[int], datatype: str, raw: bytes) -> tuple[bytes, int]:
    """A request of one binary tensor that wants its outputs binary; the length of its JSON part."""
    tensor = {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + raw, len(head)


class Running(NamedTuple):
    """A server: its URL, and the process that it is, or that has it as a child."""

    url: str
    pid: int


@contextlib.contextmanager
def foreseen(folder: Path, name: str, *flags: str) -> Iterator[Running]:
    """A system on the server's core."""
    port = free_port()
    data = folder / name
    data.mkdir()
    (data / "models").mkdir()
    for built, names in ((built_data(), ("minilm", "fingerprint")), (shapes.made()[0], shapes.NAMES)):
        for model in names:
            (data / "models" / model).symlink_to(built / "models" / model)
    command = [sys.executable, "-m", "foreseen.cli", "up", f"--data={data}", f"--port={port}", "--log-level=error"]
    command += [f"--models={shapes.FOLDER}", *(f"--model={name}" for name in MODELS), *flags]
    url = f"http://127.0.0.1:{port}"

    def predicts() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/v2/health/ready", timeout=1) as reply:
            return bool(reply.status == 200)
        return False

    with pinned(command, ready=predicts, stdout=subprocess.DEVNULL, cwd=ROOT) as process:
        yield Running(url, process.pid)


@contextlib.contextmanager
def nginx(folder: Path, upstream: str) -> Iterator[Running]:
    port = free_port()
    (folder / "nginx").mkdir()
    conf = folder / "nginx" / "nginx.conf"
    conf.write_text(
        NGINX.format(user=getpass.getuser(), folder=folder / "nginx", port=port, upstream=upstream.rsplit(":", 1)[1])
    )
    with pinned(
        [need("nginx", "nginx-light"), "-c", str(conf)], ready=lambda: listens(port), stderr=subprocess.DEVNULL
    ) as process:
        yield Running(f"http://127.0.0.1:{port}", process.pid)


@contextlib.contextmanager
def dict_server(folder: Path, answer: bytes) -> Iterator[Running]:
    port = free_port()
    (folder / "answer").write_bytes(answer)
    command = [sys.executable, "-c", DICT_SERVER, str(port), str(folder / "answer")]
    with pinned(command, ready=lambda: listens(port)) as process:
        yield Running(f"http://127.0.0.1:{port}", process.pid)


def ask(url: str, body: bytes, length: int | None = None) -> bytes:
    headers = {} if length is None else {"Inference-Header-Content-Length": str(length)}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as reply:
        return bytes(reply.read())


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
