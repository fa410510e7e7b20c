"""The GPU's own code: what needs no GPU of it runs everywhere, the rest where a CUDA provider is present."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from foreseen.inference import gpu, selftest
from foreseen.inference.graphs import Graphs
from foreseen.inference.session import SessionPlan
from foreseen.inference.session_opening import open_session
from foreseen.modelspec.manifest import find
from foreseen.types import Array, Row
from tests import inference_fixture as tiny


def test_bound_outputs_are_the_plain_ones() -> None:
    """A run with bound inputs and outputs answers as a plain run does, shapes unknown beforehand."""
    session = onnxruntime.InferenceSession(tiny.words().SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {"ids": np.array([[1, 2], [3, 0]]), "mask": np.array([[1, 1], [1, 0]])}
    bound = gpu.run_bound(session, ["twice", "sum"], feeds, onnxruntime.RunOptions())
    plain = session.run(["twice", "sum"], feeds)
    assert [array.tolist() for array in bound] == [array.tolist() for array in plain] == [[[2, 4], [6, 0]], [3, 3]]


def test_libraries_that_compute_are_told_with_their_versions() -> None:
    """Those that the process has mapped, each once, by the number that their function gives; others are not asked."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    known = {"libnone": ("version", False), "libc": ("getpid", False)}
    assert gpu.libraries(2 * maps, known) == (f"libc {os.getpid()}",)
    assert gpu.libraries(maps) == ()


@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="needs a GPU and onnxruntime-gpu: this onnxruntime has no CUDA provider",
)
def test_a_cuda_session_warms_up_and_answers(tmp_path: Path) -> None:
    """On CUDA: no unexpected node on the CPU, a warm-up per shape, answers as on the CPU."""
    settings = tiny.publish(tmp_path, tiny.INVERSE, tiny.inverse())
    manifest = find("inverse", settings.model_folders)
    session = open_session(manifest, settings.data, SessionPlan(provider="cuda"))
    selftest.warm(session, manifest, gpu.buckets(8, 64, 16))
    rows = [Row((np.array([number], np.float32),)) for number in (1, 2, 4)]
    assert [out[0].tolist() for out in session.run(rows)] == [[1.0], [0.5], [0.25]]
    assert session.digest != open_session(manifest, settings.data, SessionPlan()).digest
    assert any(part.startswith("libcublasLt ") for part in session.runtime_identity())
    session.close()


class Entries:
    """Run options of a scripted device."""

    def __init__(self) -> None:
        self.number = ""

    def add_run_config_entry(self, name: str, value: str) -> None:
        assert name == "gpu_graph_id"
        self.number = value


class Scripted:
    """A device that doubles `x`; it captures all shapes but those of `refused` rows, and notes every run."""

    def __init__(self, refused: int = 0, wrong: int = 0) -> None:
        self.runs: list[tuple[str, str]] = []
        self.refused, self.wrong = refused, wrong

    def plain(self, feeds: Mapping[str, Array], options: Entries) -> list[Array]:
        self.runs.append(("plain", options.number))
        return [feeds["x"] * 2]

    def buffers(self, feeds: Mapping[str, Array], outputs: Sequence[Array]) -> Captured:
        if len(feeds["x"]) == self.refused:
            raise RuntimeError("a node is on the CPU")
        return Captured(self)

    def options(self) -> Entries:
        return Entries()


class Captured:
    def __init__(self, device: Scripted) -> None:
        self.device = device

    def run(self, feeds: Mapping[str, Array], options: Entries) -> list[Array]:
        self.device.runs.append(("graph", options.number))
        return [feeds["x"] * (3 if len(feeds["x"]) == self.device.wrong else 2)]


def test_every_shape_is_captured_once_and_replayed() -> None:
    """A graph per shape, numbered from 1; the run that captures gives the plain run's answer."""
    device = Scripted()
    graphs = Graphs(device)
    for rows in (2, 2, 4, 2, 4):
        (answer,) = graphs.run({"x": np.ones((rows, 3), np.float32)}, Entries())
        assert answer.tolist() == [[2.0] * 3] * rows
    first = [("plain", "-1"), ("graph", "1")]
    second = [("plain", "-1"), ("graph", "2")]
    assert device.runs == [*first, ("graph", "1"), *second, ("graph", "1"), ("graph", "2")]


@pytest.mark.parametrize(("refused", "wrong"), [(2, 0), (0, 2)])
def test_a_shape_that_cannot_be_captured_runs_without_and_says_why(refused: int, wrong: int) -> None:
    """Also one whose replay has other bits than a plain run. Others are captured all the same."""
    device = Scripted(refused, wrong)
    graphs = Graphs(device)
    for rows in (2, 2, 4, 4):
        (answer,) = graphs.run({"x": np.ones((rows, 3), np.float32)}, Entries())
        assert answer.tolist() == [[2.0] * 3] * rows
    assert device.runs[-1] == ("graph", "1")
    (why,) = graphs.failures
    assert why.startswith("[[2, 3]]: ")


def test_cuda_computes_alike_in_every_process() -> None:
    """No search for kernels, no TF32; graphs only where they were asked for. The CPU has no such options."""
    (cuda, options), cpu = gpu.providers(("CUDAExecutionProvider", "CPUExecutionProvider"), graphs=True)
    assert (cuda, cpu) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options["cudnn_conv_algo_search"] == "DEFAULT"
    assert (options["use_tf32"], options["enable_cuda_graph"]) == ("0", "1")
    assert "enable_cuda_graph" not in gpu.providers(("CUDAExecutionProvider",), graphs=False)[0][1]
