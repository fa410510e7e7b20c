"""Child processes: whatever ends them, they are started again, and the proxies' metrics tell of it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from foreseen.operate.supervisor import Child
from foreseen.telemetry.child_states import FILE_BYTES, ChildrenFile, ChildState, read_children
from foreseen.telemetry.exposition import child_families

pytestmark = pytest.mark.processes

PATIENCE_SECONDS = 20.0
PAUSES = (0.001, 0.1)
"""A hundredth of what they are."""


@pytest.fixture
async def kept() -> AsyncIterator[Callable[[str], Child]]:
    """Makes children that run a script; all are ended."""
    made: list[Child] = []

    def make(script: str) -> Child:
        made.append(Child("proxy:0", ["bash", "-c", script], pause_seconds=PAUSES))
        return made[-1]

    yield make
    for child in made:
        await child.stop(5, signal.SIGKILL)


async def until(wanted: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not wanted():  # noqa: ASYNC110 - a process signals nothing
            await asyncio.sleep(0.005)


async def test_a_child_is_started_again_however_often_it_ends(kept: Callable[[str], Child]) -> None:
    """Thirty times in a row, by a signal: no end is the last, and none counts as the child's own decision."""
    child = kept("kill -9 $$")
    await child.start()
    await until(lambda: child.all_ends > 30)
    assert child.ends > 30
    assert child.refusals == 0


async def test_an_end_with_an_error_is_a_refusal(kept: Callable[[str], Child]) -> None:
    """That is how a supervisor sees, while it starts, that something is not as it must be."""
    child = kept("exit 1")
    await child.start()
    await until(lambda: child.refusals >= 3)
    assert child.ends >= child.refusals


async def test_a_child_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    """Its program is missing, as for want of files or memory; once it is there, the child runs."""
    program = tmp_path / "program"
    child = Child("far", [str(program)])
    child.keep()
    await until(lambda: child.ends >= 3)
    program.write_text("#!/bin/bash\nexec sleep 1000\n")
    program.chmod(0o700)
    await until(lambda: child.is_running)
    assert child.ends >= 3
    await child.stop(5, signal.SIGKILL)
    assert not child.is_running


def test_what_is_written_of_children_is_read_in_the_metrics(tmp_path: Path) -> None:
    """Up or not, and how often each has ended; the file never grows, so a full disk does not matter."""
    path = tmp_path / "children.json"
    assert read_children(path) == []
    file = ChildrenFile(path)
    for ends in (0, 3):
        file.write([ChildState("state", running=False, ends=ends), ChildState("far", running=True, ends=0)])
        assert path.stat().st_size == FILE_BYTES
    told = {
        (sample.name, sample.labels["child"]): sample.value
        for family in child_families(read_children(path))
        for sample in family.samples
    }
    assert told == {
        ("foreseen_child_up", "state"): 0,
        ("foreseen_child_up", "far"): 1,
        ("foreseen_child_ends_total", "state"): 3,
        ("foreseen_child_ends_total", "far"): 0,
    }
    file.close()


def test_a_file_that_is_no_states_tells_nothing(tmp_path: Path) -> None:
    """Damaged, or of another version."""
    (tmp_path / "children.json").write_bytes(b"\x00" * 100)
    assert read_children(tmp_path / "children.json") == []
