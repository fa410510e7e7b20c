"""20,000 jobs while the workers and the queue's store are killed every two seconds, some of them poison.

    python -m bench.verify_jobs --jobs 20000 --poison 10

Real processes: Valkey in both roles, the model `fingerprint`, which ends itself on poison
(`bench/crashing_model.py`), a proxy and two workers, each started again at once when it ends. Held: no accepted job
is lost, every one has one end and keeps it, every answer is the oracle's, and the dead letters are the poison, all of
it and nothing else. Ends with status 1 where one of these does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from bench.crashing_model import POISON
from foreseen.keys.secret import make_secret
from foreseen.operate.supervisor import Child
from foreseen.paths import make_run_folder, model_socket, redis_socket, state_socket
from foreseen.stores import valkey
from tests.live import worker_of
from tests.models_fixture import built_data
from tests.ports import free_port
from tests.questions import ask_fingerprint, fingerprint, numbers

PATH = "/v2/models/fingerprint/infer"
CALLERS = 32
ENDS = ("succeeded", "failed", "cancelled", "expired")


@dataclass
class System:
    """The processes of one run. `victims` are those that are killed."""

    data: Path
    url: str
    children: dict[str, Child] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)

    async def start(self, name: str, command: list[str]) -> None:
        child = Child(name, command, healthy_seconds=0.0, log_file=self.data / f"{name}.log")
        await child.start()
        self.children[name] = child

    def kill(self, name: str) -> None:
        process = self.children[name].process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker_of(process.pid) if name.startswith("worker") else process.pid, signal.SIGKILL)
            self.kills[name.rstrip("0123456789")] += 1


@contextlib.asynccontextmanager
async def system(data: Path, workers: int) -> AsyncIterator[System]:
    """Everything that jobs need, each process started again when it ends."""
    shutil.copytree(built_data("fingerprint") / "models", data / "models")
    make_run_folder(data)
    make_secret(data / "secret")
    port, far, state = free_port(), redis_socket(data), state_socket(data)
    folder = data / "state"
    folder.mkdir()
    one = System(data, f"http://127.0.0.1:{port}")
    python = [sys.executable, "-m"]
    common = [f"--data={data}", "--model=fingerprint", f"--state=unix://{state}", "--log-level=warning"]
    try:
        await one.start("far", valkey.command(far, 512 * 2**20))
        await one.start("state", valkey.state_command(state, folder))
        await valkey.until_answering(far, 20)
        await valkey.until_answering(state, 20)
        crashing = [*python, "bench.crashing_model", f"--data={data}", f"--uds={model_socket(data, 'fingerprint')}"]
        await one.start("model", crashing)
        await one.start("proxy", [*python, "foreseen.cli", "proxy", *common, f"--port={port}"])
        for number in range(workers):
            await one.start(f"worker{number}", [*python, "foreseen.cli", "worker", *common])
        yield one
    finally:
        for kind in ("proxy", "worker", "model", "far", "state"):
            group = [child for name, child in one.children.items() if name.startswith(kind)]
            await asyncio.gather(*(child.stop(10) for child in group))


@dataclass
class Outcome:
    """What became of the jobs."""

    accepted: dict[str, int] = field(default_factory=dict)
    """Tickets, and the seed of each question; negative for poison."""
    ends: dict[str, str] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    refused: int = 0
    seconds: float = 0.0
    submitted_seconds: float = 0.0
    standing: dict[str, Any] = field(default_factory=dict)


def question(seed: int) -> list[int]:
    return numbers(seed) if seed > 0 else [POISON, *numbers(-seed)[1:]]


async def _submit(client: aiohttp.ClientSession, url: str, seed: int, outcome: Outcome) -> None:
    """Until it is accepted; what was not does not count."""
    while True:
        with contextlib.suppress(aiohttp.ClientError):
            headers = {"Prefer": "respond-async"}
            async with client.post(url + PATH, json=ask_fingerprint(question(seed)), headers=headers) as reply:
                told = await reply.json()
                if reply.status == 202:
                    outcome.accepted[told["id"]] = seed
                    return
                if reply.status == 200:  # somebody's lost 202: the job ran all the same
                    return
        outcome.refused += 1
        await asyncio.sleep(0.05)


async def _asked(client: aiohttp.ClientSession, url: str, prefer: str | None = None) -> tuple[int, Any]:
    """An answer that is no 503, however often it takes."""
    while True:
        with contextlib.suppress(aiohttp.ClientError):
            async with client.get(url, headers={"Prefer": prefer} if prefer else {}) as reply:
                if reply.status != 503:
                    return reply.status, await reply.json()
        await asyncio.sleep(0.05)


async def _follow(client: aiohttp.ClientSession, url: str, ticket: str, outcome: Outcome) -> None:
    """Wait for a job's end, then hold its answer against the oracle."""
    location, seed = f"{url}/v2/predictions/{ticket}", outcome.accepted[ticket]
    state = "queued"
    while state not in ENDS:
        status, told = await _asked(client, location, "wait=10")
        state = told["state"] if status == 200 else f"status {status}"
        if status != 200:
            break
    outcome.ends[ticket] = state
    if state == "succeeded":
        status, told = await _asked(client, f"{location}/result")
        if status != 200 or told["outputs"][0]["data"] != fingerprint(question(seed)):
            outcome.wrong.append(ticket)


