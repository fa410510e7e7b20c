"""Everything on stderr is one format: logs, builds, warnings of libraries and the last word of a command that fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live import Live
from tests.ports import free_port

COMMAND = [sys.executable, "-m", "foreseen.cli"]
SECONDS = 120


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *words]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=SECONDS
    )


def test_a_system_writes_json_from_its_build_to_its_end(tmp_path: Path) -> None:
    """Every line of `up --log-format json` is an object with an event: the build, a killed worker, the end."""
    port, file = free_port(), tmp_path / "stderr"
    with file.open("w") as out:
        words = ["up", f"--data={tmp_path / 'data'}", f"--port={port}", "--model=fingerprint", "--log-format=json"]
        process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=out, text=True)
        live = Live(f"http://127.0.0.1:{port}", tmp_path / "data", process)
        assert process.stdout is not None
        try:
            assert any(line.startswith("ready ") for line in process.stdout)
            live.signal("proxy", signal.SIGKILL)
            live.post("/v2/models/fingerprint/infer", b"{")
        finally:
            process.terminate()
            process.wait(SECONDS)
            process.stdout.close()
    events = [json.loads(line)["event"] for line in file.read_text().splitlines()]
    assert {"build", "child ended; starting it again", "listening"} <= set(events)


@pytest.mark.parametrize("words", [("proxy", "--model=nobody"), ("up", "--near-bytes=much"), ("up", "--prot=1")])
def test_a_server_that_cannot_start_says_so_in_its_format(words: tuple[str, ...], tmp_path: Path) -> None:
    """One line: JSON where a collector reads, or where that is asked for; text where that is."""
    data = f"--data={tmp_path}"
    for flags in ((), ("--log-format=json",), ("--log-format", "json")):
        done = run(*words, data, *flags)
        (line,) = done.stderr.splitlines()
        assert json.loads(line)["level"] == "error"
        assert done.returncode in (1, 2)
    (line,) = run(*words, data, FORESEEN_LOG_FORMAT="text").stderr.splitlines()
    assert line.startswith("foreseen: ")


def test_a_command_of_a_person_says_text_unless_asked(tmp_path: Path) -> None:
    """`foreseen purge` in a shell is no server: a plain line, and JSON by the same flag."""
    (line,) = run("purge", "--all", f"--data={tmp_path}").stderr.splitlines()
    assert line.startswith("foreseen: ")
    (line,) = run("purge", "--all", f"--data={tmp_path}", "--log-format=json").stderr.splitlines()
    assert "admin token" in json.loads(line)["event"]


def test_libraries_and_bugs_write_it_too() -> None:
    """What Python's own logging, a warning and an exception that nobody caught say are lines of the same format."""
    program = (
        "import logging, warnings; from foreseen.logs import configure; configure('info', 'test', 'json');"
        "logging.getLogger('other').warning('from a library'); warnings.warn('from a module'); 1 / 0"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert lines[0]["event"] == "from a library"
    assert "from a module" in lines[1]["event"]
    assert (lines[2]["event"], lines[2]["error"]) == ("ended by an error", "ZeroDivisionError")
