"""docs/install.md as it stands: with pip, carried to a machine without a network, started there. Takes minutes."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tests.containers import possible
from tests.live import given

ROOT = Path(__file__).parent.parent.parent
SECONDS = 600


def section(heading: str) -> list[str]:
    """The commands below a heading, without comments."""
    text = (ROOT / "docs" / "install.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"(?ms)^```sh\n(.*?)^```$", text)
    return [re.split(r"\s+# ", line)[0] for block in blocks for line in block.splitlines()]


def run(command: str, folder: Path, venv: Path) -> subprocess.CompletedProcess[str]:
    """In a shell, with a virtual environment's programs first."""
    return subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        env=with_path(venv),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def with_path(venv: Path) -> dict[str, str]:
    return {**os.environ, "PATH": f"{venv / 'bin'}:{os.environ['PATH']}"}


def alone(command: str) -> str:
    """A command on a machine without a network: in a namespace that has a loopback of its own and nothing else."""
    up = "import fcntl, socket, struct; s = socket.socket(); fcntl.ioctl(s, 0x8914, struct.pack('16sh', b'lo', 1))"
    return f"exec unshare --net sh -c {shlex.quote(f'{sys.executable} -c {shlex.quote(up)} && exec {command}')}"


def environment_at(path: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", str(path)], check=True)
    return path


def test_the_page_as_it_stands(built: Path, tmp_path: Path) -> None:
    """Wheels and a built model from here; installed, imported and started where no network is; with pip from here."""
    assert possible(), "a machine without a network is a network namespace, which needs root"
    here, there = environment_at(tmp_path / "here"), environment_at(tmp_path / "there")
    wheel, build, export, install, import_, up = section("Without a network")
    assert build == "foreseen models build minilm"  # fetches weights: they are built already
    carried = tmp_path / "carried"
    carried.mkdir()
    done = run(wheel.replace("wheels", str(carried / "wheels")), ROOT, here)
    assert done.returncode == 0, done.stderr[-2000:]
    pip, _ = section("With pip")
    assert run(f"{pip} --quiet", ROOT, here).returncode == 0
    given(built, carried / "data")
    for command in (export, ".venv/bin/foreseen --help".removeprefix(".venv/bin/")):
        assert run(command, carried, here).returncode == 0, command
    shutil.move(carried / "data", tmp_path / "left behind")
    for command in (install, import_):
        done = run(alone(command), carried, there)
        assert done.returncode == 0, done.stderr[-2000:]
    command = ["sh", "-c", alone(f"{up} --port 18099")]
    process = subprocess.Popen(command, cwd=carried, env=with_path(there), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert any(line.startswith("ready http://127.0.0.1:18099") for line in process.stdout)
    finally:
        process.terminate()
        process.wait(60)
        if process.stdout is not None:
            process.stdout.close()
