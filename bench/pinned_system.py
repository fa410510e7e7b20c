"""A system of single processes, each on the core that it is given: Valkey, one model process, proxies.

`foreseen up` starts the same processes, but all of them where it is started itself; what a miss costs shows only where
model and proxy do not share a core.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench.interleaved import ROOT
from foreseen.keys.secret import make_secret
from foreseen.paths import make_run_folder, model_socket, redis_socket
from foreseen.stores import valkey
from tests.ports import free_port

FORESEEN = [sys.executable, "-m", "foreseen.cli"]
START_SECONDS = 120.0


class Parts:
    """One data directory and the processes over it."""

    def __init__(self, built: Sequence[Path], folder: Path) -> None:
        self.data = folder / "data"
        (self.data / "models").mkdir(parents=True)
        for place in built:
            for model in (place.resolve() / "models").iterdir():
                (self.data / "models" / model.name).symlink_to(model)
        make_run_folder(self.data)
        make_secret(self.data / "secret")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def far(self, core: str, far_bytes: int = 1 << 30) -> None:
        """Valkey in the cache role."""
        self._start("far", core, valkey.command(redis_socket(self.data), far_bytes))
        until(redis_socket(self.data).exists, "Valkey")

    def model(self, name: str, core: str, *flags: str) -> Path:
        """One model's process; its socket."""
        path = model_socket(self.data, name)
        command = [*FORESEEN, "inference", f"--model={name}", f"--data={self.data}", f"--uds={path}", *flags]
        self._start(f"model:{name}", core, [*command, "--log-level=warning"])
        until(lambda: _ready_there(path, name), name)
        return path

    def proxy(self, core: str, models: Sequence[str], *flags: str, name: str = "proxy") -> str:
        """One proxy; its URL."""
        port = free_port()
        command = [*FORESEEN, "proxy", f"--data={self.data}", f"--port={port}", "--log-level=error"]
        self._start(name, core, [*command, *(f"--model={model}" for model in models), *flags])
        url = f"http://127.0.0.1:{port}"
        until(lambda: all(is_ready(f"{url}/v2/models/{model}/ready") for model in models), name)
        return url

    def stop(self, name: str) -> None:
        process = self.processes.pop(name)
        process.terminate()
        process.wait(30)

    def memory(self, name: str) -> int:
        """Resident memory of a process, in bytes."""
        text = Path(f"/proc/{self.processes[name].pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) * 1024

    def seconds(self, name: str) -> float:
        """CPU seconds that a process has used, by the scheduler's account."""
        tasks = Path(f"/proc/{self.processes[name].pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def _start(self, name: str, core: str, command: Sequence[str]) -> None:
        self.processes[name] = subprocess.Popen(["taskset", "-c", core, *command], stdout=subprocess.DEVNULL, cwd=ROOT)


@contextlib.contextmanager
def parts(*built: Path) -> Iterator[Parts]:
    """Nothing runs yet; all that was started ends with the block, the proxy first."""
    with tempfile.TemporaryDirectory(prefix="fsn") as folder:
        system = Parts(built, Path(folder))
        try:
            yield system
        finally:
            for name in list(system.processes)[::-1]:
                system.stop(name)


def until(ready: Callable[[], bool], what: str = "a process") -> None:
    """Wait for what another process brings about; nothing tells of it."""
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if time.monotonic() > deadline:
            sys.exit(f"bench: {what} was waited for in vain")
        time.sleep(0.02)


def is_ready(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as reply:
        return bool(reply.status == 200)
    return False


def _ready_there(path: Path, model: str) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(f"GET /v2/models/{model}/ready HTTP/1.1\r\nHost: m\r\n\r\n".encode())
        return connection.recv(4096).startswith(b"HTTP/1.1 200")
    return False