async def _look_again(client: aiohttp.ClientSession, url: str, ticket: str, outcome: Outcome) -> None:
    status, told = await _asked(client, f"{url}/v2/predictions/{ticket}")
    if status != 200 or told["state"] != outcome.ends[ticket]:
        outcome.changed.append(ticket)


async def _kill(one: System, every: float, done: asyncio.Event) -> None:
    """Kill all workers and the queue's store when the store has answered for so long, again and again, not always in
    the same order. (A store that reads its file for longer than it lives would never do anything again.)"""
    for turn in itertools.count():
        await valkey.until_answering(state_socket(one.data), 60)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), every)
        if done.is_set():
            return
        names = [name for name in one.children if name.startswith("worker")]
        for name in ["state", *names] if turn % 2 else [*names, "state"]:
            one.kill(name)


async def _all(work: Any, items: list[Any], callers: int = CALLERS) -> None:
    """Do it for each, so many at a time."""
    waiting = iter(items)

    async def caller() -> None:
        for item in waiting:
            await work(item)

    await asyncio.gather(*(caller() for _ in range(callers)))


async def _tell(outcome: Outcome, one: System, jobs: int) -> None:
    """How far it is, every ten seconds."""
    while True:
        await asyncio.sleep(10)
        kills = ", ".join(f"{name} {count}" for name, count in one.kills.items())
        told = f"accepted {len(outcome.accepted):,} of {jobs:,}, ended {len(outcome.ends):,}; killed {kills}"
        print(f"verify_jobs: {told}", file=sys.stderr, flush=True)


async def verify(data: Path, jobs: int, poison: int, every: float, workers: int = 2) -> tuple[Outcome, System]:
    outcome, done = Outcome(), asyncio.Event()
    async with system(data, workers) as one, aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        await _asked(client, f"{one.url}/v2/health/ready")
        seeds = list(range(1, jobs - poison + 1))
        for number in range(poison):  # spread over the run
            seeds.insert((number + 1) * len(seeds) // (poison + 1), -(number + 1))
        started = time.monotonic()
        killer = asyncio.create_task(_kill(one, every, done))
        telling = asyncio.create_task(_tell(outcome, one, jobs))
        await _all(lambda seed: _submit(client, one.url, seed, outcome), seeds)
        outcome.submitted_seconds = time.monotonic() - started
        await _all(lambda ticket: _follow(client, one.url, ticket, outcome), list(outcome.accepted), 4 * CALLERS)
        outcome.seconds = time.monotonic() - started
        done.set()
        await killer
        telling.cancel()
        await valkey.until_answering(state_socket(data), 20)
        await _all(lambda ticket: _look_again(client, one.url, ticket, outcome), list(outcome.accepted))
        outcome.standing = await _standing(data)
    return outcome, one


async def _standing(data: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "foreseen.cli", "jobs", f"--data={data}", "--json"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    told, _ = await process.communicate()
    return dict(json.loads(told))


def held(outcome: Outcome) -> dict[str, Any]:
    """What does not hold, by what it is; all empty or 0 where everything does."""
    poison = {job_of(ticket) for ticket, seed in outcome.accepted.items() if seed < 0}
    dead = {letter["job"] for letter in outcome.standing["dead"]}
    states = outcome.standing["states"]
    expected = {ticket: "succeeded" if seed > 0 else "failed" for ticket, seed in outcome.accepted.items()}
    other = Counter(
        f"{expected[ticket]} was {outcome.ends.get(ticket)}"
        for ticket in expected
        if outcome.ends.get(ticket) != expected[ticket]
    )
    return {
        "lost or of another end": dict(other),
        "changed after their end": len(outcome.changed),
        "wrong answers": len(outcome.wrong),
        "poison that is no dead letter": len(poison - dead),
        "innocent dead letters": len(dead - poison),
        "still waiting": outcome.standing["waiting"],
        "ends besides one for each job": sum(outcome.standing["ended"].values()) - sum(states.values()),
    }


def job_of(ticket: str) -> str:
    return base64.urlsafe_b64decode(ticket)[:16].hex()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--poison", type=int, default=10)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two kills")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome, one = asyncio.run(verify(Path(folder) / "data", options.jobs, options.poison, options.every))
    amiss = held(outcome)
    kills, standing = ", ".join(f"{name} {count}×" for name, count in one.kills.items()), outcome.standing
    print(f"accepted     {len(outcome.accepted):,} jobs, {options.poison} poison, in {outcome.submitted_seconds:.0f} s")
    print(f"all ended    after {outcome.seconds:.0f} s; refused meanwhile: {outcome.refused:,}")
    print(f"killed       {kills}")
    print(f"redelivered  {standing['redelivered']:,}; dead letters: {len(standing['dead'])}")
    for what, count in amiss.items():
        print(f"{what:32} {count or 0}")
    sys.exit(1 if any(amiss.values()) else 0)


if __name__ == "__main__":
    main()
