"""Jobs beside the synchronous path on the same rows: rows/s at saturation, each behind a cache that was just purged.

    python -m bench.jobs --model minilm --rows 32 --requests 150

One `foreseen up` with one worker. Synchronous: so many callers post and wait. Jobs: as many post with `respond-async`
while as many fetch results with `wait`; the time runs from the first question to the last answer in both. Rounds take
turns at going first. Ends with status 1 where the median ratio is below --least.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from tests.live import Live, started
from tests.models_fixture import built_data
from tests.questions import ask_fingerprint, ask_minilm, numbers

CALLERS = 32
WORDS = (
    "the",
    "a",
    "card",
    "payment",
    "money",
    "account",
    "when",
    "how",
    "why",
    "my",
    "has",
    "not",
    "arrived",
    "yet",
    "rate",
)


def questions(model: str, requests: int, rows: int) -> list[dict[str, Any]]:
    """Requests of rows that are all different; texts of about twelve words."""
    drawn = random.Random(9)
    if model == "fingerprint":
        return [ask_fingerprint(*(numbers(at * rows + row + 1) for row in range(rows))) for at in range(requests)]

    def text(number: int) -> str:
        return f"{' '.join(drawn.choices(WORDS, k=drawn.randint(6, 16)))} {number}"

    return [ask_minilm(*(text(at * rows + row) for row in range(rows))) for at in range(requests)]


async def _all(work: Any, items: Any, callers: int = CALLERS) -> None:
    waiting = iter(items)

    async def caller() -> None:
        for item in waiting:
            await work(item)

    await asyncio.gather(*(caller() for _ in range(callers)))


async def synchronous(client: aiohttp.ClientSession, url: str, bodies: list[bytes], callers: int = CALLERS) -> float:
    """Seconds for all of them, asked by so many callers."""

    async def ask(body: bytes) -> None:
        async with client.post(url, data=body) as reply:
            assert reply.status == 200, await reply.text()
            await reply.read()

    started_at = time.perf_counter()
    await _all(ask, bodies, callers)
    return time.perf_counter() - started_at


async def asynchronous(client: aiohttp.ClientSession, url: str, bodies: list[bytes]) -> float:
    """The same, by tickets."""
    tickets: asyncio.Queue[str] = asyncio.Queue()
    base = url.split("/v2/", maxsplit=1)[0]

    async def submit(body: bytes) -> None:
        async with client.post(url, data=body, headers={"Prefer": "respond-async"}) as reply:
            assert reply.status == 202, await reply.text()
            tickets.put_nowait(reply.headers["Location"])

    async def fetch(_: int) -> None:
        location = await tickets.get()
        while True:
            async with client.get(f"{base}{location}/result", headers={"Prefer": "wait=30"}) as reply:
                await reply.read()
                if reply.status == 200:
                    return
                assert reply.status == 409, reply.status

    started_at = time.perf_counter()
    await asyncio.gather(_all(submit, bodies), _all(fetch, range(len(bodies))))
    return time.perf_counter() - started_at


def purge(live: Live) -> None:
    command = [sys.executable, "-m", "foreseen.cli", "purge", f"--data={live.data}", "--all"]
    subprocess.run(command, check=True, capture_output=True)


async def measure(live: Live, model: str, requests: int, rows: int, rounds: int) -> dict[str, list[float]]:
    """Rows/s of each way, a figure a round."""
    url = f"{live.url}/v2/models/{model}/infer"
    bodies = [json.dumps(one).encode() for one in questions(model, requests, rows)]
    ways = {"synchronous": synchronous, "jobs": asynchronous}
    figures: dict[str, list[float]] = {name: [] for name in ways}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        for turn in range(rounds):
            for name in list(ways)[:: -1 if turn % 2 else 1]:
                await asyncio.to_thread(purge, live)
                before = live.model_metric(model, "foreseen_model_rows_total")
                figures[name].append(requests * rows / await ways[name](client, url, bodies))
                computed = live.model_metric(model, "foreseen_model_rows_total") - before
                assert computed == requests * rows, f"{computed} rows were computed"
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("minilm", "fingerprint"), default="minilm")
    parser.add_argument("--rows", type=int, default=32, help="rows of a request")
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--least", type=float, default=0.8)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        started(built_data(options.model), Path(folder) / "data", models=(options.model,)) as live,
    ):
        figures = asyncio.run(measure(live, options.model, options.requests, options.rows, options.rounds))
    pairs = zip(figures["jobs"], figures["synchronous"], strict=True)
    ratio = statistics.median(jobs / other for jobs, other in pairs)
    print(f"{options.model}, {options.requests} requests of {options.rows} rows, {options.rounds} rounds")
    for name, rates in figures.items():
        print(f"  {name:12} {statistics.median(rates):8,.0f} rows/s  ({min(rates):,.0f}–{max(rates):,.0f})")
    print(f"  jobs / synchronous {ratio:.2f}")
    sys.exit(0 if ratio >= options.least else 1)


if __name__ == "__main__":
    main()
