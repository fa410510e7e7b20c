"""A gRPC hit beside an empty `grpc.aio` servicer and Triton's cache: `make bench-grpc`.

One raw request of 1 KB repeated on 4 connections of 8 calls each; every server has one core, the load the other
(`http2_load.py`). The empty servicer answers bytes of the same length and is the ceiling: what grpcio itself costs.
What is compared is CPU time of the serving process for a request, beyond what it uses idle: other work on the machine
changes rates but hardly this. Then misses one after another, each a new row, beside Triton's and beside the model
process asked over its unix socket.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from bench.hit_servers import ask, foreseen
from bench.http2_load import Load
from bench.interleaved import (
    LOAD_CORE,
    ROOT,
    Turn,
    awake,
    end,
    listens,
    pinned,
    report,
    says,
    take_turns,
    tree_seconds,
    verdict,
    wrk,
)
from bench.load import in_turn, post
from bench.peers import prove_cached, triton
from bench.wrk_scripts import binary, script
from foreseen.paths import model_socket
from foreseen.protocol.grpc_messages import render_request
from tests.ports import free_port

BASE = "empty grpc.aio servicer"
INFER = "/inference.GRPCInferenceService/ModelInfer"
CONNECTIONS, STREAMS = 4, 8
MISSES = 300
IDLE_SECONDS = 3.0
EMPTY = """
import sys, uvloop, asyncio, grpc
from grpc import aio
answer = open(sys.argv[2], 'rb').read()
async def infer(body, context):
    return answer
class Handler:
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(infer)
async def main():
    server = aio.server(); server.add_generic_rpc_handlers((Handler(),))
    server.add_insecure_port('127.0.0.1:' + sys.argv[1]); await server.start(); await server.wait_for_termination()
uvloop.run(main())
"""


def body_of(row: np.ndarray, request_id: str = "") -> bytes:
    return render_request("wide", [("x", "INT64", row)], {}, request_id)


def rows() -> Iterator[np.ndarray]:
    """A new row each time."""
    for number in itertools.count(1):
        yield np.arange(128, dtype=np.int64)[None] + 1_000_003 * number


@contextlib.contextmanager
def empty(folder: Path) -> Iterator[str]:
    port = free_port()
    (folder / "answer").write_bytes(bytes(90))
    with pinned([sys.executable, "-c", EMPTY, str(port), str(folder / "answer")], ready=lambda: listens(port)):
        yield f"127.0.0.1:{port}"


def descendants(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield int(child)
            yield from descendants(int(child))


def beyond_idle(turn: Turn, pid: int, seconds: float) -> Turn:
    """A turn that also says what a request costs the server beyond what it uses when it is asked nothing."""
    before = tree_seconds(pid)
    time.sleep(IDLE_SECONDS)
    idle = (tree_seconds(pid) - before) / IDLE_SECONDS

    def take() -> tuple[float, ...]:
        before, started = tree_seconds(pid), time.perf_counter()
        rate, *more = turn()
        spent = tree_seconds(pid) - before - idle * (time.perf_counter() - started)
        return rate, *more, spent / (rate * seconds)

    return take


def owner_of(port: int) -> int:
    """The process that serves on a port: the last of those that were given it, which is the worker of a system."""
    owner = 0
    for pid in descendants(os.getpid()):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        if any(word.endswith(str(port)) for word in words) and "worker" not in words:
            owner = pid
    assert owner, port
    return owner


def turn(address: str, file: Path, seconds: float) -> tuple[float, float, float]:
    """Hits from a process on the load core."""
    words = [address, INFER, str(file), str(CONNECTIONS), str(STREAMS), str(seconds)]
    command = ["taskset", "-c", LOAD_CORE, sys.executable, "-m", "bench.http2_load", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    rate, p50, p99 = json.loads(done.stdout)
    return rate, p50, p99


def misses(address: str, made: Iterator[np.ndarray]) -> float:
    """The median seconds of new rows, one after another."""
    load = Load(address, INFER, lambda: body_of(next(made)), 1)
    while len(load.took) < MISSES:
        load.receive()
    load.finish()
    return statistics.median(load.took[20:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--report-only", action="store_true")
    options = parser.parse_args()
    made = rows()
    ports = free_port(), free_port()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as running:
        folder = Path(name)
        running.enter_context(awake())
        nothing = running.enter_context(empty(folder))
        url = running.enter_context(foreseen(folder, "foreseen", f"--grpc-port={ports[0]}")).url
        peer = running.enter_context(triton(folder, ports[1]))
        ours, theirs = (f"127.0.0.1:{port}" for port in ports)
        row = next(made)
        hit, http = folder / "hit", binary("x", [1, 128], "INT64", row.tobytes())
        hit.write_bytes(body_of(row))
        path = f"{url}/v2/models/wide/infer"
        for _ in range(4):
            ask(path, *http)
        plain = script(folder, "http", http[0], length=http[1])
        turns: dict[str, Turn] = {}

        def add(what: str, port: int, ask: Turn) -> None:
            turns[what] = beyond_idle(ask, owner_of(port), options.seconds)

        add(BASE, int(nothing.rpartition(":")[2]), partial(turn, nothing, hit, options.seconds))
        add("Foreseen over gRPC", ports[0], partial(turn, ours, hit, options.seconds))
        if peer is not None:
            turn(theirs, hit, 1.0)
            add("Triton over gRPC, cache on", ports[1], partial(turn, theirs, hit, options.seconds))
        load = partial(wrk, path, plain, connections=CONNECTIONS * STREAMS, seconds=options.seconds)
        add("Foreseen over HTTP", ports[0], load)
        figures = take_turns(turns, options.rounds)
        prove_cached(peer)
        socket = model_socket(folder / "foreseen", "wide")
        direct = [
            post("/v2/models/wide/infer", *binary("x", [1, 128], "INT64", next(made).tobytes())) for _ in range(MISSES)
        ]
        seconds = {"model process over its unix socket": in_turn(f"unix:{socket}", direct).quantile(0.5)}
        seconds["Foreseen over gRPC"] = misses(ours, made)
        if peer is not None:
            seconds["Triton over gRPC, cache on"] = misses(theirs, made)
        report("gRPC hits", figures, BASE, misses=seconds)
        for what, median in seconds.items():
            print(f"a miss of one row, one after another: {what}: {1000 * median:.2f} ms")
        met = verdict(figures, BASE, {"Foreseen over gRPC": 0.6})
        added = seconds["Foreseen over gRPC"] - seconds["model process over its unix socket"]
        met &= says("a miss over gRPC adds", 1000 * added, 2.0, "ms", least=False)
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
            assert b'protocol="grpc"' in reply.read()
    end(met, report_only=options.report_only)


if __name__ == "__main__":
    main()
