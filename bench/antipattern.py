"""The reason this exists: a big model behind an online API, alone and behind Foreseen: `make bench-antipattern`.

*web-single* is what everybody starts with: an aiohttp application that holds tokenizer and fp32 model in the API
process (tuned: one thread, runs off the event loop, texts that wait together are batched). Foreseen serves the same
model family. Both sit on one core, the load on the other. The trace is real where `../shared/data` is there: key order
and popularity of a product recommendation service (a sample by key, which keeps its repeats), texts of dialogues, gaps
of an LLM service's arrivals; else it is made, with the real one's repeat curve. The curve is stated first. The rate is
raised step by step until the 99th percentile of a step is above the limit or requests fail; what was reached before is
the figure. Each step goes on in the trace where the one before ended.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import gzip
import itertools
import json
import lzma
import math
import os
import random
import statistics
import sys
import tempfile
import urllib.request
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import xxhash
from rich.console import Console
from rich.table import Table

from bench.hit_servers import foreseen
from bench.interleaved import LOAD_CORE, OUT, ROOT, awake, end, listens, machine, pinned, says
from bench.load import at_once, post
from foreseen.models.build.build import prepare
from foreseen.models.build.publish import workshop
from foreseen.models.graphs.graph import to_bytes
from foreseen.models.progress import SilentProgress
from foreseen.modelspec.manifest import find
from tests.live import sum_of
from tests.models_fixture import PACKAGED, built_data
from tests.ports import free_port

SHARED = ROOT.parent / "shared" / "data"
CONNECTIONS = 256
TIMEOUT_SECONDS = 5.0
PART_REQUESTS = 20_000
LOOKUPS = 500
DISCOUNT, STRENGTH = 0.7, 25.0
"""Of the made keys; fitted to the real trace's repeat curve: 52 % of 1,000 requests, 75 % of 10,000, 77 % of 33,000."""
CURVE_AT = (1_000, 10_000, 33_000, 100_000)
RESULTS = ("near", "far", "model", "collapsed")

WEB_SINGLE = """
import asyncio, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np, onnxruntime as ort, orjson, uvloop
from aiohttp import web
from tokenizers import Tokenizer

folder, port = Path(sys.argv[1]), int(sys.argv[2])
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.enable_truncation(256)
options = ort.SessionOptions(); options.intra_op_num_threads = 1
session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
thread, waiting = ThreadPoolExecutor(1), asyncio.Queue()

def run(texts):
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(texts)
    ids = np.array([e.ids for e in encoded], np.int64); mask = np.array([e.attention_mask for e in encoded], np.int64)
    return session.run(None, {"input_ids": ids, "attention_mask": mask})[0]

async def work():
    while True:
        batch = [await waiting.get()]
        while not waiting.empty() and len(batch) < 8: batch.append(waiting.get_nowait())
        rows = await asyncio.get_running_loop().run_in_executor(thread, run, [text for text, _ in batch])
        for (_, future), row in zip(batch, rows):
            if not future.done(): future.set_result(row)

async def answer(request):
    asked = orjson.loads(await request.read())
    future = asyncio.get_running_loop().create_future()
    waiting.put_nowait((asked["inputs"][0]["data"][0], future))
    row = await future
    output = {"name": "embedding", "datatype": "FP32", "shape": [1, 384], "data": row}
    body = orjson.dumps({"model_name": "minilm", "outputs": [output]}, option=orjson.OPT_SERIALIZE_NUMPY)
    return web.Response(body=body, content_type="application/json")

async def main():
    app = web.Application(); app.router.add_post("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None); await runner.setup()
    worker = asyncio.create_task(work())
    await web.TCPSite(runner, "127.0.0.1", port).start(); await worker
uvloop.run(main())
"""


@dataclass
class Step:
    """One rate: what was offered and what came of it. Latencies in seconds."""

    offered: float
    answered: float
    p50: float
    p99: float
    failed: int


