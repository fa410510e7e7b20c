"""What both servers do with HTTP: read a body within limits, answer JSON, turn every error into `{"error", "code"}`.

aiohttp's own error bodies are `text/plain`, its `json_response` says `charset=utf-8`, a slow body is never closed, and
a gzip body that was cut off passes; each breaks a real client or a server (protocol notes: `docs/clients.md`).
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
    ExpectationFailed,
    ForeseenError,
    MethodNotAllowed,
    NotFound,
    TooLarge,
    Unsupported,
    UnsupportedCoding,
)
from foreseen.web.caller import Caller, caller_of

HEADER_LENGTH = "Inference-Header-Content-Length"
JSON = "application/json"
BINARY = "application/octet-stream"
SERVER = "foreseen"
"""aiohttp would tell its own and Python's version."""
_CODINGS = frozenset(("", "identity", "gzip", "deflate"))
_OFF_LOOP_BYTES = 1024
"""A larger compressed body is inflated in a thread: it may grow a thousandfold."""
_GZIP_MEMBERS = 64
"""A gzip body is a series of members (RFC 1952); empty ones cost 20 bytes to send and microseconds to open."""
TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
log = structlog.get_logger()


async def read_body(request: web.Request, seconds: float) -> bytes:
    """The whole body, decoded. The limit on its size, also its decoded one, is the application's `client_max_size`.

    Raises UnsupportedCoding, TooLarge, BodyTimeout (aiohttp closes slow headers but never slow bodies), BadRequest.
    """
    coding = ", ".join(request.headers.getall("Content-Encoding", ())).strip().lower()
    if coding not in _CODINGS:
        raise UnsupportedCoding(
            f"Content-Encoding: {coding[:32]!r} is not supported; send gzip, deflate or none",
            headers={"Accept-Encoding": "gzip, deflate"},
        )
    limit = _limit(request)
    if (request.content_length or 0) > limit:  # refused before it is read
        raise _too_large(limit)
    if request.headers.get("Transfer-Encoding", "chunked").strip().lower() != "chunked":
        raise Unsupported("Transfer-Encoding: only chunked is understood (RFC 9112 section 6.1)")
    try:
        async with asyncio.timeout(seconds):
            body = await request.read()
    except TimeoutError:
        # aiohttp closes what is not read to its end, after the reply; `force_close` would close it before.
        told = f"the body did not arrive within {seconds:g} seconds"
        raise BodyTimeout(told, headers={"Connection": "close"}) from None
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(limit) from None
    except (ClientPayloadError, HttpProcessingError, web.RequestPayloadError) as error:
        raise BadRequest(f"the body cannot be read: {type(error).__name__}") from None
    except ConnectionError:  # the caller hung up; nobody reads this, but it is counted as the caller's
        raise BadRequest("the body ended early") from None
    if coding in ("", "identity"):
        return body
    if len(body) <= _OFF_LOOP_BYTES:
        return inflated(body, coding, limit)
    return await asyncio.to_thread(inflated, body, coding, limit)


def inflated(body: bytes, coding: str, limit: int) -> bytes:
    """A gzip or deflate body (zlib's container, or bare as some send it), decoded to at most `limit` bytes.

    Raises BadRequest where it is not whole, TooLarge.
    """
    wbits = 31 if coding == "gzip" else 15 if body[:1] and body[0] & 15 == zlib.DEFLATED else -15
    parts: list[bytes] = []
    size = at = members = 0
    while at < len(body) or not members:
        members += 1
        if members > (_GZIP_MEMBERS if coding == "gzip" else 1):
            raise BadRequest(f"Content-Encoding: more follows behind the end of the {coding} body")
        inflater = zlib.decompressobj(wbits)
        while not inflater.eof:
            part = body[at : at + 65536]
            try:
                parts.append(inflater.decompress(part, limit + 1 - size))
            except zlib.error:
                raise BadRequest(f"Content-Encoding: the body is not {coding}") from None
            size += len(parts[-1])
            if size > limit:
                raise _too_large(limit)
            if not part and not inflater.eof:
                raise BadRequest(f"Content-Encoding: the {coding} body is cut off")
            at += len(part) - len(inflater.unused_data)
    return b"".join(parts)


def header_length(request: web.Request) -> int | None:
    """The `Inference-Header-Content-Length`, in bytes after content-decoding, or None. Raises BadRequest."""
    values = request.headers.getall(HEADER_LENGTH, ())
    if not values:
        return None
    if len(values) > 1:  # two readers could take different ones
        raise BadRequest(f"{HEADER_LENGTH}: is given {len(values)} times")
    value = values[0]
    if not (value.isascii() and value.isdigit() and len(value) <= 12):
        raise BadRequest(f"{HEADER_LENGTH}: must be a number of bytes")
    return int(value)


def traceparent(request: web.Request) -> str | None:
    """The W3C trace context of a request, None where there is none or it is malformed."""
    value = request.headers.get("traceparent")
    return value if value is not None and TRACEPARENT.match(value) else None


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
    headers, body = error_body(error)
    return web.Response(body=body, status=error.status, headers=headers)


def error_body(error: ForeseenError) -> tuple[dict[str, str], bytes]:
    """Headers and body of an error's reply."""
    headers = {"Server": SERVER, "Content-Type": JSON, **error.headers}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    return headers, orjson.dumps({"error": str(error), "code": error.code})


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
            return _too_large(_limit(request))
        case web.HTTPClientError():
            return BadRequest(error.reason)
        case _:
            return internal(error, route_of(request), caller_of(request))


def internal(error: Exception, route: str, caller: Caller | None = None) -> ForeseenError:
    """What is no error of ours: logged, and a bare 500."""
    who = {} if caller is None else caller.fields()
    log.error("internal error", route=route, error=type(error).__name__, exc_info=error, **who)
    return ForeseenError("internal error")


def route_of(request: web.Request) -> str:
    """The route's template, from a closed set: paths are data."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unmatched"


async def expect(request: web.Request) -> web.StreamResponse | None:
    """`Expect: 100-continue` gets its 100; anything else is an error of ours (RFC 9110 section 10.1.1)."""
    if request.headers.get("Expect", "").lower() != "100-continue":
        return error_reply(ExpectationFailed("Expect: only 100-continue is understood"))
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # what was written is not part of the reply
    return None


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error is `{"error", "code"}`."""
    try:
        return await handler(request)
    except Exception as error:  # noqa: BLE001 - this is the edge: what gets here is answered, logged and counted
        return error_reply(as_foreseen(error, request))


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is above the limit of {limit} bytes")


def _limit(request: web.Request) -> int:
    return request._client_max_size  # noqa: SLF001 - aiohttp keeps the application's limit there and nowhere else
