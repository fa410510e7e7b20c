"""gRPC with what is too large for `make test`: KServe's client, and Triton as an upstream."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.peers import triton
from tests.foreign import fronted
from tests.integrations.conftest import environment
from tests.live import started
from tests.models_fixture import built_data
from tests.ports import free_port


def test_kserves_client_as_it_is(tmp_path: Path) -> None:
    """Contents and raw contents are the same answers; readiness; an unknown model is refused in our words."""
    run, port = environment("kserve", tmp_path), free_port()
    with started(built_data(), tmp_path / "data", f"--grpc-port={port}", models=("minilm",)):
        done = run("python", Path(__file__).parent / "grpc_clients.py", f"127.0.0.1:{port}")
    facts = json.loads(done.stdout.splitlines()[-1])
    assert (facts["live"], facts["ready"], facts["model_ready"]) == (True, True, True)
    assert (facts["equal"], facts["shape"]) == (True, [2, 384])
    assert "Request for unknown model: 'none' is not found" in facts["refused"]


async def test_triton_over_grpc_as_an_upstream(tmp_path: Path) -> None:
    """nvidia-pytriton's server: found by its index, probed, keyed by the row, answered from the cache."""
    port, rows = free_port(), np.arange(256).reshape(2, 128)
    with triton(tmp_path, port) as url:
        assert url is not None, "no Triton: run `make .venv-triton/installed`"
        async with fronted(f"grpc://127.0.0.1:{port}", tmp_path / "data") as front:
            assert set((await front.get("/v2/models"))["models"]) == {"picture", "wide"}
            said = await front.until(lambda said: said.get("rows") == "each", "wide")
            assert said["digest_from"] == "version"
            asked = {"name": "x", "shape": [2, 128], "datatype": "INT64", "data": rows.ravel().tolist()}
            wanted = rows @ np.random.default_rng(7).integers(1, 1000, (128, 4))
            for cache in ("foreseen;fwd=miss;stored", "foreseen;hit"):
                status, headers, document = await front.post({"inputs": [asked]}, "wide")
                assert status == 200
                assert headers["Cache-Status"].startswith(cache)
                assert document["outputs"][0]["data"] == wanted.ravel().tolist()


pytestmark = pytest.mark.processes
