"""The GPU's own code: what needs no GPU of it runs everywhere, the rest where a CUDA provider is present."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from foreseen.inference import gpu, selftest
from foreseen.inference.session import SessionPlan, open_session
from foreseen.modelspec.manifest import find
from foreseen.types import Row
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
