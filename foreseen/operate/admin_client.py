"""Asks a running proxy over the operators' listener, with an operator's key."""

from __future__ import annotations

import http.client
import socket
import ssl
from pathlib import Path
from typing import Any

import orjson

from foreseen.errors import NotConfirmed, SetupError
from foreseen.keys.secret import read_secret
from foreseen.paths import admin_socket
from foreseen.settings.operators import OperatorSettings

MARGIN_SECONDS = 10.0
"""A proxy answers so long after the time that it was given to confirm."""


class AdminConnection(http.client.HTTPConnection):
    """To the unix socket of the operators' listener of a data directory."""

    def __init__(self, data: Path, timeout: float) -> None:
        super().__init__("admin", timeout=timeout)
        self._path = admin_socket(data)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask_operators(
    connection: http.client.HTTPConnection, where: object, token: Path, path: str, body: dict[str, Any] | bytes
) -> tuple[int, bytes]:
    """Status and body of the answer of one worker; closes the connection. Raises SetupError where none answers."""
    key = read_secret(token, "admin token").decode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        connection.request("POST", path, body if isinstance(body, bytes) else orjson.dumps(body), headers)
        reply = connection.getresponse()
        return reply.status, reply.read()
    except (OSError, http.client.HTTPException) as error:
        raise SetupError(f"no proxy answers operators at {where} ({type(error).__name__}); is one running?") from None
    finally:
        connection.close()


def ask_own_operators(data: Path, path: str, body: dict[str, Any] | bytes, seconds: float) -> tuple[int, bytes]:
    """The same of a proxy of a data directory on this machine. Bytes are sent as they are."""
    return ask_operators(AdminConnection(data, seconds), admin_socket(data), data / "admin-token", path, body)


def answer_of(settings: OperatorSettings, path: str, body: dict[str, Any], done: str = "purged") -> dict[str, Any]:
    """What a proxy's operators' route answers; `done` says what was not, in an error. Raises SetupError."""
    token, where = settings.admin_token_file or settings.data / "admin-token", admin_socket(settings.data)
    status, content = ask_operators(_connection(settings), settings.admin or where, token, path, body)
    try:
        document = dict(orjson.loads(content))
    except (orjson.JSONDecodeError, TypeError, ValueError):
        raise SetupError(f"the operators' address is not a proxy's: status {status}") from None
    if status != 200:
        how = f"not {done} everywhere" if status == NotConfirmed.status else f"not {done}"
        raise SetupError(f"{how}: {document.get('error')}")
    return document


def _connection(settings: OperatorSettings) -> http.client.HTTPConnection:
    timeout = settings.timeout_seconds + MARGIN_SECONDS
    if settings.admin is None:
        return AdminConnection(settings.data, timeout)
    scheme, _, place = settings.admin.rpartition("://")
    host, _, port = place.rstrip("/").rpartition(":")
    if not host or not port.isdigit() or scheme not in ("", "http", "https"):
        raise SetupError(f"--admin {settings.admin}: must be HOST:PORT or https://HOST:PORT")
    host = host.strip("[]")
    if scheme != "https":
        return http.client.HTTPConnection(host, int(port), timeout=timeout)
    try:
        context = ssl.create_default_context(cafile=settings.admin_ca_file)
    except (OSError, ssl.SSLError):
        raise SetupError(f"--admin-ca-file {settings.admin_ca_file}: cannot be read as PEM") from None
    return http.client.HTTPSConnection(host, int(port), timeout=timeout, context=context)
