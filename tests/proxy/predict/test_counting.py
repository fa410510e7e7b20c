"""One line per request, a share of the hits, never a flood."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog

from foreseen.proxy.predict.counting import LINES_PER_SECOND, AccessLog, without_names
from tests.live import Live, started
from tests.models_fixture import ROOT
from tests.questions import ask_fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT

SAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = SAMPLED[:-2] + "00"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def lines(access: AccessLog, times: int, result: str = "hit", **more: Any) -> list[Any]:
    with structlog.testing.capture_logs() as captured:
        for _ in range(times):
            access.write("m", "v2", 200, result, 3, 0.0123456, **more)
    return list(captured)


@pytest.mark.parametrize(("share", "logged"), [(0.0, 0), (0.01, 1), (0.5, 50), (1.0, 100)])
def test_a_share_of_the_hits(share: float, logged: int) -> None:
    """Of a hundred hits so many are logged, evenly spread; a line says which share it stands for."""
    told = lines(AccessLog(share, Clock()), 100)
    assert len(told) == logged
    assert all(line.get("share", 1.0) == share for line in told)


def test_what_is_not_a_hit_is_always_logged() -> None:
    """With its facts: model, protocol, status, result, rows, time, and for errors the code."""
    (line,) = lines(AccessLog(0.0, Clock()), 1, "error", code="bad_input")
    assert line == {
        "event": "request",
        "log_level": "info",
        "model": "m",
        "protocol": "v2",
        "status": 200,
        "result": "error",
        "rows": 3,
        "ms": 12.346,
        "code": "bad_input",
    }


def test_a_line_says_whose_request_it_was_and_who_wanted_no_hit() -> None:
    """The tenant, unless it is that of callers without one; and whether `Cache-Control` asked for new answers."""
    (line,) = lines(AccessLog(0.0, Clock()), 1, "miss", tenant="search", asked=True)
    assert (line["tenant"], line["asked"]) == ("search", True)
    (line,) = lines(AccessLog(0.0, Clock()), 1, "miss", tenant="public")
    assert not {"tenant", "asked"} & line.keys()


def test_a_sampled_trace_is_always_logged() -> None:
    """Whoever follows a trace finds its hit; the trace flags decide, as W3C has them."""
    (line,) = lines(AccessLog(0.0, Clock()), 1, traceparent=SAMPLED)
    assert line["traceparent"] == SAMPLED
    assert lines(AccessLog(0.0, Clock()), 1, traceparent=UNSAMPLED) == []


def test_a_flood_of_requests_is_no_flood_of_lines() -> None:
    """At most so many a second; the next line says how many were left out."""
    clock = Clock()
    access = AccessLog(0.0, clock)
    assert len(lines(access, LINES_PER_SECOND + 50, "error")) == LINES_PER_SECOND
    clock.now += 1
    (first, second) = lines(access, 2, "error")
    assert first["skipped"] == 50
    assert "skipped" not in second


def test_names_in_paths_do_not_reach_the_log(live: Live) -> None:
    """A model that is not served is `other`, here as in metrics."""
    assert live.post("/v2/models/secret-name/infer", b"{}")[0] == 404
    assert live.metric("foreseen_requests_total", model="other") >= 1


def test_a_trace_is_logged_by_both_processes(built: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A sampled `traceparent` travels with a miss to the model's process; hits after it are logged by the proxy alone,
    also on the shortest road that its request may take; one that is malformed is nobody's."""
    with started(built, tmp_path / "d", "--log-level=info", "--access-log-hits=0", models=["fingerprint"]) as system:
        for trace in (SAMPLED, "00-zz-01", *[SAMPLED] * 4, "00-zz-01", UNSAMPLED):
            assert system.post(FINGERPRINT, ask_fingerprint(numbers(8118)), {"traceparent": trace})[0] == 200
    logged = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    traced = [(line["process"], line["event"], line.get("result")) for line in logged if "traceparent" in line]
    assert sorted(traced, key=str) == [
        ("inference:fingerprint", "infer", None),
        *[("proxy", "request", "hit")] * 4,
        ("proxy", "request", "miss"),
    ]
    assert all(line["traceparent"] == SAMPLED for line in logged if "traceparent" in line)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("inputs.text.shape: is [2, 2], must be [-1]", "inputs.text.shape: is [2, 2], must be [-1]"),
        (
            "inputs.a: there is no such input; the model takes text",
            "inputs.…: there is no such input; the model takes text",
        ),
        ("inputs.text: secret: there is no such input", "inputs.…: there is no such input"),
        ("outputs.a: secret: there is no such output", "outputs.…: there is no such output"),
        ("Request for unknown model: 'it's secret' is not found", "Request for unknown model: '…' is not found"),
        ("body: expected an object", "body: expected an object"),
    ],
)
def test_names_that_a_client_made_up_are_left_out(text: str, told: str) -> None:
    """Of a field only the model's own names, of what is quoted nothing."""
    assert without_names(text, ("text",)) == told


@pytest.mark.processes
def test_a_line_is_what_structlog_would_write(tmp_path: Path) -> None:
    """The same members in the same order, in one process that is set up to write JSON, and none below its level."""
    script = (
        "import structlog, sys; from foreseen import logs; logs.configure(sys.argv[1], 'proxy', 'json')\n"
        "fields = {'model': 'm', 'ms': 0.5, 'path': '/é', 'odd': {1}}\n"
        "structlog.get_logger().info('request', **fields); logs.write_line('request', fields)"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", script, level], capture_output=True, text=True, check=True, cwd=ROOT
        ).stderr
        for level in ("info", "warning")
    ]
    one, other = told[0].splitlines()
    stamp = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
    assert stamp.sub("", one) == stamp.sub("", other) != one
    assert told[1] == ""


async def test_a_line_is_written_after_the_turn_that_replies() -> None:
    """What a request waits for is its reply, not its line."""
    access = AccessLog(0.0, Clock())
    with structlog.testing.capture_logs() as captured:
        access.write("m", "v2", 200, "miss", 1, 0.01)
        assert captured == []
        await asyncio.sleep(0)
        assert len(captured) == 1
