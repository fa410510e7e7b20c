"""Ten minutes of mixed load: does anything grow? Memory, descriptors, tasks and rows in flight, by their slopes.

    python -m tests.chaos.soak --seconds 600

Hits, new rows, rows that come again, requests with all words of Cache-Control, malformed ones, callers that hang up in
the middle, purges. The first third is for warming up: near fills, allocators settle. After it a straight line is laid
through each process's readings; what it would grow by in an hour of the same must stay below a bound.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from tests.live import Live, started
from tests.models_fixture import built_data
from tests.questions import ask_fingerprint, ask_minilm, fingerprint, numbers
from tests.raw import FINGERPRINT, MINILM

EVERY_SECONDS = 1.0
CLIENTS = 6
RATE = 120.0
WARM_SHARE = 1 / 3
GROWTH_PER_HOUR = {"MiB": 64.0, "descriptors": 20.0, "threads": 2.0, "tasks": 20.0, "in flight": 20.0}
"""What is flat: on readings that jump by a MiB or a connection, ten minutes tell slopes of no less apart."""
SMALL_BYTES = 2**20
"""Of every cache of a worker: they are full when the warming up is over. A cache that fills is no leak."""
FAR_BYTES = 5 * 2**20

Series = dict[tuple[str, str], list[tuple[float, float]]]
"""(process, measure) → (seconds, reading)."""


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Growth a second of the straight line through points (least squares)."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def judged(series: Series, seconds: float) -> list[tuple[str, str, float, float, bool]]:
    """Process, measure, its last reading, its growth in an hour, whether that is flat."""
    told = []
    for (process, measure), points in sorted(series.items()):
        late = [point for point in points if point[0] >= WARM_SHARE * seconds]
        growth = 3600 * slope(late) if len(late) > 2 else 0.0
        told.append((process, measure, points[-1][1], growth, growth <= GROWTH_PER_HOUR[measure]))
    return told


def read(live: Live, began: float, series: Series) -> None:
    """One reading of every process."""
    now = time.monotonic() - began
    processes = {name: pid for name, pid in live.children().items() if name != "proxy"}
    processes |= {f"worker {number}": pid for number, pid in enumerate(sorted(live.workers()))}
    for name, pid in processes.items():
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        series[name, "MiB"].append((now, int(status["VmRSS"].split()[0]) / 1024))
        series[name, "threads"].append((now, int(status["Threads"])))
        series[name, "descriptors"].append((now, len(list(Path(f"/proc/{pid}/fd").iterdir()))))
    series["workers", "in flight"].append((now, live.metric("foreseen_flight_rows")))
    series["workers", "tasks"].append((now, live.metric("foreseen_tasks")))


class Mixed:
    """Callers of every kind."""

    def __init__(self, live: Live, seed: int) -> None:
        self.answers = self.wrong = self.errors = 0
        self._live = live
        self._random = random.Random(seed)
        self._next = 1_000_000

    async def caller(self, over: asyncio.Event) -> None:
        """One connection after the other, at a steady rate."""
        while not over.is_set():
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as client:
                for _ in range(50):
                    await asyncio.sleep(CLIENTS / RATE * 2 * self._random.random())
                    await self._one(client)
                    if over.is_set():
                        return

    async def _one(self, client: aiohttp.ClientSession) -> None:
        chance = self._random.random()
        if chance < 0.03:
            await self._expect(client, FINGERPRINT, {"inputs": "nonsense"}, 400)
        elif chance < 0.06:
            with contextlib.suppress(TimeoutError, aiohttp.ClientError):  # hangs up in the middle
                async with asyncio.timeout(0.001):
                    await self._expect(client, FINGERPRINT, ask_fingerprint(numbers(self._fresh())), 200)
        elif chance < 0.2:
            await self._expect(client, MINILM, ask_minilm(f"soak number {self._random.randrange(2000)}"), 200)
        else:
            await self._fingerprints(client)

    async def _fingerprints(self, client: aiohttp.ClientSession) -> None:
        seeds = [self._seed() for _ in range(self._random.choice((1, 1, 1, 8, 32)))]
        words = self._random.choice(("", "", "", "no-cache", "no-store", "max-age=1", "only-if-cached"))
        headers = {"Cache-Control": words} if words else {}
        url, asked = self._live.url + FINGERPRINT, ask_fingerprint(*map(numbers, seeds))
        async with client.post(url, json=asked, headers=headers) as reply:
            body = await reply.read()
        self.answers += 1
        if reply.status == 504 and words == "only-if-cached":
            return
        if reply.status != 200:
            self.errors += 1
        elif json.loads(body)["outputs"][0]["data"] != [
            value for seed in seeds for value in fingerprint(numbers(seed))
        ]:
            self.wrong += 1

    async def _expect(self, client: aiohttp.ClientSession, path: str, body: object, status: int) -> None:
        async with client.post(self._live.url + path, json=body) as reply:
            await reply.read()
        self.answers += 1
        self.errors += reply.status != status

    def _seed(self) -> int:
        return self._fresh() if self._random.random() < 0.3 else self._random.randrange(3000)

    def _fresh(self) -> int:
        self._next += 1
        return self._next


async def _run(live: Live, seconds: float, seed: int) -> tuple[Series, Mixed]:
    series: Series = defaultdict(list)
    mixed, over, began = Mixed(live, seed), asyncio.Event(), time.monotonic()
    callers = [asyncio.create_task(mixed.caller(over)) for _ in range(CLIENTS)]
    while time.monotonic() - began < seconds:
        await asyncio.sleep(EVERY_SECONDS)
        await asyncio.to_thread(read, live, began, series)
        if len(series["workers", "in flight"]) % 30 == 0:
            print(f"{seconds - (time.monotonic() - began):5.0f} s left, {mixed.answers} answers", file=sys.stderr)
    over.set()
    await asyncio.gather(*callers)
    return series, mixed


def measure(folder: Path, seconds: float, seed: int) -> tuple[Series, Mixed]:
    caches = [f"--{name}-bytes={SMALL_BYTES}" for name in ("near", "reply-cache")]
    flags = ("--workers=2", *caches, f"--far-bytes={FAR_BYTES}")
    with started(built_data(), folder / "data", *flags) as live:
        return asyncio.run(_run(live, seconds, seed))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--json", type=Path, help="write all readings there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        series, mixed = measure(Path(folder), given.seconds, given.seed)
    if given.json:
        given.json.write_text(json.dumps({f"{process}, {what}": points for (process, what), points in series.items()}))
    print(f"{'process':<20}{'measure':<14}{'last':>10}{'growth/h':>12}")
    told = judged(series, given.seconds)
    for process, what, last, growth, flat in told:
        print(f"{process:<20}{what:<14}{last:>10.1f}{growth:>12.1f}{'' if flat else '  grows'}")
    print(f"{mixed.answers} answers, {mixed.wrong} wrong, {mixed.errors} errors; seed {given.seed}")
    return 1 if mixed.wrong or mixed.errors or not all(flat for *_, flat in told) else 0


if __name__ == "__main__":
    sys.exit(main())
