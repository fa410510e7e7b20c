"""Triton and MLServer with their response caches on, as peers of a repeated request: each in an environment of its own.

Both serve the models of `shapes.py` by numpy, so their first answer is not what is measured. Triton comes from the
wheel of `nvidia-pytriton`, whose server runs by itself: `tritonserver` with the Python backend and the local cache
(1 GiB), `response_cache { enable: true }`. MLServer gets `cache_enabled` and a cache of 1,000 requests, and no parallel
workers, so that its answers come out of the server's own process. Where one is not installed
(`make .venv-triton/installed`, `make .venv-mlserver/installed`) it is left out, and that is said.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from bench.interleaved import ROOT, pinned
from tests.ports import free_port

TRITON = ROOT / ".venv-triton"
MLSERVER = ROOT / ".venv-mlserver"

RECORDED = {"Triton, cache on": 0.37, "MLServer, cache on": 0.057}
"""Requests/s relative to nginx on another machine of 2 cores, for a reader who has not got them at hand."""

_TRITON_CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 64
input [ {{ name: "x" data_type: TYPE_{input} dims: {inner} }} ]
output [ {{ name: "{output}" data_type: TYPE_{datatype} dims: [ {width} ] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
response_cache {{ enable: true }}
"""

_TRITON_MODEL = """
import json
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        self.name = json.loads(args["model_config"])["name"]
        self.matrix = np.random.default_rng(7).integers(1, 1000, (128, 4))

    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb.get_input_tensor_by_name(request, "x").as_numpy()
            out = ("digest", x @ self.matrix) if self.name == "wide" else ("y", x.mean((1, 2), dtype=np.float32))
            answers.append(pb.InferenceResponse([pb.Tensor(*out)]))
        return answers
"""

_MLSERVER_MODEL = """
import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse

class Numpy(MLModel):
    async def load(self):
        self.matrix = np.random.default_rng(7).integers(1, 1000, (128, 4))
        return True

    async def predict(self, payload):
        x = NumpyCodec.decode_input(payload.inputs[0])
        out = ("digest", x @ self.matrix) if self.name == "wide" else ("y", x.mean((1, 2), dtype=np.float32))
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output(*out)])
"""

_MODELS = (("wide", "INT64", [128], "digest", "INT64", 4), ("picture", "FP32", [224, 224, 3], "y", "FP32", 3))


@contextlib.contextmanager
def triton(folder: Path, grpc_port: int | None = None) -> Iterator[str | None]:
    """Its URL, None where it is not installed. gRPC is off where no port is given."""
    packages = next(TRITON.glob("lib/python3*/site-packages/pytriton/tritonserver"), None)
    if packages is None:
        print(
            "bench: no Triton here (make .venv-triton/installed); recorded ratios are in bench/peers.py",
            file=sys.stderr,
        )
        yield None
        return
    repository = folder / "triton"
    for name, kind, inner, output, datatype, width in _MODELS:
        (repository / name / "1").mkdir(parents=True)
        config = _TRITON_CONFIG.format(
            name=name, input=kind, inner=inner, output=output, datatype=datatype, width=width
        )
        (repository / name / "config.pbtxt").write_text(config)
        (repository / name / "1" / "model.py").write_text(_TRITON_MODEL)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    backends = folder / "triton-backends"
    _link_backend(packages, backends, python)
    port = free_port()
    libraries = [packages / "lib", packages / "external_libs", Path(sys.base_prefix) / "lib"]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "PATH": f"{TRITON / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(next(TRITON.glob("lib/python3*/site-packages"))),
    }
    command = [str(packages / "bin" / "tritonserver"), f"--model-repository={repository}", f"--http-port={port}"]
    command += [f"--backend-directory={backends}", f"--cache-directory={packages / 'caches'}"]
    command += [
        f"--cache-config=local,size={1 << 30}",
        *(["--allow-grpc=false"] if grpc_port is None else [f"--grpc-port={grpc_port}", "--grpc-address=127.0.0.1"]),
        "--allow-metrics=false",
        "--log-error=true",
    ]
    command += ["--log-info=false", "--log-warning=false", "--http-address=127.0.0.1"]
    with pinned(command, ready=lambda: _ready(port), env=environment, cwd=folder):
        yield f"http://127.0.0.1:{port}"


def prove_cached(url: str | None) -> None:
    """Triton says how often its cache answered; a bench that met its model instead is none."""
    if url is None:
        return
    with urllib.request.urlopen(f"{url}/v2/models/wide/stats", timeout=10) as reply:
        told = json.load(reply)["model_stats"][0]["inference_stats"]
    assert told["cache_miss"]["count"] <= 0.01 * told["cache_hit"]["count"], told


def _link_backend(packages: Path, backends: Path, python: str) -> None:
    """The Python backend with the stub of this interpreter's version, as pytriton puts it together."""
    (backends / "python").mkdir(parents=True)
    for file in (packages / "backends" / "python").iterdir():
        (backends / "python" / file.name).symlink_to(file)
    stub = packages / "python_backend_stubs" / python / "triton_python_backend_stub"
    place = backends / "python" / stub.name
    place.unlink(missing_ok=True)
    place.symlink_to(stub)


@contextlib.contextmanager
def mlserver(folder: Path) -> Iterator[str | None]:
    """Its URL, None where it is not installed."""
    if not (MLSERVER / "bin" / "mlserver").exists():
        print("bench: no MLServer here (make .venv-mlserver/installed)", file=sys.stderr)
        yield None
        return
    models = folder / "mlserver"
    models.mkdir()
    (models / "numpy_model.py").write_text(_MLSERVER_MODEL)
    for name, kind, inner, output, datatype, width in _MODELS:
        (models / name).mkdir()
        settings = {
            "name": name,
            "implementation": "numpy_model.Numpy",
            "cache_enabled": True,
            "inputs": [{"name": "x", "datatype": kind, "shape": [-1, *inner]}],
            "outputs": [{"name": output, "datatype": datatype, "shape": [-1, width]}],
        }
        (models / name / "model-settings.json").write_text(json.dumps(settings))
    ports = {name: free_port() for name in ("HTTP_PORT", "GRPC_PORT", "METRICS_PORT")}
    told = {
        **ports,
        "HOST": "127.0.0.1",
        "PARALLEL_WORKERS": 0,
        "CACHE_ENABLED": "true",
        "CACHE_SIZE": 1000,
        "DEBUG": "false",
    }
    environment = {**os.environ, **{f"MLSERVER_{name}": str(value) for name, value in told.items()}}
    environment |= {"PYTHONPATH": str(models), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(MLSERVER / "bin" / "mlserver"), "start", str(models)]
    quiet = subprocess.DEVNULL
    with pinned(
        command, ready=lambda: _ready(ports["HTTP_PORT"]), env=environment, cwd=folder, stdout=quiet, stderr=quiet
    ):
        yield f"http://127.0.0.1:{ports['HTTP_PORT']}"


def _ready(port: int) -> bool:
    url = f"http://127.0.0.1:{port}/v2/health/ready"
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1) as reply:
        return bool(reply.status == 200)
    return False
