"""The admin token: required by every operators' route, compared in constant time; every call is logged."""

from __future__ import annotations

import socket
import struct
import time
from hmac import compare_digest
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from foreseen.errors import SetupError, Unauthorized
from foreseen.keys.explain import read_frame
from foreseen.keys.secret import read_secret
from foreseen.logs import Sparing
from foreseen.types import Explanation

log = structlog.get_logger()


class Token:
    """The operators' token, or none, which opens nothing."""

    def __init__(self, path: Path, *, required: bool) -> None:
        try:
            self._token = read_secret(path, "admin token")
        except SetupError:
            if required:
                raise
            self._token = b""
        self._sparing = Sparing()

    def check(self, request: web.Request, verb: str) -> str:
        """The caller, for the log. Raises Unauthorized. Every call is logged. A call without the token is a warning;
        many of those from one address are one warning a second with their number."""
        passed = bool(self._token) and compare_digest(_bearer(request), self._token)
        actor = actor_of(request)
        if passed:
            log.info("admin", verb=verb, actor=actor, passed=True)
        else:
            skipped = self._sparing.skipped(actor.partition(",")[0])
            if skipped is not None:
                log.warning("admin", verb=verb, actor=actor, passed=False, **skipped)
            raise Unauthorized("this route needs the admin token", headers={"WWW-Authenticate": "Bearer"})
        return actor


def _bearer(request: web.Request) -> bytes:
    """The token that a request gives, any bytes; empty where it gives none. The scheme's case does not matter (RFC 9110
    section 11.1)."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    return given.strip(" ").encode(errors="surrogateescape") if scheme.lower() == "bearer" else b""


def actor_of(request: web.Request) -> str:
    """The peer of a request: its address or, on a unix socket, the user and process that opened it."""
    if request.remote:
        return request.remote
    opened = request.transport.get_extra_info("socket") if request.transport is not None else None
    if opened is None or opened.family != socket.AF_UNIX:
        return "unknown"
    pid, uid, _ = struct.unpack("3i", opened.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return f"uid {uid}, process {pid}"


def explained(rows: list[Explanation], model: str, digest: str) -> dict[str, Any]:
    """What `explain` answers: every row's key, frame, place and, for a miss, its reason."""
    now = time.time()
    return {"model": model, "digest": digest, "rows": [_row(row, now) for row in rows]}


def _row(row: Explanation, now: float) -> dict[str, Any]:
    document: dict[str, Any] = {"key": row.key.hex(), "where": row.where, "frame": read_frame(row.frame).shown()}
    if row.reason is not None:
        document["reason"] = row.reason
    if row.prediction is not None:
        document["age"] = max(0, int(now - row.prediction.made_at))
        document["ttl"] = int(row.prediction.expires_at - now)
        document["seconds"] = row.prediction.seconds
    return document
