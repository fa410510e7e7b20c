"""Children that end again and again, a store that cannot start, a supervisor that is killed: callers are answered."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.live import Live, fresh, started
from tests.questions import ask_fingerprint, fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT, status_of
from tests.stories.test_60_start_and_stop import alive, foreseen

PATIENCE_SECONDS = 60.0
ASYNC = {"Prefer": "respond-async"}


def until(wanted: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not wanted():
        assert time.monotonic() < deadline
        os.sched_yield()


def readiness(live: Live) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(live.get("/v2/health/ready")[2])
    return document


def test_no_child_is_given_up_however_often_it_ends(own: Live) -> None:
    """The state store is killed as soon as it is back, seven times: each is counted, readiness says what is lost
    meanwhile, and in the end purges and jobs work as before."""
    for ends in range(1, 8):
        with contextlib.suppress(KeyError, ProcessLookupError):  # it is not back yet
            own.signal("state", signal.SIGKILL)
        own.until("foreseen_child_ends_total", lambda value, ends=ends: value >= ends, child="state")  # type: ignore[misc]
        if ends == 7:
            until(lambda: "lost" in readiness(own))
            assert readiness(own)["ready"] is True
            assert any("no job is taken" in one for one in readiness(own)["lost"])
            told = foreseen("doctor", f"--data={own.data}", f"--url={own.url}", "--model=fingerprint").stdout
            assert "no purge is acknowledged" in told
        until(lambda: "state" in own.children())
    until(lambda: "lost" not in readiness(own))
    assert "confirmed by" in foreseen("purge", f"--data={own.data}", "--model=fingerprint").stdout
    assert own.post(FINGERPRINT, ask_fingerprint(numbers(1)), ASYNC)[0] == 202


def test_a_damaged_append_only_file_is_said_at_once_and_the_rest_starts(
    built: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Answers go past the cache as long as nobody knows what was purged; once the file is mended, hits are back."""
    data = tmp_path / "data"
    with started(built, data, models=["fingerprint"]) as live:
        foreseen("purge", f"--data={live.data}", "--model=fingerprint")
    (file,) = (data / "state" / "appendonlydir").glob("*.incr.aof")
    whole = file.read_bytes()
    file.write_bytes(whole[:20] + b"\xff\xfe not what Valkey wrote" + whole[20:])
    capfd.readouterr()
    with fresh(data, "--model=fingerprint", "--log-level=error") as live:
        for _ in range(2):
            status, headers, body = live.post(FINGERPRINT, ask_fingerprint(numbers(1)))
            assert (status, json.loads(body)["outputs"][0]["data"]) == (200, fingerprint(numbers(1)))
            assert "hit" not in status_of(headers)
        said = capfd.readouterr().err
        assert "store not started; starting the rest" in said
        assert "append only file" in said
        assert any("nothing is answered from the cache" in one for one in readiness(live)["lost"])
        file.write_bytes(whole)
        until(lambda: "hit" in status_of(live.post(FINGERPRINT, ask_fingerprint(numbers(1)))[1]))
        assert "lost" not in readiness(live)


def test_a_killed_supervisor_cuts_no_request(built: Path, tmp_path: Path) -> None:
    """SIGKILL of `foreseen up` under a load of misses: whatever was sent on an accepted connection is answered rightly,
    by the processes that are left, and then these end. A new connection that still waits to be accepted when the last
    listener closes is reset by the kernel; its client cannot tell that from a refusal."""
    cut: list[str] = []
    answered_after = [0]
    killed = threading.Event()

    def ask(live: Live, first: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=30)
        for seed in range(first, first + 1_000_000):
            is_new = connection.sock is None
            try:
                connection.connect() if is_new else None
            except ConnectionError:
                return  # nothing listens any more
            try:
                connection.request("POST", FINGERPRINT, json.dumps(ask_fingerprint(numbers(seed))))
                reply = connection.getresponse()
                outputs = json.loads(reply.read())["outputs"]
            except (OSError, http.client.HTTPException, KeyError) as error:
                if not (is_new and killed.is_set() and isinstance(error, ConnectionResetError)):
                    cut.append(repr(error))
                return
            if outputs[0]["data"] != fingerprint(numbers(seed)):
                cut.append("wrong")
            answered_after[0] += killed.is_set()

    with started(built, tmp_path / "data", "--workers=2", models=["fingerprint"]) as live:
        children = [*live.workers(), *live.children().values()]
        threads = [threading.Thread(target=ask, args=(live, number * 1_000_000)) for number in range(8)]
        for thread in threads:
            thread.start()
        live.until("foreseen_rows_total", lambda value: value > 200, result="model")
        os.kill(live.process.pid, signal.SIGKILL)
        killed.set()
        for thread in threads:
            thread.join(60)
        assert (cut, answered_after[0] > 0) == ([], True)
        until(lambda: not any(alive(pid) for pid in children))


def test_a_supervisor_starts_at_once_where_another_was_killed(built: Path, tmp_path: Path) -> None:
    """On the same data directory, while the processes of the killed one may still be ending."""
    data = tmp_path / "data"
    with started(built, data, models=["fingerprint"]) as live:
        os.kill(live.process.pid, signal.SIGKILL)
        live.process.wait(10)
        with fresh(data, "--model=fingerprint") as other:
            for seed in range(30):
                assert other.post(FINGERPRINT, ask_fingerprint(numbers(seed)))[0] == 200
            other.until("foreseen_model_ready", lambda value: value == 1)
    shutil.rmtree(data)
