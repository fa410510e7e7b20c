"""A worker on the queue of jobs, watched by itself: what it counts is there where it is asked for, and nowhere else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from foreseen.paths import state_socket
from tests.live import Live, started
from tests.ports import free_port
from tests.questions import ask_fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT


@pytest.fixture(scope="module")
def watched(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, Live]]:
    """A system, and its job worker as something that has metrics."""
    port = free_port()
    data = tmp_path_factory.mktemp("workers") / "data"
    with started(built, data, f"--job-metrics-port={port}", models=["fingerprint"]) as system:
        yield system, replace(system, url=f"http://127.0.0.1:{port}")


def job(system: Live, *seeds: int) -> str:
    """Ask for these rows later and wait for the end; the state."""
    status, headers, _ = system.post(FINGERPRINT, ask_fingerprint(*map(numbers, seeds)), {"Prefer": "respond-async"})
    assert status == 202
    return str(json.loads(system.ask("GET", headers["location"], None, {"Prefer": "wait=20"})[2])["state"])


def test_a_worker_tells_what_it_counts(watched: tuple[Live, Live]) -> None:
    """Rows of jobs by result, its requests to the model, its stages; no proxy counts them, and it is no proxy."""
    system, worker = watched
    assert job(system, 1, 2, 3) == "succeeded"
    assert worker.metric("foreseen_background_rows_total", model="fingerprint", result="model") == 3
    assert worker.metric("foreseen_model_request_rows_sum", model="fingerprint") == 3
    for stage in ("key", "far", "model", "keep"):
        assert worker.metric("foreseen_stage_duration_seconds_count", stage=stage) > 0, stage
    assert worker.metric("foreseen_workers") == 0
    assert worker.metric("foreseen_rows_total") == 0
    assert system.metric("foreseen_background_rows_total") == 0
    assert system.metric("foreseen_workers") == 1
    assert system.metric("foreseen_job_workers") == worker.metric("foreseen_job_workers") == 1


def test_it_says_that_and_nothing_else(watched: tuple[Live, Live]) -> None:
    """promtool has nothing to complain of; every other path is 404, on the loopback address alone."""
    _, worker = watched
    status, headers, text = worker.get("/metrics")
    assert (status, headers["content-type"].split(";")[0]) == (200, "text/plain")
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
    for path in ("/", "/v2/models", "/v2/predictions/x"):
        assert worker.get(path)[0] == 404
    assert worker.post(FINGERPRINT, ask_fingerprint(numbers(1)))[0] == 404
    listening = Path("/proc/net/tcp").read_text().splitlines()
    mine = [line.split()[1] for line in listening if line.split()[1].endswith(f":{worker.port:04X}")]
    assert {address.split(":")[0] for address in mine} == {"0100007F"}


def test_one_that_is_killed_listens_again(watched: tuple[Live, Live]) -> None:
    """Its successor has the port, counts from nothing, and works."""
    system, worker = watched
    os.kill(system.children()["worker"], signal.SIGKILL)
    assert job(system, 11) == "succeeded"
    assert worker.metric("foreseen_background_rows_total") == 1


def test_a_port_that_is_taken_is_one_line(watched: tuple[Live, Live]) -> None:
    """Another worker under the same port does not start, and says which flag to change."""
    system, worker = watched
    command = [sys.executable, "-m", "foreseen.cli", "worker", f"--data={system.data}", "--model=fingerprint"]
    command += [f"--state=unix://{state_socket(system.data)}", f"--metrics-port={worker.port}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"127.0.0.1:{worker.port}" in done.stderr.splitlines()[-1]
    assert "--metrics-port" in done.stderr


def test_without_a_port_nobody_listens(live: Live) -> None:
    """By default: the worker has no listening TCP socket at all."""
    pid = live.children()["worker"]
    sockets = set[str]()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed since it was listed
            sockets.add(str(fd.readlink()))
    listening = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    assert not [one for one in listening if one[3] == "0A" and f"socket:[{one[9]}]" in sockets]
