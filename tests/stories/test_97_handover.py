"""A model that is changed while it is asked: warm after the switch, warm after the rollback, whole after a kill."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foreseen.modelspec.artifact import read_record
from tests.handover import ChangedSystem, changed_system, measured

pytestmark = pytest.mark.processes


async def test_a_handover_under_load_keeps_the_cache_warm(tmp_path: Path) -> None:
    """No request fails, no answer is of the wrong model, hits stay where they were, also after the rollback; a cold
    switch of the same model loses them."""
    with changed_system(tmp_path, "fingerprint") as system:
        outcome = await measured(system, seconds=3.0, settle=2.0)
    report = "\n".join(outcome.lines())
    assert not outcome.failures, report
    assert (outcome.strange, outcome.late) == (0, 0), report
    assert outcome.ratio >= 0.95, report
    assert outcome.rollback_ratio >= 0.95, report
    assert outcome.cold.hits < outcome.after.hits, report


async def test_outside_of_the_budget_nothing_changes(tmp_path: Path) -> None:
    """The candidate's seal differs in every row: refused at 1 %. The record, the process and the digest stay, and no
    process or socket of the candidate is left. A rollback has nothing to take back."""
    with changed_system(tmp_path, "fingerprint", workers=1) as system:
        before, children = await system.digests(), system.live.children()
        status, said = await system.handover("--json", max_changed="1%")
        assert status == 1, said
        document = json.loads(said.splitlines()[0] if said.startswith("{") else said[said.index("{") :].splitlines()[0])
        assert document["changed"]["share"] == 1.0
        assert not document["inside"]
        rows = document["rows"]
        assert system.live.metric("foreseen_handover_rows_total", model="fingerprint", outcome="changed") == rows
        assert read_record(system.live.data, "fingerprint") == system.first
        assert (await system.digests(), system.live.children()) == (before, children)
        assert not list((system.live.data / "run").glob("*candidate*"))
        status, said = await system.rollback()
        assert status == 1
        assert "nothing to roll back" in said


async def test_a_kill_during_a_handover_leaves_the_old_or_the_new_model(tmp_path: Path) -> None:
    """kill -9 of the command, its candidate, the model or the proxy at random: the model in force is the old or the new
    one, it answers, the command's candidate is gone, and the next handover succeeds."""
    source = random.Random(7)
    with changed_system(tmp_path, "fingerprint", workers=1) as system:
        digests = {system.first.artifact.digest, system.candidate.artifact.digest}
        for victim in ("command", "candidate", "model:fingerprint", "proxy"):
            running = started(system)
            await asyncio.sleep(source.uniform(0.5, 4.0))
            kill(victim, running, system)
            running.wait(300)
            assert read_record(system.live.data, "fingerprint").artifact.digest in digests
            await answered(system)
            assert not candidates(running.pid)
            status, said = await system.handover()
            assert status == 0 or "in force already" in said, said
            status, said = await system.rollback()
            assert status == 0, said
        assert read_record(system.live.data, "fingerprint").artifact.digest == system.first.artifact.digest
        assert not [path for path in (system.live.data / "run").glob("*candidate*") if "sock" in path.name]


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
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:  # it has ended in between
            continue
        if any(f".candidate-{parent}-" in word for word in words):
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


async def answered(system: ChangedSystem) -> None:
    """Wait until the system answers predictions again."""
    end = time.monotonic() + 60
    while system.live.post("/v2/models/fingerprint/infer", system.trace.ask(1))[0] != 200:
        assert time.monotonic() < end, "it does not answer"
