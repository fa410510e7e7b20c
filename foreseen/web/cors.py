"""CORS (the Fetch standard, section 3.2): which origins' scripts may call this server and read replies.

Off unless an origin is configured. Credentials are never allowed: callers have none here. A request with `Origin` never
takes the fast path (`known_heads.py`), so that every reply to one passes here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from aiohttp import web

from foreseen.errors import RateLimited, SetupError
from foreseen.web.http import SERVER, Handler, error_reply

ANY = "*"
METHODS = "GET, HEAD, POST, DELETE, QUERY"
EXPOSED = "Age, Cache-Status, Inference-Header-Content-Length, Location, Preference-Applied, Retry-After, Server-Timing"
SECONDS = 600
"""How long a browser caches a preflight reply."""
HIDDEN = ("/metrics",)
"""Prefixes of paths for monitoring, which no page may read."""
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(?::[0-9]{1,5})?|https?://\[[0-9a-f:]+\](?::[0-9]{1,5})?")
_NAMES = re.compile(r"[A-Za-z0-9-]+(?:[ \t]*,[ \t]*[A-Za-z0-9-]+)*")


class Cors:
    """The allowed origins. Raises SetupError for a malformed one."""

    def __init__(self, origins: Sequence[str]) -> None:
        for origin in origins:
            if origin != ANY and not _ORIGIN.fullmatch(origin):
                raise SetupError(f"--cors-origin {origin}: must be * or https://HOST[:PORT], without a path")
        self._origins = frozenset(origins)

    def add_to(self, app: web.Application) -> None:
        """Reply to preflight requests, and add the CORS headers to every other reply."""
        if self._origins:
            app.middlewares.insert(0, self._preflight)
            app.on_response_prepare.append(self._allowed)

    @web.middleware
    async def _preflight(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        asked = request.headers.get("Access-Control-Request-Method")
        if request.method != "OPTIONS" or asked is None or self._origin(request) is None:
            return await handler(request)
        try:
            getattr(request.protocol, "admit", lambda _: None)(request)
        except RateLimited as error:
            return error_reply(error)
        names = request.headers.get("Access-Control-Request-Headers", "")
        headers = {"Server": SERVER, "Access-Control-Allow-Methods": METHODS, "Access-Control-Max-Age": str(SECONDS)}
        if _NAMES.fullmatch(names):
            headers["Access-Control-Allow-Headers"] = names
        return web.Response(status=204, headers=headers)

    async def _allowed(self, request: web.Request, response: web.StreamResponse) -> None:
        if request.path.startswith(HIDDEN):
            return
        if ANY not in self._origins:
            response.headers.add("Vary", "Origin")  # a shared cache must not give one page's answer to another
        origin = self._origin(request)
        if origin is not None:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = EXPOSED

    def _origin(self, request: web.Request) -> str | None:
        """The value of `Access-Control-Allow-Origin`; None where the origin is absent or not allowed."""
        origin = request.headers.get("Origin")
        if origin is None or request.path.startswith(HIDDEN):
            return None
        return ANY if ANY in self._origins else origin if origin in self._origins else None
