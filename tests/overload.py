"""An emptied Redis while four times as much is asked as the model can do, then normal load again: how soon it is well.

    python -m tests.overload

One system with near off, minilm behind it, on one core; open load from the other, at even distances whatever becomes of
those before, each with a deadline of a second, over texts that Redis knows. What the model can do is measured first;
four times as much is asked, which Redis answers; FLUSHALL, and it goes on like that; then half of what the model can
do. Every answer is held against the first one of its text. Ends with status 1 where an answer is wrong, or where from
the tenth second of normal load on fewer than 99 % are answered with 200.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from foreseen.paths import redis_socket
from foreseen.stores.redis_urls import connect
from tests.live import started
from tests.models_fixture import built_data
from tests.questions import ask_minilm

PATH = "/v2/models/minilm/infer"
DEADLINE_SECONDS = 1.0
KNOWN_SECONDS = 20.0
"""How long the model would take for all known texts."""
SHARE = 0.99
SETTLED_SECONDS = 10


@dataclass
class Phase:
    """Statuses by the second in which a request was due; 0 is no answer."""

    name: str
    rate: float
    seconds: list[Counter[int]] = field(default_factory=list)

    def share(self, second: int) -> float:
        told = self.seconds[second]
        return told[200] / max(1, told.total())

    def well_after(self) -> int | None:
        """The second from which on every one is well; None where the last is not."""
        ill = [number for number in range(len(self.seconds)) if self.share(number) < SHARE]
        after = ill[-1] + 1 if ill else 0
        return after if after < len(self.seconds) else None


@dataclass
class Run:
    """One system under load."""

    url: str
    client: aiohttp.ClientSession
    known: dict[str, bytes] = field(default_factory=dict)
    wrong: int = 0

    async def ask(self, text: str, seconds: float = DEADLINE_SECONDS) -> int:
        try:
            headers = {"Request-Timeout": f"{seconds:g}"}
            async with self.client.post(self.url + PATH, json=ask_minilm(text), headers=headers) as reply:
                body = await reply.read()
        except aiohttp.ClientError:
            return 0
        if reply.status == 200:
            outputs = body[body.index(b'"outputs"') :]
            if self.known.setdefault(text, outputs) != outputs:
                self.wrong += 1
        return reply.status

    async def capacity(self, seconds: float, clients: int = 16) -> float:
        """New texts per second that are answered when so many ask."""
        until, statuses, numbers = time.monotonic() + seconds, Counter[int](), itertools.count()

        async def one() -> None:
            while time.monotonic() < until:
                statuses[await self.ask(f"what can it do, number {next(numbers)}", 30)] += 1

        await asyncio.gather(*(one() for _ in range(clients)))
        return statuses[200] / seconds

    async def at_rate(self, name: str, rate: float, seconds: int, text: Callable[[], str]) -> Phase:
        phase = Phase(name, rate, [Counter() for _ in range(seconds)])
        tasks: set[asyncio.Task[None]] = set()
        start = time.monotonic()

        async def one(second: int) -> None:
            phase.seconds[second][await self.ask(text())] += 1

        for number in range(int(rate * seconds)):
            due = number / rate
            await asyncio.sleep(max(0.0, start + due - time.monotonic()))
            task = asyncio.create_task(one(int(due)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        return phase


async def overload(data: Path, overloaded: int, normal: int) -> tuple[Run, float, list[Phase]]:
    os.sched_setaffinity(0, {0})
    with started(built_data("minilm"), data, "--near-bytes=0", "--reply-cache-bytes=0", models=("minilm",)) as live:
        os.sched_setaffinity(0, {1})
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(60)) as client:
            run = Run(live.url, client)
            await run.capacity(1.0)
            capacity = await run.capacity(5.0)
            texts = [f"an emptied redis fills again, text number {n}" for n in range(int(KNOWN_SECONDS * capacity))]
            waiting = iter(texts)

            async def filling() -> None:
                for text in waiting:
                    assert await run.ask(text, 30) == 200

            await asyncio.gather(*(filling() for _ in range(16)))
            dice = random.Random(1)
            known = lambda: dice.choice(texts)  # noqa: E731
            phases = [await run.at_rate("four times as much, Redis knows all", 4 * capacity, 5, known)]
            far = connect(f"unix://{redis_socket(live.data)}", 5)
            await far.flushall()
            await far.aclose()
            phases.append(await run.at_rate("FLUSHALL, four times as much", 4 * capacity, overloaded, known))
            phases.append(await run.at_rate("half as much as it can do", capacity / 2, normal, known))
    return run, capacity, phases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--overloaded", type=int, default=10, help="seconds of overload after FLUSHALL")
    parser.add_argument("--normal", type=int, default=20, help="seconds of normal load after that")
    parser.add_argument("--json", action="store_true", help="print what was seen as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fsn") as folder:
        run, capacity, phases = asyncio.run(overload(Path(folder) / "data", options.overloaded, options.normal))
    well = phases[-1].well_after()
    good = not run.wrong and well is not None and well <= SETTLED_SECONDS
    if options.json:
        told = {phase.name: [dict(one) for one in phase.seconds] for phase in phases}
        print(json.dumps({"capacity": capacity, "wrong": run.wrong, "well_after_seconds": well, "statuses": told}))
        sys.exit(not good)
    print(f"the model can do {capacity:.0f} rows/s; {len(run.known):,} texts were answered, {run.wrong} wrong")
    for phase in phases:
        statuses = ", ".join(
            f"{status or 'none'} {count:,}" for status, count in sorted(sum(phase.seconds, Counter()).items())
        )
        shares = " ".join(f"{100 * phase.share(second):.0f}" for second in range(len(phase.seconds)))
        print(f"{phase.name}: {phase.rate:,.0f}/s; {statuses}\n    % answered with 200, by the second: {shares}")
    print("never well again" if well is None else f"normal load: at least 99 % from second {well} on")
    sys.exit(not good)


if __name__ == "__main__":
    main()
