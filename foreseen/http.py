"""What both servers do with HTTP: read a body within limits, answer JSON, turn every error into `{"error", "code"}`.

aiohttp's own error bodies are `text/plain`, its `json_response` says `charset=utf-8`, and a slow body is never closed;
each of these breaks a real client or a server (see the protocol notes in `docs/clients.md`).
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import structlog
from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError

from foreseen.errors import (
    BadRequest,
    BodyTimeout,
    ForeseenError,
    MethodNotAllowed,
    NotFound,
    TooLarge,
    UnsupportedCoding,
)

HEADER_LENGTH = "Inference-Header-Content-Length"
JSON = "application/json"
BINARY = "application/octet-stream"
SERVER = "foreseen"
"""aiohttp would tell its own and Python's version."""
_CODINGS = frozenset(("", "identity", "gzip", "deflate"))
_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
log = structlog.get_logger()


async def read_body(request: web.Request, seconds: float) -> bytes:
    """The whole body, decoded. The limit on its decoded size is the application's `client_max_size`.

    Raises UnsupportedCoding, TooLarge, BodyTimeout (aiohttp closes slow headers but never slow bodies), BadRequest.
    """
    coding = request.headers.get("Content-Encoding", "").strip().lower()
    if coding not in _CODINGS:
        # aiohttp decodes br and zstd where those packages are installed, and lets unknown codings through undecoded.
        raise UnsupportedCoding(
            f"Content-Encoding: {coding[:32]!r} is not supported; send gzip, deflate or none",
            headers={"Accept-Encoding": "gzip, deflate"},
        )
    try:
        async with asyncio.timeout(seconds):
            body = await request.read()
    except TimeoutError:
        request.protocol.force_close()
        raise BodyTimeout(f"the body did not arrive within {seconds:g} seconds") from None
    except web.HTTPRequestEntityTooLarge:
        raise TooLarge(f"the body is above the limit of {_limit(request)} bytes") from None
    except (ClientPayloadError, HttpProcessingError, web.RequestPayloadError, zlib.error) as error:
        raise BadRequest(f"the body cannot be read: {type(error).__name__}") from None
    if coding in ("gzip", "deflate") and not body and request.headers.get("Content-Length", "0") != "0":
        raise BadRequest(f"Content-Encoding: the body is not {coding}")
    return body


def header_length(request: web.Request) -> int | None:
    """The `Inference-Header-Content-Length`, in bytes after content-decoding, or None. Raises BadRequest."""
    value = request.headers.get(HEADER_LENGTH)
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 12):
        raise BadRequest(f"{HEADER_LENGTH}: must be a number of bytes")
    return int(value)


def traceparent(request: web.Request) -> str | None:
    """The W3C trace context of a request, None where there is none or it is malformed."""
    value = request.headers.get("traceparent")
    return value if value is not None and _TRACEPARENT.match(value) else None


def json_reply(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A document under exactly `application/json`: kserve's client compares the header for equality."""
    body = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return web.Response(body=body, status=status, headers={"Server": SERVER, "Content-Type": JSON, **(headers or {})})


def infer_reply(body: bytes, length: int | None, headers: dict[str, str] | None = None) -> web.Response:
    """A rendered `/infer` response; `length` is its JSON part's where tensors follow."""
    head = {"Server": SERVER, "Content-Type": JSON, **(headers or {})}
    if length is not None:
        head |= {"Content-Type": BINARY, HEADER_LENGTH: str(length)}
    return web.Response(body=body, headers=head)


def error_reply(error: ForeseenError) -> web.Response:
    headers = dict(error.headers)
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    return json_reply({"error": str(error), "code": error.code}, error.status, headers)


def as_foreseen(error: Exception, request: web.Request) -> ForeseenError:
    """Any error of a handler or of aiohttp as one of ours. What is not known is logged and becomes a bare 500."""
    match error:
        case ForeseenError():
            return error
        case web.HTTPMethodNotAllowed():
            allowed = {"Allow": ", ".join(sorted(error.allowed_methods))}
            return MethodNotAllowed(f"{request.method} is not allowed here", headers=allowed)
        case web.HTTPNotFound():
            return NotFound("there is no such route")
        case web.HTTPRequestEntityTooLarge():
            return TooLarge(f"the body is above the limit of {_limit(request)} bytes")
        case web.HTTPClientError():
            return BadRequest(error.reason)
        case _:
            log.error("internal error", route=route_of(request), error=type(error).__name__, exc_info=error)
            return ForeseenError("internal error")


def route_of(request: web.Request) -> str:
    """The route's template, from a closed set: paths are data."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unmatched"


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error is `{"error", "code"}`."""
    try:
        return await handler(request)
    except Exception as error:  # noqa: BLE001 - this is the edge: what gets here is answered, logged and counted
        return error_reply(as_foreseen(error, request))


def _limit(request: web.Request) -> int:
    return request._client_max_size  # noqa: SLF001 - aiohttp keeps the application's limit there and nowhere else
