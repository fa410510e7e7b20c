"""`foreseen up` over TLS, as `tests/live.py` runs it over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.live import Live
from tests.ports import free_port


@dataclass
class SecureLive(Live):
    """A running system behind TLS; `authority` verifies it."""

    authority: Path = Path()
    clients: list[http.client.HTTPSConnection] = field(default_factory=list)
    """They are closed at the end."""

    def client(self, certificate: Path | None = None) -> http.client.HTTPSConnection:
        """A connection of its own; `certificate` lies beside its key."""
        context = ssl.create_default_context(cafile=str(self.authority))
        if certificate is not None:
            context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        made = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=60, context=context)
        self.clients.append(made)
        return made

    def served(self) -> str:
        """The certificate that a new connection gets."""
        return ssl.get_server_certificate(("127.0.0.1", self.port))

    def model_rows(self) -> float:
        return self.model_metric("fingerprint", "foreseen_model_rows_total")


@contextlib.contextmanager
def secure(data: Path, authority: Path, own: tuple[Path, Path], *flags: str) -> Iterator[SecureLive]:
    """Start on a data directory as it is, wait for `ready`, stop with SIGTERM at the end."""
    port = free_port()
    command = [sys.executable, "-P", "-m", "foreseen.cli", "up", f"--data={data}", f"--port={port}", *flags]
    command += [f"--tls-cert={own[0]}", f"--tls-key={own[1]}", "--log-level=warning"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    system = SecureLive(f"https://127.0.0.1:{port}", data, process, authority=authority)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            system.said.append(line.rstrip())
            if line.startswith("ready "):
                break
        assert system.said[-1:] == [f"ready {system.url}"], system.said
        yield system
    finally:
        for client in system.clients:
            client.close()
        process.terminate()
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()
