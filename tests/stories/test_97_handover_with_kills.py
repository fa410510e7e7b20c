"""kill -9 at random during a handover: the old or the new model is in force, never something between."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from redis import Redis

from foreseen.modelspec.artifact import read_record, read_serving
from foreseen.paths import redis_socket
from tests.handover import ROWS, ChangedSystem, ZipfLoad, changed_system

pytestmark = [pytest.mark.processes, pytest.mark.long]

VICTIMS = ("command", "candidate", "model:fingerprint", "proxy")
ROUNDS = 1
SETTLE_SECONDS = 90.0
KINDS = ("proxy", "worker", "inference")
OTHER_KEYS = 20
"""In far, besides entries of the rows that are asked for in two spaces."""
MORE_BYTES = 96 * 2**20
"""What all processes together may take more after all kills than after the first undisturbed handover, when near was
empty."""


async def test_a_kill_during_a_handover_leaves_the_old_or_the_new_model(tmp_path: Path) -> None:
    """The command, its candidate, the model or a proxy, under load: every answer is the old or the new model's, and in
    the end that of the artifact in force; the next handover succeeds, and so does its rollback. No process, socket,
    descriptor or entry of any other space is left, and memory does not grow."""
    dice = random.Random(7)
    with changed_system(tmp_path, "fingerprint", 2) as system:
        taken = await undisturbed(system)
        first = await left(system)
        load = ZipfLoad(system.live.url, system.trace)
        asking = asyncio.create_task(load.run())
        try:
            for victim in [*VICTIMS] * ROUNDS:
                running = started(system)
                await asyncio.sleep(dice.uniform(0.2, taken))
                kill(victim, running, system)
                await asyncio.to_thread(running.wait, 300)
                await in_force(system)
                assert not candidates(running.pid), victim
                await undisturbed(system)
        finally:
            load.stop()
            await asking
        assert load.asked
        await only_of_two_models(system, load)
        last = await left(system)
    assert last.children == first.children
    assert last.files == first.files
    assert last.entries <= 2 * ROWS + OTHER_KEYS, "a space that no model has is left"
    assert last.descriptors <= first.descriptors
    assert last.memory_bytes < first.memory_bytes + MORE_BYTES


async def undisturbed(system: ChangedSystem) -> float:
    """A whole handover and its rollback; how long the handover took."""
    began = time.monotonic()
    status, said = await system.handover()
    taken = time.monotonic() - began
    assert status == 0 or "in force already" in said, said
    assert await in_force(system) == system.candidate.artifact.digest
    status, said = await system.rollback()
    assert status == 0, said
    assert await in_force(system) == system.first.artifact.digest
    return taken


async def in_force(system: ChangedSystem) -> str:
    """The artifact of the record, which is the old or the new one, once the model's process and all workers answer by
    it."""
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        digest = read_record(system.live.data, "fingerprint").artifact.digest
        assert digest in (system.first.artifact.digest, system.candidate.artifact.digest)
        serving = read_serving(system.live.data, "fingerprint")
        with contextlib.suppress(OSError, KeyError, ValueError):  # what was killed just now answers nothing
            if serving is not None and await system.digests() == {serving.digest}:
                return digest
        assert time.monotonic() < end, "not all workers answer by the artifact in force"
        await asyncio.sleep(0.2)


async def only_of_two_models(system: ChangedSystem, load: ZipfLoad) -> None:
    """Every answer under load is the old or the new model's to that row."""
    rows = sorted({one.row for one in load.asked})
    old = await system.answers(rows)
    status, said = await system.handover()
    assert status == 0, said
    assert await in_force(system) == system.candidate.artifact.digest
    new = await system.answers(rows)
    status, said = await system.rollback()
    assert status == 0, said
    await in_force(system)
    assert all(old[row] != new[row] for row in rows)
    assert {one.answer == old[one.row] for one in load.asked} == {True, False}, "both were in force under load"
    assert not [one for one in load.asked if one.answer not in (old[one.row], new[one.row])]


class Left(NamedTuple):
    """What a system holds while no handover runs."""

    children: dict[str, int]
    """Processes by kind."""
    files: int
    """Of the data directory's sockets and of the model."""
    entries: int
    descriptors: int
    """Of the supervisor."""
    memory_bytes: int
    """Of all processes, shared memory by its share."""


async def left(system: ChangedSystem) -> Left:
    await asyncio.sleep(4)  # former processes end within --drain-seconds
    return await asyncio.to_thread(_held, system)


def _held(system: ChangedSystem) -> Left:
    data, supervisor = system.live.data, system.live.process.pid
    pids = [supervisor, *(pid for path in Path(f"/proc/{supervisor}/task").iterdir() for pid in _children(path))]
    names = [Path(f"/proc/{pid}/cmdline").read_text().split("\0") for pid in pids[1:]]
    folders = [data / "run", data / "models" / "fingerprint"]
    with Redis(unix_socket_path=str(redis_socket(data))) as far:
        entries = int(far.dbsize())
    return Left(
        Counter(next((word for word in words if word in KINDS), words[0]) for words in names),
        sum(1 for folder in folders for _ in folder.rglob("*")),
        entries,
        len(list(Path(f"/proc/{supervisor}/fd").iterdir())),
        sum(_proportional(pid) for pid in pids),
    )


def _children(task: Path) -> list[int]:
    return [int(pid) for pid in (task / "children").read_text().split()]


def _proportional(pid: int) -> int:
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def started(system: ChangedSystem) -> subprocess.Popen[bytes]:
    """A handover that goes on by itself."""
    to, file = system.candidate.artifact.digest, system.file
    command = [sys.executable, "-P", "-m", "foreseen.cli", "models", "handover", "fingerprint", f"--to={to}"]
    command += [f"--file={file}", "--max-changed=100%", "--no-stand-back", "--yes", f"--data={system.live.data}"]
    command += [f"--models={system.live.data.parent / 'models'}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def candidates(parent: int) -> list[int]:
    """The processes that serve a candidate of a command, also of one that has ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended in between
            if any(f".candidate-{parent}-" in word for word in path.read_bytes().decode().split("\0")):
                found.append(int(path.parent.name))
    return found


def kill(victim: str, running: subprocess.Popen[bytes], system: ChangedSystem) -> None:
    if victim == "command":
        running.kill()
    elif victim == "candidate":
        for pid in candidates(running.pid):
            os.kill(pid, signal.SIGKILL)
    else:
        system.live.signal(victim, signal.SIGKILL)
