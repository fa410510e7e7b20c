"""HTTP of both servers: read a body within limits, reply JSON, turn every error into `{"error", "code"}`.

aiohttp's own error bodies are `text/plain`, its `json_response` adds `charset=utf-8`, it never times out a slow body,
and it accepts a truncated gzip body; each breaks a real client or a server (protocol notes: `docs/clients.md`).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import Awaitable, Callable
from io import BytesIO
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
    Unsupported,
    UnsupportedCoding,
)
from foreseen.logs import Sparing
from foreseen.web.bodies import BODIES, FREE_BYTES, MEDIUM_BYTES, Bodies, Charge, Inflater, too_large
from foreseen.web.caller import Caller, caller_of

HEADER_LENGTH = "Inference-Header-Content-Length"
JSON = "application/json"
BINARY = "application/octet-stream"
SERVER = "foreseen"
"""aiohttp would send its own and Python's version."""
_CODINGS = frozenset(("", "identity", "gzip", "deflate"))
_OFF_LOOP_BYTES = 1024
"""A larger compressed body is inflated in a thread: it may grow a thousandfold."""
TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")

_CHARGE = web.RequestKey("foreseen.charge", Charge)
_sparing = Sparing()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
log = structlog.get_logger()


async def read_body(request: web.Request, seconds: float, limit: int | None = None) -> bytes:
    """The whole body, decoded. The limit on its size, also its decoded one, is by default the application's
    `client_max_size`.

    Raises UnsupportedCoding, TooLarge, BodyTimeout (aiohttp closes slow headers but never slow bodies), BadRequest.
    """
    coding = ", ".join(request.headers.getall("Content-Encoding", ())).strip().lower()
    coding = "gzip" if coding == "x-gzip" else coding  # the same, by RFC 9110 section 8.4.1.3
    if coding not in _CODINGS:
        raise UnsupportedCoding(
            f"Content-Encoding: {coding[:32]!r} is not supported; send gzip, deflate or none",
            headers={"Accept-Encoding": "gzip, deflate"},
        )
    limit = limit or _limit(request)
    if (request.content_length or 0) > limit:  # refused before it is read
        raise too_large(limit)
    if request.headers.get("Transfer-Encoding", "chunked").strip().lower() != "chunked":
        raise Unsupported("Transfer-Encoding: only chunked is understood (RFC 9112 section 6.1)")
    bodies = request.app.get(BODIES)
    charge = None if bodies is None else request.setdefault(_CHARGE, Charge(bodies))
    try:
        async with asyncio.timeout(seconds):
            body = await _read(request, limit, charge)
    except TimeoutError:
        # aiohttp closes what is not read to its end, after the reply; `force_close` would close it before.
        text = f"the body did not arrive within {seconds:g} seconds"
        raise BodyTimeout(text, headers={"Connection": "close"}) from None
    except HttpProcessingError:
        raise BadRequest("the request is not valid HTTP", headers={"Connection": "close"}) from None
    except (ClientPayloadError, web.RequestPayloadError) as error:
        raise BadRequest(f"the body cannot be read: {type(error).__name__}") from None
    except ConnectionError:  # the client hung up: the reply is not read, but the error is counted as the client's
        raise BadRequest("the body ended early") from None
    if coding in ("", "identity"):
        return body
    return await _inflated(Inflater(body, coding, limit, charge), len(body), bodies)


async def _read(request: web.Request, limit: int, charge: Charge | None) -> bytes:
    """The whole body in one buffer: aiohttp's own reading holds a large one twice."""
    stream, size, into = request.content, 0, None
    first = b""
    while chunk := await stream.readany():
        size += len(chunk)
        if size > limit:
            raise too_large(limit)
        if charge is not None:
            charge.grow(len(chunk))
        if into is not None:
            into.write(chunk)
        elif not first:
            first = chunk
        else:
            into = BytesIO()
            into.write(first)
            into.write(chunk)
    return first if into is None else into.getvalue()


async def _inflated(inflater: Inflater, size: int, bodies: Bodies | None) -> bytes:
    """A decoded body: a small one inline, a medium one in a thread, large ones in a thread one by one."""
    if size <= _OFF_LOOP_BYTES and inflater.run(FREE_BYTES):
        return inflater.value()
    if not await asyncio.to_thread(inflater.run, MEDIUM_BYTES):
        async with contextlib.nullcontext() if bodies is None else bodies.alone:
            await asyncio.to_thread(inflater.run, sys.maxsize)
    return inflater.value()


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
    """Any exception of a handler or of aiohttp as a ForeseenError. An unknown one is logged and becomes a bare 500."""
    match error:
        case ForeseenError():
            return error
        case web.HTTPMethodNotAllowed():
            allowed = {"Allow": ", ".join(sorted(error.allowed_methods))}
            return MethodNotAllowed(f"{request.method} is not allowed here", headers=allowed)
        case web.HTTPNotFound():
            return NotFound("there is no such route")
        case web.HTTPRequestEntityTooLarge():
            return too_large(_limit(request))
        case web.HTTPClientError():
            return BadRequest(error.reason)
        case _:
            return internal(error, route_of(request), caller_of(request))


def internal(error: Exception, route: str, caller: Caller | None = None) -> ForeseenError:
    """An exception that is no ForeseenError: logged, and a 500 without details. The log is rate-limited, since a client
    that can cause one can do so a thousand times a second."""
    kind = type(error).__name__
    skipped = _sparing.skipped(f"{kind} {route}")
    if skipped is not None:
        who = {} if caller is None else caller.fields()
        log.error("internal error", route=route, error=kind, exc_info=error, **who, **skipped)
    return ForeseenError("internal error")


def route_of(request: web.Request) -> str:
    """The route's template, from a closed set: paths are data."""
    return route_name(request.match_info.route)


def route_name(route: web.AbstractRoute) -> str:
    """A route's template."""
    return route.resource.canonical if route.resource is not None else "unmatched"


async def expect(request: web.Request) -> None:
    """`Expect: 100-continue` gets its 100, but for HTTP/1.0, which does not know it (RFC 9110 section 10.1.1)."""
    if request.version < (1, 1):
        return
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # what was written is not part of the reply


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error is `{"error", "code"}`."""
    try:
        return await handler(request)
    except Exception as error:  # noqa: BLE001 - this is the edge: what gets here is answered, logged and counted
        return error_reply(as_foreseen(error, request))
    finally:
        charge = request.get(_CHARGE)
        if charge is not None:
            charge.release()


def _limit(request: web.Request) -> int:
    return request._client_max_size  # noqa: SLF001 - aiohttp keeps the application's limit there and nowhere else
