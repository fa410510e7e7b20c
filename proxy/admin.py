"""Routes for operators: shut without a token, compared in constant time, every call logged."""

from __future__ import annotations

import time
from hmac import compare_digest
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from foreseen.errors import SetupError, Unauthorized
from foreseen.explain import read_frame
from foreseen.nouns import Explanation
from foreseen.secret import read_secret

log = structlog.get_logger()


class Token:
    """The operators' token, or none, which opens nothing."""

    def __init__(self, path: Path, *, required: bool) -> None:
        try:
            self._token = read_secret(path)
        except SetupError:
            if required:
                raise
            self._token = b""

    def check(self, request: web.Request, verb: str) -> None:
        """Raises Unauthorized. Every call is logged, whoever made it."""
        given = request.headers.get("Authorization", "").encode()
        passed = bool(self._token) and compare_digest(given, b"Bearer " + self._token)
        log.info("admin", verb=verb, route=request.match_info.get("model", ""), passed=passed, peer=request.remote)
        if not passed:
            raise Unauthorized("this route needs the admin token", headers={"WWW-Authenticate": "Bearer"})


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
