"""Checks of a request's head that RFC 9110 and 9112 require and aiohttp omits; made before any handler runs."""

from __future__ import annotations

import re

from aiohttp import HttpVersion11, web

from foreseen.errors import BadRequest, ExpectationFailed, VersionNotSupported
from foreseen.web.http import SERVER, Handler, error_reply

METHODS = "GET, HEAD, POST, QUERY, DELETE, OPTIONS"
_VERSIONS = ((1, 1), (1, 0))
_HOST = re.compile(r"(?:\[[0-9A-Za-z:.%_~-]+\]|(?:[0-9A-Za-z._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?")
"""`uri-host [ ":" port ]` of RFC 3986; empty where the target has no authority."""


def checked(handler: Handler) -> Handler:
    """A handler behind these checks: a request with an invalid head gets an error and never reaches it."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return refusal(request) or await handler(request)  # type: ignore[arg-type]

    return answer


def refusal(request: web.BaseRequest) -> web.StreamResponse | None:
    """The error for a request with an invalid head; None for a valid one."""
    if request._version not in _VERSIONS:  # noqa: SLF001 - `version` would be kept as it is read
        request._version = HttpVersion11  # noqa: SLF001 - an answer is in a version that the server speaks
        reply = error_reply(VersionNotSupported("only HTTP/1.1 and HTTP/1.0 are spoken here"))
        reply.force_close()
        return reply
    host = request.headers.get("Host")
    if host is not None and not _HOST.fullmatch(host):
        return error_reply(BadRequest("Host: is not a host, with a port or without (RFC 9112 section 3.2)"))
    if "Expect" in request.headers and request.headers["Expect"].lower() != "100-continue":
        return error_reply(ExpectationFailed("Expect: only 100-continue is understood"))
    if request.method == "OPTIONS" and request.path == "*":
        return web.Response(status=204, headers={"Server": SERVER, "Allow": METHODS})
    return None
