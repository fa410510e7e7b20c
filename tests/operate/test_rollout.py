"""Processes that take each other's place: the new one is ready before the old one is told to end, or all stays."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from foreseen.modelspec.artifact import Artifact, ArtifactFile, Record, write_record
from foreseen.modelspec.manifest import Manifest, find
from foreseen.operate.rollout import Rollout
from foreseen.operate.supervisor import Child
from foreseen.paths import make_run_folder, model_socket
from tests.models_fixture import PACKAGED

pytestmark = pytest.mark.processes

READY = 'for flag in "$@"; do printf 1 >&${flag#--ready-fd=}; done; exec sleep 1000'
BROKEN = "test $# = 0 && exec sleep 1000; exit 1"
"""Fails as long as it is to be announced."""


def process(name: str, script: str) -> Child:
    return Child(name, ["bash", "-c", script, name])


def environment_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


class Yard:
    """A fleet of two workers and a model, all of them shells that sleep. What is started next runs `script`."""

    def __init__(self, data: Path) -> None:
        make_run_folder(data)
        self.data = data
        self.script = READY
        self.links: list[Mapping[str, Path]] = []
        self.manifest: Manifest = find("fingerprint", PACKAGED)
        self.fleet = Rollout(
            data, self._worker, lambda manifest, _: process(f"model:{manifest.name}", self.script), 5.0
        )

    def _worker(self, slot: int, links: Mapping[str, Path]) -> Child:
        self.links.append(links)
        return process(f"proxy:{slot}", self.script)

    def built(self, artifact: str, preparation: str = "p") -> None:
        graph = ArtifactFile("graph.onnx", "0", 0)
        write_record(self.data, Record(Artifact("fingerprint", "fp32", artifact, preparation, graph)))

    def running(self) -> dict[str, int]:
        """Process ids by name."""
        return {
            child.name: child.process.pid
            for child in self.fleet.children
            if child.process is not None and child.process.returncode is None
        }

    @property
    def socket(self) -> str:
        """The socket that the model's link leads to."""
        return model_socket(self.data, "fingerprint").readlink().name


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[Yard]:
    yard = Yard(tmp_path)
    yard.built("a")
    await yard.fleet.add_model(yard.manifest)
    for _ in range(2):
        await yard.fleet.add_worker()
    try:
        yield yard
    finally:
        for child in list(yard.fleet.children):
            await child.stop(5, signal.SIGKILL)


async def test_workers_are_replaced_one_after_the_other(yard: Yard) -> None:
    """Each by another process, in the lowest slot that is free by then."""
    before = yard.running()
    assert await yard.fleet.replace_workers()
    after = yard.running()
    assert set(after) == {"model:fingerprint", "proxy:2", "proxy:0"}
    assert after["proxy:0"] not in before.values()
    assert after["model:fingerprint"] == before["model:fingerprint"]


async def test_a_worker_that_does_not_get_ready_replaces_nobody(yard: Yard) -> None:
    """The old ones stay, all of them."""
    before = yard.running()
    yard.script = BROKEN
    assert not await yard.fleet.replace_workers()
    assert yard.running() == before


async def test_a_model_that_was_built_anew_gets_another_process_and_the_link(yard: Yard) -> None:
    """Workers stay; they find it by the link, which is turned over; what was not built anew stays, too."""
    before, socket = yard.running(), yard.socket
    await yard.fleet.follow([yard.manifest])
    assert (yard.running(), yard.socket) == (before, socket)
    yard.built("b")
    await yard.fleet.follow([yard.manifest])
    after = yard.running()
    assert after["model:fingerprint"] != before["model:fingerprint"]
    assert {name: pid for name, pid in after.items() if "proxy" in name} == {
        name: pid for name, pid in before.items() if "proxy" in name
    }
    assert yard.socket != socket


async def test_a_build_that_does_not_get_ready_is_tried_once(yard: Yard) -> None:
    """The old process and its link stay, until there is yet another build."""
    before, socket = yard.running(), yard.socket
    yard.built("b")
    yard.script = BROKEN
    assert not await yard.fleet.follow([yard.manifest])
    assert await yard.fleet.follow([yard.manifest])
    assert (yard.running(), yard.socket) == (before, socket)
    yard.script = READY
    await yard.fleet.follow([yard.manifest])
    assert yard.running() == before
    yard.built("c")
    await yard.fleet.follow([yard.manifest])
    assert yard.running() != before


async def test_another_preparation_replaces_the_workers_too(yard: Yard) -> None:
    """New workers are told of a link that no old one uses; when they are all there, so is the usual one."""
    before, socket = yard.running(), yard.socket
    yard.links.clear()
    yard.built("b", "q")
    await yard.fleet.follow([yard.manifest])
    assert (len(yard.links), yard.fleet.rolls) == (2, 1)
    for links in yard.links:
        assert links["fingerprint"].name != model_socket(yard.data, "fingerprint").name
        assert links["fingerprint"].readlink().name == yard.socket
    assert yard.socket != socket
    assert not set(yard.running().values()) & set(before.values())


async def test_without_a_record_all_goes_on(yard: Yard) -> None:
    """Somebody who deletes the models' folder stops nothing."""
    before = yard.running()
    (yard.data / "models" / "fingerprint" / "record.json").unlink()
    await yard.fleet.follow([yard.manifest])
    assert yard.running() == before


async def test_processes_that_nobody_waits_for_are_restarted(yard: Yard) -> None:
    """One ends before the next begins, under the same name and in the same environment."""
    os.environ["FORESEEN_TEST_TAKEN_OUT"] = "1"
    await yard.fleet.add(
        Child("worker:0", ["bash", "-c", "exec sleep 1000"], environment={"FORESEEN_TEST_TAKEN_OUT": None})
    )
    before = yard.running()
    await yard.fleet.restart("worker:")
    after = yard.running()
    assert set(after) == set(before)
    assert after["worker:0"] != before["worker:0"]
    del os.environ["FORESEEN_TEST_TAKEN_OUT"]
    assert b"FORESEEN_TEST_TAKEN_OUT" not in environment_of(after["worker:0"])
