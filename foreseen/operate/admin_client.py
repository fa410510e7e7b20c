"""Asks a running proxy over the operators' listener, with an operator's key."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path
from typing import Any

import orjson

from foreseen.errors import SetupError
from foreseen.keys.secret import read_secret
from foreseen.paths import admin_socket


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
    connection: http.client.HTTPConnection, where: object, token: Path, path: str, body: dict[str, Any]
) -> tuple[int, bytes]:
    """Status and body of the answer of one worker; closes the connection. Raises SetupError where none answers."""
    key = read_secret(token, "admin token").decode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        connection.request("POST", path, orjson.dumps(body), headers)
        reply = connection.getresponse()
        return reply.status, reply.read()
    except (OSError, http.client.HTTPException) as error:
        raise SetupError(f"no proxy answers operators at {where} ({type(error).__name__}); is one running?") from None
    finally:
        connection.close()


def ask_own_operators(data: Path, path: str, body: dict[str, Any], seconds: float) -> tuple[int, bytes]:
    """The same of a proxy of a data directory on this machine."""
    return ask_operators(AdminConnection(data, seconds), admin_socket(data), data / "admin-token", path, body)
