"""One of four models is killed every two seconds, under load on the other three: what they notice of it.

    python -m bench.isolation --seconds 60

All three are asked new rows, 25 a second each, so that each answer needs its process and the cores are not what is
measured. First as long without kills, for comparison. Ends with status 1 where one of the three had an error.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from foreseen.modelspec.manifest import find
from tests.live import Live, started
from tests.models_fixture import PACKAGED, built_data
from tests.questions import ask_fingerprint, ask_minilm, numbers

KILL_SECONDS = 2.0
ASK_SECONDS = 0.04
VICTIM = "victim"
OTHERS = ("minilm", "fingerprint", "bystander")


@dataclass
class Seen:
    """What the askers of one model have seen: seconds of each answer, and every answer that was not a 200."""

    seconds: list[float] = field(default_factory=list)
    errors: list[int] = field(default_factory=list)

    def at(self, share: float) -> float:
        """A quantile of the latencies, in ms."""
        return 1000 * statistics.quantiles(self.seconds, n=1000, method="inclusive")[round(share * 1000) - 1]


@dataclass
class Result:
    calm: dict[str, Seen]
    killing: dict[str, Seen]
    kills: int
    answered_again: bool
    """Whether the victim answered after the last kill."""


def copies_of_fingerprint(folder: Path) -> Path:
    """A folder of two more models, each a process of its own: `fingerprint` under other names."""
    manifest = (PACKAGED[0] / "fingerprint" / "model.toml").read_text()
    for name in (VICTIM, "bystander"):
        (folder / name).mkdir(parents=True)
        (folder / name / "model.toml").write_text(re.sub(r'(?m)^name = "fingerprint"', f'name = "{name}"', manifest))
        assert find(name, (folder,)).name == name
    return folder


async def _ask(client: aiohttp.ClientSession, live: Live, model: str, seed: int) -> int:
    question = ask_minilm(f"never asked before {seed}") if model == "minilm" else ask_fingerprint(numbers(seed))
    async with client.post(f"{live.url}/v2/models/{model}/infer", json=question) as reply:
        await reply.read()
        return reply.status


async def _load(
    client: aiohttp.ClientSession, live: Live, seeds: itertools.count[int], until: float
) -> dict[str, Seen]:
    """Ask each of the others a row at a time until then, on the clock of `time.monotonic`."""
    seen = {model: Seen() for model in OTHERS}

    async def ask_for(model: str) -> None:
        while (begun := time.monotonic()) < until:
            status = await _ask(client, live, model, next(seeds))
            seen[model].seconds.append(time.monotonic() - begun)
            if status != 200:
                seen[model].errors.append(status)
            await asyncio.sleep(begun + ASK_SECONDS - time.monotonic())

    await asyncio.gather(*(ask_for(model) for model in OTHERS))
    return seen


async def _kill(live: Live, until: float) -> int:
    """Kill the victim every two seconds, where it is there to be killed; how often."""
    kills = 0
    while time.monotonic() < until:
        pid = live.children().get(f"model:{VICTIM}")
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            kills += 1
        await asyncio.sleep(KILL_SECONDS)  # the pace is what is measured
    return kills


async def _again(client: aiohttp.ClientSession, live: Live, seeds: itertools.count[int], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if await _ask(client, live, VICTIM, next(seeds)) == 200:
            return True
    return False


async def _measure(live: Live, seconds: float, patience: float) -> Result:
    seeds = itertools.count(10_000_000)
    async with aiohttp.ClientSession() as client:
        calm = await _load(client, live, seeds, time.monotonic() + seconds)
        until = time.monotonic() + seconds
        killing, kills = await asyncio.gather(_load(client, live, seeds, until), _kill(live, until))
        return Result(calm, killing, kills, await _again(client, live, seeds, patience))


def measure(folder: Path, seconds: float, *, patience: float = 30.0) -> Result:
    """Start four models, ask three, kill the fourth. `patience` is how long it may take to come back, in seconds."""
    models = copies_of_fingerprint(folder / "models")
    flags = (f"--models={models}",)
    with started(built_data(), folder / "data", *flags, models=(*OTHERS, VICTIM)) as live:
        return asyncio.run(_measure(live, seconds, patience))


def table(result: Result) -> str:
    """A line per model: how many answers and errors, p50, p95 and p99 in ms, calm → while another is killed."""
    lines = ["model           answers  errors        p50 ms           p95 ms           p99 ms"]
    for model in OTHERS:
        calm, killing = result.calm[model], result.killing[model]
        columns = [f"{calm.at(share):6.2f} → {killing.at(share):6.2f}" for share in (0.5, 0.95, 0.99)]
        lines.append(f"{model:12} {len(killing.seconds):10} {len(killing.errors):7}  " + "  ".join(columns))
    back = "answered again" if result.answered_again else "was given up, loudly"
    return "\n".join([*lines, f"{VICTIM} was killed {result.kills} times and {back}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), options.seconds)
    told: dict[str, Any] = {model: len(result.killing[model].errors) for model in OTHERS}
    print(json.dumps({"errors": told, "kills": result.kills}) if options.json else table(result))
    sys.exit(1 if any(told.values()) else 0)


if __name__ == "__main__":
    main()
