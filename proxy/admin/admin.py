"""Operators and viewers: checks the keys of operators' routes and writes the audit log."""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path
from typing import Any

from aiohttp import web
from msgspec import Struct

from foreseen.errors import NotPermitted, Unauthorized
from foreseen.keys.explain import read_frame
from foreseen.tenants.admin_keys import Administrator, AdminKeys
from foreseen.tenants.audit import audit, audit_refusal
from foreseen.tenants.keyring import credentials_of
from foreseen.types import Explanation, Space

KEYS_FILE = "admin-keys.toml"
"""Of the data directory; it need not be there."""
VIEWED = frozenset(("metrics", "workers", "explain"))
"""What a viewer may do; all else takes an operator."""


class Actor(Struct, frozen=True):
    """The holder of a key that was checked, and where the request came from."""

    name: str
    client: str

    def did(self, action: str, **fields: Any) -> None:
        """Write an action into the audit log."""
        audit(action, self.name, self.client, **fields)


NO_ACTOR = Actor("", "")
"""Of an action without a request."""


class Operators:
    """Checks the keys of operators' routes, in one process."""

    def __init__(self, token: Path, data: Path, *, required: bool) -> None:
        """Raises SetupError where a file of keys is not as it must be."""
        self.keys = AdminKeys(token, data / KEYS_FILE, required=required)

    def knows(self, request: web.Request) -> bool:
        """Whether a request has a key of operators' routes."""
        return self._found(request) is not None

    def check(self, request: web.Request, verb: str) -> Actor:
        """The caller. Raises Unauthorized, and NotPermitted where it may only look; both are in the audit log."""
        client = client_of(request)
        found = self._found(request)
        if found is None:
            audit_refusal(verb, client, "no operator's key")
            raise Unauthorized("this route needs an operator's key", headers={"WWW-Authenticate": "Bearer"})
        if found.role != "operator" and verb not in VIEWED:
            audit(verb, found.name, client, passed=False, why="a viewer may only look")
            raise NotPermitted("this route needs an operator's key; the request has a viewer's")
        return Actor(found.name, client)

    def _found(self, request: web.Request) -> Administrator | None:
        given = set(credentials_of(request.headers))
        return self.keys.find(given.pop()) if len(given) == 1 else None


def client_of(request: web.Request) -> str:
    """The peer of a request: its address or, on a unix socket, the user and process that opened it."""
    if request.remote:
        return request.remote
    opened = request.transport.get_extra_info("socket") if request.transport is not None else None
    if opened is None or opened.family != socket.AF_UNIX:
        return "unknown"
    pid, uid, _ = struct.unpack("3i", opened.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return f"uid {uid}, process {pid}"


def explained(rows: list[Explanation], space: Space) -> dict[str, Any]:
    """What `explain` answers: whose entries were looked for; each row's key, frame, place and reason of a miss."""
    now = time.time()
    return {
        "model": space.model,
        "digest": space.digest,
        "scope": space.scope,
        "rows": [_row(row, now) for row in rows],
    }


def _row(row: Explanation, now: float) -> dict[str, Any]:
    document: dict[str, Any] = {"key": row.key.hex(), "where": row.where, "frame": read_frame(row.frame).shown()}
    if row.reason is not None:
        document["reason"] = row.reason
    if row.prediction is not None:
        document["age"] = max(0, int(now - row.prediction.made_at))
        document["ttl"] = int(row.prediction.expires_at - now)
        document["seconds"] = row.prediction.seconds
    return document
