"""`foreseen up`: what it says, what it leaves behind, and what it does about a bad start."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from foreseen.paths import run_folder
from tests.live import Live, started
from tests.ports import free_port
from tests.questions import ask_fingerprint, fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def foreseen(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "foreseen.cli", *words]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def test_the_defaults_in_force_stand_before_the_ready_line(live: Live) -> None:
    """Near and far bytes with how many rows of each model they hold, binding, data directory; ready comes last."""
    said = "\n".join(live.said)
    assert "near     256 MiB" in said
    assert "far      1.0 GiB" in said
    assert "rows of minilm" in said
    assert "rows of fingerprint" in said
    assert f"binding  {live.url} (this machine only)" in said
    assert str(live.data.resolve()) in said
    assert live.said[-1] == f"ready {live.url}"


def test_its_only_tcp_port_is_the_one_that_was_asked_for(live: Live) -> None:
    """Every other listener is a unix socket: no process of the system listens on another port."""
    inodes = set()
    for pid in (live.process.pid, *live.children().values()):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed since it was listed
                inodes.add(str(descriptor.readlink()))
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                listening.add(int(fields[1].rsplit(":", 1)[1], 16))
    assert listening == {live.port}


def test_secrets_and_sockets_are_for_their_owner_alone(live: Live) -> None:
    """Mode 0600 for the secret, 0700 for the folder of sockets."""
    assert (live.data / "secret").stat().st_mode & 0o777 == 0o600
    assert run_folder(live.data).stat().st_mode & 0o777 == 0o700


def test_a_taken_port_is_one_line_that_names_it(built: Path, tmp_path: Path) -> None:
    """The error says which port, and what to do; nothing was started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = foreseen("up", f"--data={tmp_path}", f"--port={port}", "--model=fingerprint")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f":{port}" in done.stderr
    assert "--port" in done.stderr


def test_a_data_directory_in_use_is_one_line(live: Live) -> None:
    """Two systems never share a data directory."""
    done = foreseen("up", f"--data={live.data}", "--port=0", "--model=fingerprint")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"process {live.process.pid}" in done.stderr


@pytest.mark.parametrize("what", ["", "lock", "run", "state", "run/state.sock", "run/children.json", "secret"])
def test_an_unusable_data_directory_is_one_line_that_names_it(built: Path, what: str) -> None:
    """A file where a folder has to be, or a folder where a file has to be."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's paths are too long for sockets
        data = Path(folder) / "data"
        if what:
            shutil.copytree(built / "models" / "fingerprint", data / "models" / "fingerprint")
        place = data / what
        if what in ("", "run", "state"):
            place.touch()
        else:
            (place / "folder").mkdir(parents=True)
        done = foreseen("up", f"--data={data}", "--port=0", "--model=fingerprint")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert f"{place}: " in done.stderr


def test_a_proxy_beside_a_running_system_leaves_its_socket_for_operators_alone(live: Live) -> None:
    """On the same data directory it serves all but operators' routes, and says so; purges go on, during and after."""
    port = free_port()
    command = [sys.executable, "-m", "foreseen.cli", "proxy", f"--data={live.data}", f"--port={port}"]
    beside = subprocess.Popen([*command, "--model=fingerprint"], stderr=subprocess.PIPE, text=True)
    try:
        assert beside.stderr is not None
        told = next(line for line in beside.stderr if "no listener for operators" in line)
        assert "another process listens" in told
        assert "confirmed by" in foreseen("purge", f"--data={live.data}", "--model=fingerprint").stdout
    finally:
        beside.terminate()
        beside.communicate(timeout=60)
    assert "confirmed by" in foreseen("purge", f"--data={live.data}", "--model=fingerprint").stdout


def test_an_unknown_model_is_one_line_that_lists_the_known(tmp_path: Path) -> None:
    """What exists is named."""
    done = foreseen("up", f"--data={tmp_path}", "--port=0", "--model=nope")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "minilm" in done.stderr


def test_nothing_is_imported_from_the_current_directory(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders and files there that are called as our packages and libraries do not reach the child processes."""
    elsewhere = tmp_path / "elsewhere"
    for folder in ("models", "proxy", "inference", "foreseen"):
        (elsewhere / folder).mkdir(parents=True)
    executed = tmp_path / "executed"
    for module in ("msgspec", "aiohttp", "json"):
        (elsewhere / f"{module}.py").write_text(f"open({str(executed)!r}, 'w').close()\nraise SystemExit(3)")
    monkeypatch.chdir(elsewhere)
    with started(built, tmp_path / "data", models=["fingerprint"]) as system:
        assert system.post(FINGERPRINT, ask_fingerprint(numbers(1)))[0] == 200
    assert not executed.exists()


def test_sigterm_stops_all_of_it(built: Path, tmp_path: Path) -> None:
    """Exit status 0, every child gone."""
    with started(built, tmp_path / "data", models=["fingerprint"]) as system:
        children = system.children()
        assert set(children) == {"far", "state", "model:fingerprint", "proxy", "worker"}
        system.process.send_signal(signal.SIGTERM)
        assert system.process.wait(30) == 0
        assert not any(alive(pid) for pid in children.values())


def test_ctrl_c_while_it_starts_stops_all_of_it(built: Path, tmp_path: Path) -> None:
    """SIGINT before ready is as good as after it."""
    with started(built, tmp_path / "data", models=["fingerprint"]):
        pass
    command = [
        sys.executable,
        "-m",
        "foreseen.cli",
        "up",
        f"--data={tmp_path / 'data'}",
        "--port=0",
        "--model=fingerprint",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("near")  # its first words, before anything is started
    process.send_signal(signal.SIGINT)
    assert "ready" not in process.stdout.read()
    process.stdout.close()
    assert process.wait(30) == 0


def test_a_killed_instance_leaves_nothing_running_and_its_data_is_recovered(built: Path, tmp_path: Path) -> None:
    """SIGKILL of the supervisor ends Valkey, model and proxy; the same data directory starts again."""
    with started(built, tmp_path / "data", models=["fingerprint"]) as system:
        children = list(system.children().values())
        os.kill(system.process.pid, signal.SIGKILL)
        system.process.wait(10)
        while any(alive(pid) for pid in children):
            os.sched_yield()
    with started(built, tmp_path / "data", models=["fingerprint"]) as system:
        assert system.post(FINGERPRINT, ask_fingerprint(numbers(1)))[0] == 200


def test_a_killed_model_process_comes_back(own: Live) -> None:
    """While it is gone a miss is 503 with Retry-After and the other model is untouched; then it answers again."""
    own.signal("model:fingerprint", signal.SIGKILL)
    refused = 0
    seed = 70_000
    while True:
        status, headers, body = own.post(FINGERPRINT, ask_fingerprint(numbers(seed)))
        if status == 200:
            break
        assert (status, headers["retry-after"]) == (503, "1"), body
        refused += 1
    assert own.post("/v2/models/minilm/infer", {"inputs": []})[0] == 400
    assert str(fingerprint(numbers(seed))[0]).encode() in body


def test_two_workers_share_one_port_and_one_count(built: Path, tmp_path: Path) -> None:
    """`--workers 2`: the counters of a scrape are the sum over both, whoever answers it."""
    with started(built, tmp_path / "data", "--workers=2", models=["fingerprint"]) as system:
        before = system.metric("foreseen_rows_total", model="fingerprint")
        for seed in range(40):
            assert system.post(FINGERPRINT, ask_fingerprint(numbers(seed)))[0] == 200
        assert {system.metric("foreseen_rows_total", model="fingerprint") - before for _ in range(6)} == {40}
