"""`foreseen up` as a child process of the tests: started, asked, stopped, with what a person would see of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from foreseen.paths import model_socket
from tests.ports import free_port

STORES = {"far": "far.sock", "state": "state.sock"}
"""What their command lines end a word with."""


@dataclass
class Live:
    """A running system. `url` is where it serves, `data` its data directory."""

    url: str
    data: Path
    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (lower case) and body; `body` is bytes or something for JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask("POST", path, data, headers)

    def get(self, path: str) -> tuple[int, dict[str, str], bytes]:
        return self.ask("GET", path, None, None)

    def ask(
        self, method: str, path: str, data: bytes | None, headers: Mapping[str, str] | None
    ) -> tuple[int, dict[str, str], bytes]:
        request = urllib.request.Request(self.url + path, data, dict(headers or {}), method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, {k.lower(): v for k, v in reply.headers.items()}, reply.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels, on the proxy."""
        return sum_of(self.get("/metrics")[2].decode(), name, labels)

    def model_metric(self, model: str, name: str) -> float:
        """The same on a model's own process, over its unix socket."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(model_socket(self.data, model)))
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: model\r\nConnection: close\r\n\r\n")
            text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        return sum_of(text, name, {"model": model})

    def children(self) -> dict[str, int]:
        """Process ids of the system's processes by what they are: far, state, model:NAME, proxy, worker."""
        found = {}
        for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            with contextlib.suppress(OSError):  # it has ended in between
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                name = _kind(words)
                if name is not None:
                    found[name] = worker_of(int(pid)) if name == "worker" else int(pid)
        return found

    def workers(self) -> list[int]:
        """Process ids of the proxy's workers."""
        found = []
        for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            with contextlib.suppress(OSError):  # it has ended in between
                if "proxy" in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                    found.append(int(pid))
        return found

    def until(self, name: str, wanted: Callable[[float], bool], **labels: str) -> None:
        """Ask for a metric until it is as wanted; the system's own clock decides when, not a sleep."""
        deadline = time.monotonic() + 30
        while not wanted(self.metric(name, **labels)):
            assert time.monotonic() < deadline, f"{name} did not get there"

    def signal(self, child: str, number: signal.Signals) -> None:
        os.kill(self.children()[child], number)


def _kind(words: Sequence[str]) -> str | None:
    """What a child is by its command line; None of one that has ended, or is not yet what it will be."""
    if "inference" in words:
        return "model:" + next(word for word in words if word.startswith("--model=")).removeprefix("--model=")
    for kind in ("proxy", "worker"):
        if kind in words:
            return kind
    return next((kind for kind, path in STORES.items() if any(word.endswith(path) for word in words)), None)


def worker_of(pid: int) -> int:
    """The child that does a worker's work."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else pid


def sum_of(exposition: str, name: str, labels: Mapping[str, str]) -> float:
    total = 0.0
    for line in exposition.splitlines():
        match = re.fullmatch(rf"{re.escape(name)}(?:\{{(.*)\}})? (\S+)", line)
        if match and all(f'{key}="{value}"' in (match[1] or "") for key, value in labels.items()):
            total += float(match[2])
    return total


@contextlib.contextmanager
def started(built: Path, data: Path, *flags: str, models: Sequence[str] = ("minilm", "fingerprint")) -> Iterator[Live]:
    """Start `foreseen up` on a copy of the built models, wait for `ready`, stop it with SIGTERM at the end."""
    given(built, data)
    with fresh(data, *(f"--model={model}" for model in models), *flags) as system:
        yield system


def given(built: Path, data: Path) -> None:
    """A data directory with a copy of the built models."""
    data.mkdir(parents=True, exist_ok=True)
    if not (data / "models").exists():
        shutil.copytree(built / "models", data / "models", ignore=shutil.ignore_patterns(".fetched", ".building*"))


@contextlib.contextmanager
def fresh(data: Path, *flags: str, stderr: IO[str] | None = None) -> Iterator[Live]:
    """The same on a data directory as it is, with these flags alone; its log goes where `stderr` says."""
    port = free_port()
    command = [sys.executable, "-P", "-m", "foreseen.cli", "up", f"--data={data}", f"--port={port}", *flags]
    if not any(flag.startswith("--log-level=") for flag in flags):
        command.append("--log-level=warning")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    system = Live(f"http://127.0.0.1:{port}", data, process)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            system.said.append(line.rstrip())
            if line.startswith("ready "):
                break
        assert system.said[-1:] == [f"ready {system.url}"], system.said
        yield system
    finally:
        process.terminate()
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()
