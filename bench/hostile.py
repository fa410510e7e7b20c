"""What one caller's load costs another: wide batches beside single rows, and the costliest bodies beside hits.

    python -m bench.hostile

Two loads of another process, each beside the same measurement without it. Thirty-two connections ask for 64 new texts
at a time, and a caller of another address for one new text every 50 ms: how long it waits, and how many rows the model
computes per second of its CPU with and without it. (Per second of the clock that is what the machine's other processes
leave.) Then bodies come, one behind the other, that are small and would be large once parsed,
while hits are asked for. Ends with status 1 where a goal is missed. Clients and system share the machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp

from bench.interleaved import end, says
from tests.live import Live, started
from tests.models_fixture import built_data
from tests.questions import ask_fingerprint, ask_minilm, numbers

WIDE, ROWS = 32, 64
SINGLE_SECONDS = 0.05
HIT_SECONDS = 0.005
COMPANY_SECONDS = 11
"""So long after a caller's last row the model's runs are short for its next one."""
MOST_WAIT_MS = 11.0
LEAST_THROUGHPUT = 0.85
"""Starting short runs takes a seventh of the time at most (`PIECE_STARTS`)."""
MOST_P99 = 2.0
MINILM, FINGERPRINT = "/v2/models/minilm/infer", "/v2/models/fingerprint/infer"


def caller(address: str) -> aiohttp.ClientSession:
    """A client of an own loopback address: another caller to the proxy."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, local_addr=(address, 0)))


async def post(client: aiohttp.ClientSession, url: str, **body: object) -> int:
    async with client.post(url, **body) as reply:  # type: ignore[arg-type]
        await reply.read()
        return reply.status


async def ask_wide(url: str) -> None:
    """Rows that nobody has asked before, without a pause."""
    fresh = itertools.count(os.getpid() * 10**9)
    words = "of the wide caller, with some words so that a row is no shorter than rows usually are"
    async with caller("127.0.0.1") as client:

        async def forever() -> None:
            while True:
                texts = (f"text {next(fresh)} {words}" for _ in range(ROWS))
                if await post(client, url + MINILM, json=ask_minilm(*texts)) == 503:
                    await asyncio.sleep(0.02)

        await asyncio.gather(*(forever() for _ in range(WIDE)))


async def ask_much(url: str) -> None:
    """Bodies that would take gigabytes, and the longest list that is parsed, one behind the other."""
    objects = gzip.compress(b'{"inputs":[' + b",".join([b"{}"] * 20_000_000) + b"]}", 6)
    head = b'{"inputs":[{"name":"x","datatype":"INT64","shape":[1,16],"data":['
    bodies = itertools.cycle([(objects, {"Content-Encoding": "gzip"}), (head + b"7," * 900_000 + b"7]}]}", {})])
    async with caller("127.0.0.1") as client:
        for body, headers in bodies:
            status = await post(client, url + FINGERPRINT, data=body, headers=headers)
            assert status in (400, 413, 503), status


LOADS = {"wide": ask_wide, "much": ask_much}


@contextlib.contextmanager
def under_way(kind: str, live: Live) -> Iterator[None]:
    """A load of another process, which has begun."""
    process = subprocess.Popen([sys.executable, "-m", "bench.hostile", "--load", kind, "--url", live.url])
    try:
        time.sleep(5)
        assert process.poll() is None, "the load has ended"
        yield
    finally:
        process.kill()
        process.wait()


async def repeat(ask: Callable[[], Awaitable[int]], every: float, seconds: float) -> list[float]:
    """Seconds of each of the answers; every one has to be a 200."""
    took, until = [], time.monotonic() + seconds
    while (begun := time.monotonic()) < until:
        status = await ask()
        assert status == 200, status
        took.append(time.monotonic() - begun)
        await asyncio.sleep(begun + every - time.monotonic())
    return took


def quantile_ms(seconds: list[float], share: float) -> float:
    return 1000 * statistics.quantiles(seconds, n=1000, method="inclusive")[round(share * 1000) - 1]


def work_of(live: Live) -> tuple[float, float]:
    """Rows that the model has computed, and seconds of CPU of its process."""
    fields = Path(f"/proc/{live.children()['model:minilm']}/stat").read_text().rsplit(")", 1)[1].split()
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return live.model_metric("minilm", "foreseen_model_rows_total"), cpu


def per_cpu_second(before: tuple[float, float], after: tuple[float, float]) -> float:
    return (after[0] - before[0]) / (after[1] - before[1])


async def fairness(live: Live, seconds: float) -> bool:
    """A single row beside wide batches."""
    fresh = itertools.count()
    async with caller("127.0.0.2") as narrow:

        async def ask_one() -> int:
            return await post(narrow, live.url + MINILM, json=ask_minilm(f"one row {next(fresh)}"))

        calm = await repeat(ask_one, SINGLE_SECONDS, seconds / 2)
        await asyncio.sleep(COMPANY_SECONDS)
        with under_way("wide", live):
            before = work_of(live)
            await asyncio.sleep(seconds)
            alone = per_cpu_second(before, work_of(live))
            await ask_one()
            before = work_of(live)
            beside = await repeat(ask_one, SINGLE_SECONDS, seconds)
            both = per_cpu_second(before, work_of(live))
    print("a single new row         p50 ms   p99 ms   model rows per CPU second")
    print(f"alone                  {quantile_ms(calm, 0.5):8.1f} {quantile_ms(calm, 0.99):8.1f}")
    print(f"beside wide batches    {quantile_ms(beside, 0.5):8.1f} {quantile_ms(beside, 0.99):8.1f} {both:14.0f}")
    print(f"wide batches alone     {alone:32.0f}")
    met = says("a single row's wait beside wide batches", quantile_ms(beside, 0.5), MOST_WAIT_MS, "ms", least=False)
    return says("the model's rows per CPU second meanwhile", both / alone, LEAST_THROUGHPUT, "× alone") and met


async def memory(live: Live, seconds: float) -> bool:
    """Hits beside bodies that would take much memory if they were parsed."""
    async with caller("127.0.0.2") as honest:

        async def hit() -> int:
            return await post(honest, live.url + FINGERPRINT, json=ask_fingerprint(numbers(1)))

        await hit()
        calm = await repeat(hit, HIT_SECONDS, seconds)
        with under_way("much", live):
            beside = await repeat(hit, HIT_SECONDS, seconds)
    print("a hit                    p50 ms   p99 ms")
    for name, seen in (("alone", calm), ("beside hostile bodies", beside)):
        print(f"{name:22} {quantile_ms(seen, 0.5):8.2f} {quantile_ms(seen, 0.99):8.2f}")
    ratio = quantile_ms(beside, 0.99) / quantile_ms(calm, 0.99)
    return says("the p99 of hits beside hostile bodies", ratio, MOST_P99, "× alone", least=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--report-only", action="store_true", help="exit 0 also where a goal is missed")
    parser.add_argument("--load", choices=LOADS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load is not None:
        asyncio.run(LOADS[options.load](options.url))
    with tempfile.TemporaryDirectory() as folder, started(built_data(), Path(folder) / "data") as live:
        met = asyncio.run(fairness(live, options.seconds))
        met = asyncio.run(memory(live, options.seconds)) and met
    end(met, report_only=options.report_only)


if __name__ == "__main__":
    main()
