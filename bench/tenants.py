"""What a key and TLS cost a hit: `make bench-tenants`.

The same bytes and a fresh `id`, from a proxy without a keys file, one with it, and one with it over TLS; beside nginx
`proxy_cache` over TLS with the same certificate. All send the same `Authorization`. Connections stay open.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import hashlib
import json
import socket
import ssl
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from bench.hit_servers import NGINX, Running
from bench.interleaved import (
    ROOT,
    Turn,
    awake,
    end,
    listens,
    metered,
    need,
    pinned,
    report,
    take_turns,
    verdict,
    wrk,
)
from bench.wrk_scripts import FRESH_ID, script
from tests.certificates import authority, signed
from tests.models_fixture import built_data
from tests.ports import free_port
from tests.questions import ask_fingerprint, numbers

KEY = "the key of the bench"
BASE, TLS_BASE = "without a keys file", "nginx proxy_cache, TLS"
WITH_KEY, OVER_TLS = "with a key", "with a key, TLS"
CREDENTIAL = f'wrk.headers["Authorization"] = "Bearer {KEY}"'
PATH = "/v2/models/fingerprint/infer"


@contextlib.contextmanager
def system(folder: Path, name: str, *flags: str, scheme: str = "http") -> Iterator[Running]:
    """A system on the server's core, with one model."""
    port, data = free_port(), folder / name
    (data / "models").mkdir(parents=True)
    (data / "models" / "fingerprint").symlink_to(built_data() / "models" / "fingerprint")
    command = [sys.executable, "-m", "foreseen.cli", "up", f"--data={data}", f"--port={port}", "--log-level=error"]
    command += ["--model=fingerprint", "--job-workers=0", *flags]
    url = f"{scheme}://127.0.0.1:{port}"

    def ready() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/v2/health/ready", context=trust()) as reply:
            return bool(reply.status == 200)
        return False

    with pinned(command, ready=ready, stdout=subprocess.DEVNULL, cwd=ROOT) as process:
        yield Running(url, process.pid)


@contextlib.contextmanager
def nginx(folder: Path, upstream: str, certificate: tuple[Path, Path]) -> Iterator[Running]:
    """nginx's cache over TLS."""
    port, own = free_port(), folder / "nginx"
    own.mkdir()
    text = NGINX.format(user=getpass.getuser(), folder=own, port=port, upstream=upstream.rsplit(":", 1)[1])
    tls = f"listen 127.0.0.1:{port} ssl; ssl_certificate {certificate[0]}; ssl_certificate_key {certificate[1]};"
    (own / "nginx.conf").write_text(text.replace(f"listen 127.0.0.1:{port};", tls))
    command = [need("nginx", "nginx-light"), "-c", str(own / "nginx.conf")]
    with pinned(command, ready=lambda: listens(port), stderr=subprocess.DEVNULL) as process:
        yield Running(f"https://127.0.0.1:{port}", process.pid)


def trust() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def version_of(url: str) -> str:
    """What a client of today speaks with a server."""
    place = url.rsplit(":", 1)[1]
    with socket.create_connection(("127.0.0.1", int(place))) as raw, trust().wrap_socket(raw) as spoken:
        return f"{spoken.version()}, {(spoken.cipher() or ('?',))[0]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--report-only", action="store_true")
    settings = parser.parse_args()
    body = json.dumps(ask_fingerprint(numbers(18), numbers(19), numbers(20))).encode()
    with tempfile.TemporaryDirectory(prefix="fsn", dir="/tmp") as name, contextlib.ExitStack() as running:
        folder = Path(name)
        certificate = signed(folder, "server", authority(folder))
        keys = folder / "keys.toml"
        keys.write_text(f'[tenant.bench]\nkeys = ["sha256:{hashlib.sha256(KEY.encode()).hexdigest()}"]\n')
        tls = (f"--tls-cert={certificate[0]}", f"--tls-key={certificate[1]}")
        plain = running.enter_context(system(folder, "open"))
        servers = {
            BASE: plain,
            WITH_KEY: running.enter_context(system(folder, "keys", f"--keys-file={keys}")),
            OVER_TLS: running.enter_context(system(folder, "tls", f"--keys-file={keys}", *tls, scheme="https")),
            TLS_BASE: running.enter_context(nginx(folder, plain.url, certificate)),
        }
        spoken = {name: version_of(servers[name].url) for name in (OVER_TLS, TLS_BASE)}
        same = script(folder, "same", body, CREDENTIAL)
        fresh = script(folder, "fresh", body, CREDENTIAL, FRESH_ID)
        turns: dict[str, Turn] = {}
        for name, server in servers.items():
            for what, lua in (("", same), (", a fresh id", fresh)):
                if what and server is servers[TLS_BASE]:
                    continue
                wrk(server.url + PATH, lua, connections=2, seconds=1)
                turns[name + what] = metered(_turn(server.url + PATH, lua, settings), server.pid, settings.seconds)
        with awake():
            figures = take_turns(turns, settings.rounds)
    report("What a key and TLS cost a hit", figures, BASE, spoken=spoken)
    met = verdict(figures, BASE, {WITH_KEY: 0.95})
    met &= verdict(figures, f"{BASE}, a fresh id", {f"{WITH_KEY}, a fresh id": 0.95})
    verdict(figures, TLS_BASE, {OVER_TLS: 0.5})
    print(f"spoken: {spoken}")
    end(met, report_only=settings.report_only)


def _turn(url: str, lua: Path, settings: argparse.Namespace) -> Turn:
    return lambda: wrk(url, lua, connections=settings.connections, seconds=settings.seconds)


if __name__ == "__main__":
    main()
