"""The clock jumps, the disk is full, descriptors run out, a worker is cut off from Redis: callers notice nothing."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from foreseen.keys.secret import make_secret
from foreseen.paths import model_socket, redis_socket
from tests.faults import between
from tests.live import Live, fresh, started
from tests.ports import free_port
from tests.questions import ask_fingerprint, fingerprint, numbers
from tests.raw import FINGERPRINT
from tests.stories.test_10_first_question import status_of
from tests.stories.test_60_start_and_stop import foreseen

FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"


def right(live: Live, seed: int) -> dict[str, str]:
    """Ask, hold the answer against the oracle; the headers."""
    status, headers, body = live.post(FINGERPRINT, ask_fingerprint(numbers(seed)))
    assert status == 200, body
    assert json.loads(body)["outputs"][0]["data"] == fingerprint(numbers(seed))
    return headers


def test_the_clock_jumps(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour on, an hour back, three days on and back: hits stay hits, their age is that of their computation, never
    negative, new entries are kept, and a purge is confirmed."""
    assert Path(FAKETIME).exists()
    told = tmp_path / "clock"
    told.write_text("+0")
    monkeypatch.setenv("LD_PRELOAD", FAKETIME)
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(told))
    monkeypatch.setenv("FAKETIME_NO_CACHE", "1")
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    with started(built, tmp_path / "d", models=["fingerprint"]) as live:
        monkeypatch.delenv("LD_PRELOAD")
        right(live, 1)
        began = time.monotonic()
        for number, jump in enumerate(("+1h", "-1h", "+3d", "-3d", "+0")):
            told.write_text(jump)
            for seed in (1, 100 + number, 100 + number):
                headers = right(live, seed)
            assert "hit" in status_of(headers)
            old = right(live, 1)
            assert "hit" in status_of(old)
            assert 0 <= int(old["age"]) <= 2 * (time.monotonic() - began) + 2
            assert int(status_of(old)["ttl"]) > 0
        assert "confirmed by" in foreseen("purge", f"--data={live.data}", "--model=fingerprint").stdout
        assert "hit" not in status_of(right(live, 1))


def test_nobody_can_write_the_log(built: Path, tmp_path: Path) -> None:
    """Every line to stderr fails with "no space left on device": requests are answered, and it ends as it should."""
    data = tmp_path / "d"
    shutil.copytree(built / "models", data / "models", ignore=shutil.ignore_patterns(".fetched", ".building*"))
    command = [sys.executable, "-m", "foreseen.cli", "up", f"--data={data}", "--port=0", "--model=fingerprint"]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        process = subprocess.Popen(
            [*command, "--log-level=debug", "--access-log-hits=1"], stdout=subprocess.PIPE, stderr=full, text=True
        )
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("ready "))
        live = Live(line.split()[1], data, process)
        for seed in range(50):
            right(live, seed % 10)
        assert live.post(FINGERPRINT, {"inputs": "nonsense"})[0] == 400
        assert live.metric("foreseen_requests_total", code="500") == 0
    finally:
        process.terminate()
        assert process.wait(30) == 0
        process.stdout.close()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_descriptors_run_out(built: Path, tmp_path: Path) -> None:
    """Not one more on the living worker: open connections are served, it does not spin; afterwards all is well."""
    with started(built, tmp_path / "d", models=["fingerprint"]) as live:
        right(live, 1)
        (pid,) = live.workers()
        kept = http.client.HTTPConnection("127.0.0.1", live.port, timeout=20)
        body = json.dumps(ask_fingerprint(numbers(1)))
        kept.request("POST", FINGERPRINT, body)
        assert kept.getresponse().read()
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = max(int(name.name) for name in Path(f"/proc/{pid}/fd").iterdir()) + 1
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, before[1]))
        waiting = [http.client.HTTPConnection("127.0.0.1", live.port, timeout=30) for _ in range(used + 10)]
        try:
            for one in waiting:
                one.connect()
            began, spent = time.monotonic(), cpu_seconds(pid)
            for _ in range(20):
                kept.request("POST", FINGERPRINT, body)
                reply = kept.getresponse()
                assert (reply.status, json.loads(reply.read())["outputs"][0]["data"]) == (200, fingerprint(numbers(1)))
                time.sleep(0.05)
            assert cpu_seconds(pid) - spent < 0.5 * (time.monotonic() - began)
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        for one in waiting:  # some were closed unheard, which is how libuv makes room
            one.close()
        for _ in range(20):
            right(live, 1)
        kept.close()
        assert live.workers() == [pid]


@contextmanager
def another_proxy(live: Live, data: Path, redis: str) -> Iterator[Live]:
    """A second proxy on the same model and the same Redis, by another way."""
    data.mkdir()
    shutil.copytree(live.data / "models", data / "models")
    shutil.copy(live.data / "secret", data / "secret")
    command = [sys.executable, "-m", "foreseen.cli", "proxy", f"--data={data}", f"--redis={redis}", "--near-bytes=0"]
    command += [f"--model=fingerprint=unix:{model_socket(live.data, 'fingerprint')}", "--log-level=error"]
    port = free_port()
    process = subprocess.Popen([*command, f"--port={port}"])
    other = Live(f"http://127.0.0.1:{port}", data, process)
    try:
        deadline = time.monotonic() + 30
        while True:
            assert time.monotonic() < deadline
            assert process.poll() is None
            try:
                if other.get("/v2/health/ready")[0] == 200:
                    break
            except OSError:
                time.sleep(0.05)
        yield other
    finally:
        process.terminate()
        process.wait(30)


async def test_one_worker_is_cut_off_from_redis(built: Path, tmp_path: Path) -> None:
    """It answers from the model; the other goes on with hits of far; healed, it has them too."""
    with started(built, tmp_path / "d", "--near-bytes=0", models=["fingerprint"]) as live:  # noqa: SIM117
        with (
            between(f"unix:{redis_socket(live.data)}") as network,
            another_proxy(live, tmp_path / "other", f"redis://{network.address}/0") as other,
        ):

            def far(proxy: Live) -> bool:
                headers = right(proxy, 7)
                return "hit" in status_of(headers) and str(status_of(headers)["detail"]) == "far"

            for proxy in (live, other):
                while not far(proxy):
                    pass
            network.faults.black_hole = True
            assert [far(other) for _ in range(10)] == [False] * 10
            assert all(far(live) for _ in range(10))
            assert other.metric("foreseen_far_errors_total", kind="timeout") >= 1
            assert live.metric("foreseen_far_errors_total") == 0
            network.heal()
            async with asyncio.timeout(2):
                while not far(other):  # noqa: ASYNC110 - a breaker in another process
                    await asyncio.sleep(0.02)


def test_a_worker_that_never_saw_redis_starts_and_finds_it_later(built: Path, tmp_path: Path) -> None:
    """Down at the start: ready, answering, and with hits once it is there."""
    data = tmp_path / "d"
    shutil.copytree(built / "models", data / "models", ignore=shutil.ignore_patterns(".fetched", ".building*"))
    make_secret(data / "secret")
    with between("127.0.0.1:1") as network:
        network.down()
        with fresh(data, "--model=fingerprint", f"--redis=redis://{network.address}/0") as live:
            right(live, 1)
            assert live.metric("foreseen_rows_total", result="error") == 0
