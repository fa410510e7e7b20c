"""Somebody follows a request by OpenTelemetry: through proxies, the model process, and a job's worker."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from foreseen.keys.secret import make_secret
from tests import span_trees
from tests.live import Live, started
from tests.otlp_receiver import Receiver, receiving
from tests.ports import free_port


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


@pytest.fixture(scope="module")
def system(built: Path, tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Live]:
    with traced_by(receiver.url), started(built, tmp_path_factory.mktemp("traced") / "data") as live:
        yield live


@contextlib.contextmanager
def traced_by(url: str) -> Iterator[None]:
    """What is started meanwhile exports to this collector, soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield


@contextlib.contextmanager
def in_front(live: Live, folder: Path) -> Iterator[Live]:
    """A proxy before another one, without a cache of its own but near."""
    make_secret(folder / "secret")
    port = free_port()
    stores = ["--redis=none", "--state=none", f"--data={folder}"]
    command = [sys.executable, "-P", "-m", "foreseen.cli", "proxy", f"--upstream={live.url}", f"--port={port}", *stores]
    process = subprocess.Popen([*command, "--log-level=warning"])
    front = Live(f"http://127.0.0.1:{port}", folder, process)  # type: ignore[arg-type] # nothing is read of it
    try:
        deadline = time.monotonic() + 30
        while not is_ready(front):
            assert time.monotonic() < deadline, "the proxy in front is not ready"
        yield front
    finally:
        process.terminate()
        process.wait(30)


def is_ready(live: Live) -> bool:
    """Whether its model is known, and how its rows are keyed: that changes once, soon after the start."""
    with contextlib.suppress(OSError):
        status, _, body = live.get("/v2/models/fingerprint")
        return status == 200 and json.loads(body)["parameters"].get("rows") == "each"
    return False


def test_the_trees_of_a_miss_and_of_hits(system: Live, receiver: Receiver) -> None:
    span_trees.check_miss_and_hits(system, receiver)
    assert system.metric("foreseen_spans_total", result="failed") == 0


def test_a_coalesced_request_links_to_the_computation_that_it_waited_for(system: Live, receiver: Receiver) -> None:
    span_trees.check_coalesced(system, receiver)


def test_a_job_is_produced_and_consumed(system: Live, receiver: Receiver) -> None:
    span_trees.check_job(system, receiver)
    services = {span.name.split()[0]: span.service for span in receiver.spans}
    assert services["process"] == "foreseen-worker"
    assert (services["publish"], services["compute"]) == ("foreseen-proxy", "foreseen-model")


def test_a_trace_goes_on_through_an_upstream(system: Live, receiver: Receiver, tmp_path: Path) -> None:
    with traced_by(receiver.url), in_front(system, tmp_path) as front:
        span_trees.check_upstream(front, receiver)
