"""The commands of docker-compose.yml, run as its users on its file system: answered, hit, purged, forgotten."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.containers import Container, Mounted, container, possible
from tests.ports import free_port
from tests.project.test_compose import ROOT, interpolated
from tests.questions import ask_fingerprint, numbers

pytestmark = pytest.mark.skipif(not possible(), reason="mount namespaces need root")

SECONDS = 60.0
FORESEEN = str(Path(sys.executable).parent / "foreseen")
PORTS = {"redis": "6379", "state": "6379", "inference-fingerprint": "8001", "proxy": "8000", "worker": "8002"}


@dataclass
class Composed:
    """The running services."""

    url: str
    proxy: Container

    def ask(self, seed: int, **headers: str) -> tuple[int, str]:
        """Status and Cache-Status."""
        body = json.dumps(ask_fingerprint(numbers(seed))).encode()
        request = urllib.request.Request(f"{self.url}/v2/models/fingerprint/infer", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                return reply.status, reply.headers["Cache-Status"]
        except urllib.error.HTTPError as error:
            with error:
                return error.code, str(error.headers["Cache-Status"])


@pytest.fixture(scope="module")
def composed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    """Redis, the state store, a model process, the proxy and a worker: all that has no GPU."""
    folder = tmp_path_factory.mktemp("compose")
    services = yaml.safe_load(interpolated((ROOT / "docker-compose.yml").read_text()))["services"]
    ports = {name: free_port() for name in PORTS}
    mounts = {name: _mounts(folder, built, name, services[name]) for name in PORTS}
    with contextlib.ExitStack() as stack:
        running: dict[str, Container] = {}
        for name in PORTS:
            (folder / name).mkdir()
            words = _words(services[name], name, ports)
            entered = container(folder / name, services[name], words, mounts[name], folder / f"{name}.log")
            running[name] = stack.enter_context(entered)
        live = Composed(f"http://127.0.0.1:{ports['proxy']}", running["proxy"])
        _until_answering(live, folder)
        yield live


def _words(service: dict[str, Any], name: str, ports: dict[str, int]) -> list[str]:
    """A service's command with addresses of this machine in place of names, and without the model that needs a GPU."""
    if name in ("redis", "state"):
        words = ["/usr/bin/redis-server", *service["command"]]
        words[words.index("--port") + 1] = str(ports[name])
        words[words.index("--bind") + 1] = "127.0.0.1"
        return words
    words = [FORESEEN, *(word for word in service["command"] if "minilm" not in word)]
    changed = []
    for word in words:
        for other, port in ports.items():
            word = word.replace(f"//{other}:{PORTS[other]}", f"//127.0.0.1:{port}")
        word = word.replace("--host=0.0.0.0", "--host=127.0.0.1")
        for flag in ("--port", "--metrics-port"):
            word = word.replace(f"{flag}={PORTS[name]}", f"{flag}={ports[name]}")
        changed.append(word)
    return changed


def _mounts(folder: Path, built: Path, name: str, service: dict[str, Any]) -> list[Mounted]:
    """Volumes and secrets as the file mounts them; secrets are made as docs/deploying.md says."""
    found = []
    for mount in service.get("volumes", []):
        if mount["type"] == "bind":
            found.append(Mounted(ROOT / mount["source"], mount["target"], mount["read_only"]))
            continue
        source = built / "models" if mount["source"] == "models" else folder / f"volume-{name}"
        source.mkdir(exist_ok=True)
        if mount["source"] == "state":
            os.chown(source, 999, 999)
        found.append(Mounted(source, mount["target"], mount.get("read_only", False)))
    for secret in service.get("secrets", []):
        path = folder / secret
        if not path.exists():
            line = f"head -c 32 /dev/urandom | base64 | install -m 400 -o 10001 /dev/stdin {path}"
            subprocess.run(["sh", "-c", line], check=True)
        found.append(Mounted(path, f"/run/secrets/{secret}"))
    return found


def _until_answering(live: Composed, folder: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if live.ask(1)[0] == 200:
                return
        time.sleep(0.1)
    raise AssertionError("\n".join(f"{path.name}: {path.read_text()[-800:]}" for path in folder.glob("*.log")))


def test_it_answers_and_hits(composed: Composed) -> None:
    """A question is computed by the model's service, kept, and answered from the cache."""
    composed.ask(151_001)
    status, said = composed.ask(151_001)
    assert (status, said.startswith("foreseen;hit")) == (200, True)


@pytest.mark.parametrize("flags", [("--model", "fingerprint"), ("--all",)])
def test_a_purge_is_confirmed_by_proxy_and_worker(composed: Composed, flags: tuple[str, ...]) -> None:
    """`docker compose exec proxy foreseen purge …`, as docs/deploying.md says it, needs no further flag."""
    composed.ask(151_002)
    done = composed.proxy.exec(FORESEEN, "purge", *flags)
    assert done.returncode == 0, done.stderr
    assert "confirmed by 2 workers" in done.stdout
    assert composed.ask(151_002, **{"Cache-Control": "only-if-cached"})[0] == 504


def test_an_unknown_model_is_refused(composed: Composed) -> None:
    """There, too: status 1, and the names that there are."""
    done = composed.proxy.exec(FORESEEN, "purge", "--model", "fingerprin")
    assert done.returncode == 1
    assert "near names: fingerprint" in done.stderr


def test_the_file_system_is_as_read_only_as_the_file_says(composed: Composed) -> None:
    """The check goes red: nothing can be written beside the sockets and /tmp."""
    for path, possible_there in (
        ("/data/x", False),
        ("/data/models/x", False),
        ("/data/run/x", True),
        ("/tmp/x", True),
    ):
        assert (composed.proxy.exec("touch", path).returncode == 0) == possible_there, path


def test_top_looks_at_the_proxy_beside_it(composed: Composed) -> None:
    """`docker compose exec proxy foreseen top`: without a flag it asks port 8000, which is the container's own."""
    done = composed.proxy.exec(FORESEEN, "top", "--once", "--interval=0.1", f"--url={composed.url}")
    assert done.returncode == 0, done.stderr
    assert "requests/s" in done.stdout