def question(text: str) -> bytes:
    return json.dumps({"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}]}).encode()


def trace(requests: int) -> tuple[list[str], list[float], str]:
    """Texts in order of asking, gaps with mean 1, and where they come from."""
    if not SHARED.is_dir():
        return _made_trace(requests)
    with lzma.open(SHARED / "scarab_recs_keys.csv.xz", "rt") as file:
        keys = _sampled([row["key"] for row in csv.DictReader(file)], requests)
    with lzma.open(SHARED / "sgd_user_utterances.csv.xz", "rt") as file:
        texts = list(dict.fromkeys(row["text"] for row in csv.DictReader(file)))
    with gzip.open(SHARED / "azure_llm2023_conv.csv.gz", "rt") as file:
        times = [float(row["t_s"]) for row in csv.DictReader(file)]
    number = {key: n for n, key in enumerate(dict.fromkeys(keys))}
    asked = [f"{texts[number[key] % len(texts)]}{' again' * (number[key] // len(texts))}" for key in keys]
    gaps = [max(0.0, b - a) for a, b in itertools.pairwise(times)]
    mean = statistics.fmean(gaps)
    return asked, [gap / mean for gap in gaps], "scarab keys, SGD texts, Azure arrivals"


def _sampled(keys: list[str], requests: int) -> list[str]:
    """Parts of a trace, each with all requests of some of its keys: repeats stay as frequent as in the whole."""
    parts = max(1, len(keys) // PART_REQUESTS)
    order: list[list[str]] = [[] for _ in range(parts)]
    for key in keys:
        order[xxhash.xxh3_64_intdigest(key.encode()) % parts].append(key)
    return list(itertools.chain.from_iterable(order))[:requests]


def _made_trace(requests: int) -> tuple[list[str], list[float], str]:
    rng = random.Random(7)
    words = [f"word{n}" for n in range(2000)]
    keys = made_keys(requests, rng)
    texts = {key: " ".join(random.Random(key).choices(words, k=random.Random(key).randint(4, 24))) for key in set(keys)}
    return (
        [texts[key] for key in keys],
        [rng.expovariate(1.0) for _ in range(5000)],
        "made: keys that repeat as the real ones do, Poisson arrivals",
    )


def made_keys(requests: int, rng: random.Random) -> list[int]:
    """Keys with the repeat curve of the real trace: parts of a Pitman-Yor process, whose number of different keys grows
    with a power of the number of requests, as the real one's does."""
    keys: list[int] = []
    times: list[int] = []
    while len(keys) < requests:
        start, first = len(keys), len(times)
        for at in range(min(PART_REQUESTS, requests - start)):
            if rng.random() * (at + STRENGTH) < STRENGTH + DISCOUNT * (len(times) - first):
                keys.append(len(times))
                times.append(1)
                continue
            key = keys[start + rng.randrange(at)]
            while rng.random() * times[key] < DISCOUNT:
                key = keys[start + rng.randrange(at)]
            keys.append(key)
            times[key] += 1
    return keys


def repeats(asked: Sequence[Hashable]) -> dict[int, float]:
    """The share of repeats among the first so many requests."""
    seen: set[Hashable] = set()
    curve = {}
    for number, key in enumerate(asked, 1):
        seen.add(key)
        if number in CURVE_AT or number == len(asked):
            curve[number] = 1 - len(seen) / number
    return curve


class Load:
    """An open loop: requests leave when the trace says so, whether or not earlier ones were answered."""

    def __init__(self, url: str, texts: Sequence[str], gaps: Sequence[float]) -> None:
        self._port = int(url.rsplit(":", 1)[1])
        self._texts = iter(texts)
        self._gaps = itertools.cycle(gaps)
        self._idle: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def connect(self) -> None:
        for _ in range(CONNECTIONS):
            self._idle.put_nowait(await asyncio.open_connection("127.0.0.1", self._port))

    async def step(self, rate: float, seconds: float) -> Step:
        """Offer this rate for so long; latency counts from when a request was due."""
        loop = asyncio.get_running_loop()
        began = due = loop.time()
        tasks = []
        took: list[float] = []
        while due < began + seconds:
            text = next(self._texts)
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            tasks.append(loop.create_task(self._ask(text, due, took)))
            due += next(self._gaps) / rate
        await asyncio.wait(tasks, timeout=TIMEOUT_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        took.sort()
        at = [took[min(len(took) - 1, int(len(took) * share))] if took else math.inf for share in (0.5, 0.99)]
        return Step(len(tasks) / seconds, len(took) / seconds, at[0], at[1], len(tasks) - len(took))

    async def _ask(self, text: str, due: float, took: list[float]) -> None:
        body = question(text)
        head = f"POST /v2/models/minilm/infer HTTP/1.1\r\nHost: b\r\nContent-Length: {len(body)}\r\n\r\n"
        reader, writer = await self._idle.get()
        whole = False
        try:
            writer.write(head.encode() + body)
            said = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(said.split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            whole = True
            if said.startswith(b"http/1.1 200"):
                took.append(asyncio.get_running_loop().time() - due)
        finally:
            if not whole:
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            self._idle.put_nowait((reader, writer))


async def climb(
    url: str, limit: float, seconds: float, start: float, texts: Sequence[str], gaps: Sequence[float]
) -> list[Step]:
    """Steps of rising rate up to and with the first that falls over twice: once may be a neighbour's doing."""
    load = Load(url, texts, gaps)
    await load.connect()
    steps: list[Step] = []
    rate, fell = start, False
    with contextlib.suppress(StopIteration, RuntimeError):  # the trace has an end
        while True:
            steps.append(await load.step(rate, seconds))
            last = steps[-1]
            print(
                f"  {last.offered:8.0f}/s offered  {last.answered:8.0f}/s answered  p99 {last.p99 * 1e3:8.1f} ms",
                file=sys.stderr,
            )
            falls = last.p99 > limit or last.failed > 0.01 * last.offered * seconds
            if falls and fell:
                break
            fell = falls
            rate *= 1.0 if falls else 1.3
    return steps


@contextlib.contextmanager
def web_single(folder: Path) -> Iterator[str]:
    """The fp32 model in the API process, on the server's core."""
    port = free_port()
    (folder / "single").mkdir()
    data = built_data()
    with workshop(data, SilentProgress()) as bench:
        made = prepare(find("minilm", PACKAGED), data, bench, SilentProgress())
        (folder / "single" / "model.onnx").write_bytes(to_bytes(made.fp32))
        (folder / "single" / "tokenizer.json").write_bytes((made.files / "tokenizer.json").read_bytes())
    command = [sys.executable, "-c", WEB_SINGLE, str(folder / "single"), str(port)]
    with pinned(command, ready=lambda: listens(port)):
        yield f"http://127.0.0.1:{port}"


def best(steps: Sequence[Step], limit: float) -> Step:
    """The highest rate that was answered within the limit."""
    passed = [step for step in steps if step.p99 <= limit and not step.failed]
    return max(passed, key=lambda step: step.answered) if passed else steps[0]


def main() -> None:
    """Climb with both, print the steps, the ratio and what the break-even formula says of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="length of one step")
    parser.add_argument("--limit-ms", type=float, default=250.0, help="the 99th percentile that still counts as up")
    parser.add_argument("--requests", type=int, default=200_000, help="length of the trace")
    parser.add_argument("--report-only", action="store_true", help="exit 0 also where a goal is missed")
    settings = parser.parse_args()
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    texts, gaps, origin = trace(settings.requests)
    limit = settings.limit_ms / 1e3
    with tempfile.TemporaryDirectory(prefix="fsn") as name:
        folder = Path(name)
        Console(stderr=True).print("web-single, fp32 in the API process")
        with web_single(folder) as url:
            alone = asyncio.run(climb(url, limit, settings.seconds, 20.0, texts, gaps))
        Console(stderr=True).print("Foreseen")
        with foreseen(folder, "cached") as (url, _):
            cached = asyncio.run(climb(url, limit, settings.seconds, 20.0, texts, gaps))
            text = urllib.request.urlopen(f"{url}/metrics", timeout=10).read().decode()
            lookup = lookup_seconds(url, texts)
    rows = {what: sum_of(text, "foreseen_rows_total", {"model": "minilm", "result": what}) for what in RESULTS}
    steps = {"web-single": alone, "foreseen": cached}
    met = show(best(alone, limit), best(cached, limit), rows, lookup, f"{origin}; {curve(texts)}", steps)
    end(met, report_only=settings.report_only)


def curve(texts: Sequence[str]) -> str:
    """The repeat curve of a trace, in words: what a cache can do with it is decided there."""
    shares = ", ".join(f"{share:.0%} of {number:,}" for number, share in repeats(texts).items())
    return f"repeats: {shares} requests"


def lookup_seconds(url: str, texts: Sequence[str]) -> float:
    """What a hit of the trace takes of the core."""
    path = "/v2/models/minilm/infer"
    known = [post(path, question(text)) for text in dict.fromkeys(texts[:LOOKUPS])]
    at_once(url, known, 16)
    return 1 / at_once(url, known * 10, 16).rate


def show(
    one: Step, other: Step, rows: dict[str, float], lookup: float, origin: str, steps: dict[str, list[Step]]
) -> bool:
    """Trace, table, verdicts and JSON; whether the goals are met."""
    print(origin)
    asked = sum(rows.values())
    hits = 1 - rows["model"] / max(1.0, asked)
    table = Table(title="A big model behind an online API", caption=f"{origin}; {machine()}")
    for column in ("", "requests/s", "p50 ms", "p99 ms", "model rows per 100 requests"):
        table.add_column(column, justify="left" if not column else "right")
    for what, step, share in (("web-single (fp32)", one, 100.0), ("Foreseen (int8-rowwise)", other, 100 * (1 - hits))):
        table.add_row(what, f"{step.answered:,.0f}", f"{step.p50 * 1e3:.1f}", f"{step.p99 * 1e3:.1f}", f"{share:.1f}")
    Console().print(table)
    ratio = other.answered / one.answered
    print(f"Foreseen answers {ratio:.1f} times as much; {hits:.1%} of {asked:,.0f} rows were not computed anew.")
    cost = 1 / one.answered
    even = cost / (lookup + (1 - hits) * cost)
    parts = f"C = {cost * 1e3:.2f} ms, C_lookup = {lookup * 1e6:.0f} µs, h = {hits:.3f}"
    print(f"C / (C_lookup + (1-h)C) with {parts}: {even:.1f}")
    OUT.mkdir(parents=True, exist_ok=True)
    told = {name: [asdict(step) for step in listed] for name, listed in steps.items()}
    document = {
        "machine": machine(),
        "trace": origin,
        "ratio": ratio,
        "break_even": even,
        "lookup_seconds": lookup,
        "saved_share": hits,
        "rows": rows,
        "steps": told,
    }
    (OUT / "antipattern.json").write_text(json.dumps(document, indent=1))
    _plot(steps)
    there = min(steps["foreseen"], key=lambda step: abs(step.offered - one.offered))
    met = says("times as much as web-single, by the formula's own", ratio / even, 1.0, "×")
    return says("p99 at web-single's rate", there.p99 / one.p99, 0.5, "× web-single's", least=False) and met


def _plot(steps: dict[str, list[Step]]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4))
    for name, listed in steps.items():
        axes.plot([s.answered for s in listed], [s.p99 * 1e3 for s in listed], marker="o", label=name)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="answered requests/s",
        ylabel="p99, ms",
        title="Load raised until each falls over",
    )
    axes.legend()
    figure.tight_layout()
    figure.savefig(OUT / "antipattern.svg")


if __name__ == "__main__":
    with awake():
        main()
