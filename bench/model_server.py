"""Throughput of the model process under single-row clients, beside a bare ONNX Runtime loop at its best.

    python -m bench.model_server --data DATA [--model minilm] [--json FILE]

Both do the same rows with as many threads. The bare loop is tuned: every batch size, in order of arrival and sorted by
length over *all* rows, which no server can do; its batches are padded beforehand, so it pays for nothing but the runs.
The server is a process of its own on a unix socket; 64 clients send one row at a time, each waiting for its answer.
Rows are random ids of the lengths of short texts (mean about 12.6 tokens): what a run costs depends on lengths only.
The two take turns, each figure is the median of its turns, and the ratio is the median of the turns' ratios, so that
other work on the machine hits both alike.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from foreseen import models
from foreseen.inference.session import session_options
from foreseen.modelspec.artifact import read_file, read_record
from foreseen.modelspec.manifest import Manifest, find
from foreseen.modelspec.rows import stack
from foreseen.protocol import wire_render
from foreseen.types import Array, Row

SERVE = """
import sys, structlog
from pathlib import Path
from foreseen.settings import InferenceSettings
from foreseen.inference.app import serve
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
model, data, uds, threads, instances = sys.argv[1:]
serve(InferenceSettings(model=model, data=Path(data), uds=Path(uds), threads=int(threads), instances=int(instances)))
"""

Feeds = dict[str, Array]


def made_rows(manifest: Manifest, count: int) -> list[Row]:
    """Rows with lengths like those of short questions (log-normal, mean 12.6); fixed shapes get random numbers."""
    dice = np.random.default_rng(0)
    lengths = np.clip(np.round(dice.lognormal(2.41, 0.5, count)), 4, 62).astype(int)
    rows = []
    for length in lengths:
        tensors = []
        for spec in manifest.model.keyed:
            shape = [int(length) if isinstance(dim, str) else dim for dim in spec.shape[1:]]
            tensors.append(dice.integers(1000, 29000, shape) if spec.datatype == "INT64" else dice.random(shape, "f4"))
        rows.append(Row(tuple(tensors)))
    return rows


class Bare:
    """The loop: `instances` threads, each running padded batches one after the other on one session."""

    def __init__(self, manifest: Manifest, data: Path, threads: int, instances: int) -> None:
        record = read_record(data, manifest.name)
        options = session_options(record.artifact.precision, threads)
        graph = read_file(data, record.artifact, record.artifact.graph)
        self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._instances = instances

    def rate(self, batches: Sequence[Feeds], rows: int) -> float:
        """Rows per second."""
        queue = list(reversed(batches))

        def work() -> None:
            while True:
                try:
                    feeds = queue.pop()
                except IndexError:
                    return
                self._session.run(None, feeds)

        workers = [threading.Thread(target=work) for _ in range(self._instances)]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return rows / (time.perf_counter() - started)


def batched(rows: Sequence[Row], size: int, manifest: Manifest, *, by_length: bool) -> list[Feeds]:
    ordered = sorted(rows, key=lambda row: row.tensors[0].shape) if by_length else rows
    return [stack(ordered[at : at + size], manifest.model) for at in range(0, len(ordered), size)]


def request_of(row: Row, manifest: Manifest) -> bytes:
    """A whole HTTP request, binary tensors, as the proxy sends it."""
    signature = manifest.model
    inputs = [(s.name, s.datatype, tensor[None]) for s, tensor in zip(signature.keyed, row.tensors, strict=True)]
    body, length = wire_render.render_request(inputs, {})
    head = (
        f"POST /v2/models/{manifest.name}/infer HTTP/1.1\r\nHost: model\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {length}\r\n\r\n"
    )
    return head.encode() + body


async def client(uds: Path, questions: list[bytes], seconds: list[float]) -> None:
    """Ask until no question is left; a hand-made client, so that the load costs little of the two cores."""
    reader, writer = await asyncio.open_unix_connection(str(uds))
    while questions:
        started = time.perf_counter()
        writer.write(questions.pop())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = head.lower().split(b"content-length: ", 2)
        sizes = [int(part.split(b"\r\n", 1)[0]) for part in length[1:]]
        await reader.readexactly(max(sizes))  # the other one is the JSON part's, and smaller
        seconds.append(time.perf_counter() - started)
    writer.close()
    await writer.wait_closed()


async def served_rate(uds: Path, questions: Sequence[bytes], clients: int) -> tuple[float, float]:
    """Rows per second through the server, and the median seconds of one request."""
    left, seconds = list(questions), list[float]()
    started = time.perf_counter()
    await asyncio.gather(*(client(uds, left, seconds) for _ in range(clients)))
    return len(questions) / (time.perf_counter() - started), statistics.median(seconds)


async def measure(args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, object]:
    manifest = find(args.model, ((args.models,) if args.models else ()) + (Path(models.__file__).parent,))
    rows = made_rows(manifest, args.rows)
    bare = Bare(manifest, args.data, args.threads, args.instances)
    tuned: dict[str, float] = {}
    for by_length in (False, True):
        for size in (1, 2, 4, 8, 16, 32, 64):
            name = f"batch {size}, {'sorted by length' if by_length else 'in order of arrival'}"
            tuned[name] = bare.rate(batched(rows, size, manifest, by_length=by_length), len(rows))
            say(f"bare loop, {name:<36} {tuned[name]:8.0f} rows/s")
    best = max(tuned, key=tuned.__getitem__)
    batches = batched(rows, int(best.split()[1].rstrip(",")), manifest, by_length="sorted" in best)
    questions = [request_of(row, manifest) for row in rows]
    bares, serveds, waits = [], [], []
    with tempfile.TemporaryDirectory(prefix="fs") as folder:
        uds = Path(folder) / "m.sock"
        arguments = [args.model, str(args.data), str(uds), str(args.threads), str(args.instances)]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SERVE, *arguments, stderr=asyncio.subprocess.PIPE
        )
        assert process.stderr is not None
        while b"model ready" not in (line := await process.stderr.readline()):
            if not line:
                raise SystemExit("the model process ended before it was ready")
        await served_rate(uds, questions[: len(questions) // 4], args.clients)
        for _ in range(args.turns):
            bares.append(bare.rate(batches, len(rows)))
            rate, wait = await served_rate(uds, questions, args.clients)
            serveds.append(rate)
            waits.append(wait)
        process.send_signal(signal.SIGTERM)
        await process.stderr.read()
        await process.wait()
    bare_rate, served = statistics.median(bares), statistics.median(serveds)
    return {
        "model": args.model,
        "precision": read_record(args.data, args.model).artifact.precision,
        "rows": args.rows,
        "mean_length": sum(row.tensors[0].shape[0] for row in rows) / len(rows) if rows[0].tensors[0].ndim else 1,
        "threads": args.threads,
        "instances": args.instances,
        "clients": args.clients,
        "bare": {"best": best, "rows_per_second": bare_rate, "turns": bares, "tuning": tuned},
        "server": {"rows_per_second": served, "turns": serveds, "median_request_seconds": statistics.median(waits)},
        "ratio": statistics.median(s / b for s, b in zip(serveds, bares, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the built models")
    parser.add_argument("--models", type=Path, help="folder of further manifests")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--instances", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    found = asyncio.run(measure(args, lambda line: print(line, file=sys.stderr)))
    bare, server = found["bare"], found["server"]
    assert isinstance(bare, dict)
    assert isinstance(server, dict)
    print(f"\n{args.model} {found['precision']}, {args.instances} × {args.threads} threads, mean length "
          f"{found['mean_length']:.1f}, {args.clients} single-row clients, median of {args.turns}")  # fmt: skip
    print(f"{'bare ONNX Runtime loop':<28}{bare['rows_per_second']:>8.0f} rows/s   ({bare['best']})")
    print(f"{'through the model process':<28}{server['rows_per_second']:>8.0f} rows/s   "
          f"(median request {server['median_request_seconds'] * 1e3:.1f} ms)")  # fmt: skip
    print(f"{'ratio':<28}{found['ratio']:>8.2f}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
