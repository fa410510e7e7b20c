"""In front of MLServer, unmodified and in an environment of its own: caching, rows and coalescing."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.live import Live, fresh
from tests.ports import free_port
from tests.questions import ask_fingerprint, fingerprint, numbers

ROOT = Path(__file__).parents[2]
BIN = ROOT / ".venv-mlserver" / "bin"
MODELS = ROOT / "tests" / "clients" / "mlserver"
INFER = "/v2/models/fp/infer"


@dataclass
class Behind:
    """MLServer, the system in front of it, and what MLServer's model has printed."""

    url: str
    log: Path
    live: Live
    grpc: str
    """The same server's address over gRPC."""

    def computed(self) -> tuple[int, int]:
        """Rows that MLServer has computed, and how often the most frequent one."""
        lines = [line.split() for line in self.log.read_text().splitlines() if line.startswith("computed ")]
        return sum(int(line[1]) for line in lines), max((int(line[2]) for line in lines), default=0)


def _until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5) as reply:
                if reply.status == 200:
                    return
        except OSError:
            os.sched_yield()
    pytest.fail("MLServer does not start")


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    assert BIN.exists(), "no MLServer: run `make .venv-mlserver/installed`"
    folder = tmp_path_factory.mktemp("mlserver")
    http, grpc, metrics = free_port(), free_port(), free_port()
    settings = {
        "HTTP_PORT": http,
        "GRPC_PORT": grpc,
        "METRICS_PORT": metrics,
        "HOST": "127.0.0.1",
        "PARALLEL_WORKERS": 0,
    }
    environment = {**os.environ, **{f"MLSERVER_{name}": str(value) for name, value in settings.items()}}
    environment |= {"PYTHONPATH": str(MODELS / "fp"), "PYTHONDONTWRITEBYTECODE": "1"}
    url, log = f"http://127.0.0.1:{http}", folder / "log"
    with log.open("wb") as file:
        command = [BIN / "mlserver", "start", MODELS]
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=folder)
    try:
        _until_ready(url, process)
        # Every process that serves an upstream probes it once; here the proxy's own probe is counted.
        with fresh(folder / "data", f"--upstream={url}", "--job-workers=0") as live:
            yield Behind(url, log, live, f"grpc://127.0.0.1:{grpc}")
    finally:
        process.terminate()
        process.wait(30)


def told(live: Live) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(live.get("/v2/models/fp")[2])
    return document


def test_nothing_but_its_address_is_needed(behind: Behind) -> None:
    """Signature and rows come of its metadata and the probe; its version is what its replies call themselves."""
    while told(behind.live)["parameters"]["rows"] != "each":
        os.sched_yield()
    document = told(behind.live)
    assert document["inputs"] == [{"name": "x", "datatype": "INT64", "shape": [-1, 16]}]
    assert document["parameters"]["digest_from"] == "version"
    assert not any(child.startswith("model:") for child in behind.live.children())


def test_rows_are_computed_once_whatever_request_they_come_in(behind: Behind) -> None:
    """Two rows, then three of which two are known, in another order and encoding: MLServer computes three."""
    one, two, three = numbers(1), numbers(2), numbers(3)
    before, _ = behind.computed()
    assert behind.live.post(INFER, ask_fingerprint(one, two))[1]["cache-status"] == "foreseen;fwd=miss;stored"
    status, headers, body = behind.live.post(INFER, ask_fingerprint(three, two, one))
    assert (status, headers["cache-status"]) == (200, 'foreseen;fwd=partial;detail="2/3"')
    for row in (one, two, three):
        assert ",".join(map(str, fingerprint(row))).encode() in body
    status, headers, again = behind.live.post(INFER, ask_fingerprint(three, two, one))
    assert (again, headers["cache-status"].startswith("foreseen;hit")) == (body, True)
    assert behind.computed()[0] == before + 3


async def test_a_hundred_askers_of_one_cold_row_are_one_computation(behind: Behind) -> None:
    """All get the one answer, and MLServer has seen the row once."""
    question, before = ask_fingerprint(numbers(44)), behind.computed()[0]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

        async def ask() -> tuple[int, bytes]:
            async with client.post(behind.live.url + INFER, json=question) as reply:
                return reply.status, await reply.read()

        answers = set(await asyncio.gather(*(ask() for _ in range(100))))
    assert len(answers) == 1
    assert behind.computed()[0] == before + 1


def test_tritonclient_reads_mlserver_through_us(behind: Behind) -> None:
    """Binary tensors in front, JSON behind: clients get the encoding they ask for, whatever MLServer can do."""
    python = ROOT / ".venv-tritonclient" / "bin" / "python"
    assert python.exists(), "no tritonclient: run `make .venv-tritonclient/installed`"
    program = (
        "import sys, numpy as np, tritonclient.http as t\n"
        "c = t.InferenceServerClient(sys.argv[1]); i = t.InferInput('x', [1, 16], 'INT64')\n"
        "i.set_data_from_numpy(np.arange(16, dtype=np.int64)[None], binary_data=True)\n"
        "o = t.InferRequestedOutput('digest', binary_data=True)\n"
        "print(c.infer('fp', [i], outputs=[o]).as_numpy('digest')[0].tolist())\n"
    )
    done = subprocess.run(
        [python, "-c", program, f"127.0.0.1:{behind.live.port}"], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == str(fingerprint(list(range(16)))), done.stderr


def test_nothing_was_computed_twice(behind: Behind) -> None:
    """Not one row in all of this, the probe's own apart, which are asked alone and in two batches on purpose."""
    behind.live.post(INFER, ask_fingerprint(numbers(1), numbers(44)))
    assert behind.computed()[1] == 3


def test_over_grpc_it_is_the_same_server(behind: Behind, tmp_path: Path) -> None:
    """Found, probed, asked by rows and versioned as over HTTP; what it refuses is refused in its words."""
    with fresh(tmp_path / "data", f"--upstream={behind.grpc}", "--job-workers=0") as live:
        while told(live)["parameters"]["rows"] != "each":
            os.sched_yield()
        document = told(live)
        assert document["inputs"] == [{"name": "x", "datatype": "INT64", "shape": [-1, 16]}]
        assert document["parameters"]["digest_from"] == "version"
        before, _ = behind.computed()
        for cache in ("foreseen;fwd=miss;stored", "foreseen;hit"):
            status, headers, body = live.post(INFER, ask_fingerprint(numbers(71), numbers(72)))
            assert status == 200
            assert headers["cache-status"].startswith(cache)
            for row in (numbers(71), numbers(72)):
                assert ",".join(map(str, fingerprint(row))).encode() in body
        assert behind.computed()[0] == before + 2
