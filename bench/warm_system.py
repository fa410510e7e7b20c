"""A system whose model process and proxy are started and stopped one by one, and the texts that are warmed."""

from __future__ import annotations

import contextlib
import csv
import json
import lzma
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from foreseen import models
from foreseen.keys.secret import make_secret
from foreseen.modelspec.artifact import read_serving
from foreseen.paths import make_run_folder, model_socket, redis_socket
from foreseen.stores import valkey
from foreseen.warm.write.bulk_redis import BulkRedis
from tests.ports import free_port

PACKAGED = (Path(models.__file__).parent,)
SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
FORESEEN = [sys.executable, "-m", "foreseen.cli"]


class System:
    """Valkey, one model process and one proxy, each of which can be stopped by itself."""

    def __init__(self, data: Path, model: str) -> None:
        self.data, self.model = data, model
        make_run_folder(data)
        make_secret(data / "secret")
        self.far = subprocess.Popen(valkey.command(redis_socket(data), 2 << 30), stdout=subprocess.DEVNULL)
        self.inference: subprocess.Popen[bytes] | None = None
        self.proxy: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{free_port()}"

    def start_model(self) -> None:
        path = model_socket(self.data, self.model)
        path.unlink(missing_ok=True)
        command = [*FORESEEN, "inference", f"--model={self.model}", f"--data={self.data}", f"--uds={path}"]
        self.inference = subprocess.Popen([*command, "--log-level=warning"])
        until(lambda: read_serving(self.data, self.model) is not None and self.metric("foreseen_model_rows_total") >= 0)

    def start_proxy(self, *flags: str) -> None:
        port = self.url.rsplit(":", 1)[1]
        command = [*FORESEEN, "proxy", f"--model={self.model}", f"--data={self.data}", f"--port={port}"]
        command += ["--far-budget-ms=2000", *flags]  # thousands of rows a question, on a machine that may be busy
        self.proxy = subprocess.Popen([*command, "--log-level=error"])
        until(lambda: get(f"{self.url}/v2/models/{self.model}/ready"))

    def stop_model(self) -> None:
        assert self.inference is not None
        self.inference.terminate()
        self.inference.wait(60)

    def metric(self, name: str) -> float:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(str(model_socket(self.data, self.model)))
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n")
            text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name + "{"))

    def flush(self) -> None:
        pipe = self.pipe()
        pipe._ask(b"FLUSHALL")  # noqa: SLF001
        pipe.close()

    def pipe(self) -> BulkRedis:
        return BulkRedis(f"unix://{redis_socket(self.data)}")

    def close(self) -> None:
        for process in (self.proxy, self.inference, self.far):
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    raise


@contextlib.contextmanager
def system(built: Path, model: str) -> Iterator[System]:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        shutil.copytree(built / "models" / model, data / "models" / model)
        (data / "models" / model / "serving.json").unlink(missing_ok=True)
        running = System(data, model)
        until(redis_socket(data).exists)
        try:
            yield running
        finally:
            running.close()


def until(ready: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if ready():
                return
        time.sleep(0.05)
    raise TimeoutError


def get(url: str) -> bool:
    with urllib.request.urlopen(url, timeout=5) as reply:
        return bool(reply.status == 200)


def warm(data: Path, model: str, *words: str) -> tuple[dict[str, Any], float]:
    """The command's summary, and the wall time of all of it."""
    started = time.perf_counter()
    command = [*FORESEEN, "warm", *words, f"--data={data}", f"--model={model}", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        with process.stdout:
            said = process.stdout.read()
    except TimeoutError:
        process.kill()
        raise
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return {**json.loads(said), "peak_bytes": used.ru_maxrss * 1024}, time.perf_counter() - started


def texts(limit: int) -> list[str]:
    """The recorded texts, or made ones with repeats where they are not at hand."""
    path = SHARED / "sgd_user_utterances.csv.xz"
    if path.exists():
        with lzma.open(path, "rt", encoding="utf-8") as file:
            return [row["text"] for row in csv.DictReader(file)][:limit]
    dice = random.Random(0)
    words = [f"word{i}" for i in range(500)]
    return [" ".join(dice.choices(words, k=dice.randint(3, 20))) for _ in range(limit * 4 // 5)] * 2


def ask_text(text: str) -> bytes:
    return json.dumps({"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}]}).encode()
