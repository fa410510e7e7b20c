"""aiohttp's connection, with our errors and within a listener's limits.

aiohttp bounds neither the number of connections, nor the time of a request's head, nor that of a client that does not
read its reply.
"""

from __future__ import annotations

import asyncio
import sys
from http import HTTPStatus
from typing import Any

import orjson
import structlog
from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler

from foreseen.errors import BadRequest, ForeseenError, HeadTimeout, HeadTooLarge, Overloaded
from foreseen.web.caller import Caller, caller_of, peer_of
from foreseen.web.http import JSON, SERVER, error_reply, internal
from foreseen.web.limits import Bucket, Gate
from foreseen.web.tls import subject_of

TAKEN_BYTES = 64 * 1024
"""A client that reads less of a long reply than this within `write_seconds` is disconnected."""
MOST_HEADS = 128
"""Most heads of one read that are parsed one by one."""
_END_OF_HEAD = b"\r\n\r\n"
_TOO_MANY = "Too many headers"
"""The message of aiohttp's parser, which has no class for this error."""

log = structlog.get_logger()


class Connection(RequestHandler):
    """aiohttp's protocol within limits; its last answer says `Connection: close`."""

    __slots__ = ("_gate", "_head_bytes", "_head_timer", "_most", "_write_timer", "bucket", "subject")

    def __init__(self, manager: Any, *, gate: Gate, **options: Any) -> None:
        limits = gate.limits
        super().__init__(
            manager,
            max_line_size=limits.header_bytes,
            max_field_size=limits.header_bytes,
            max_headers=limits.headers,
            **options,
        )
        self._gate = gate
        self._most = limits.requests or sys.maxsize
        self.bucket: Bucket | None = None
        self.subject: str | None = None
        """Of its verified client certificate."""
        """Of all requests of this connection; None where their rate is not limited, or each has its own caller."""
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        if not self._gate.enter(self, self._loop.time()):
            self._force_close = True  # what it may send is not read
            transport.write(raw_reply(Overloaded("there is no room for another connection")))
            transport.close()
            return
        if self._gate.limits.rate and not self._gate.limits.forwarded_hops:
            self.bucket = self._gate.bucket(peer_of(transport))
        self.subject = subject_of(transport)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._gate.leave(self)
        super().connection_lost(exc)
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Feed aiohttp's parser one head at a time: on a malformed request it drops the requests before it that came in
        the same read."""
        at = 0
        for _ in range(MOST_HEADS):
            end = data.find(_END_OF_HEAD, at) + len(_END_OF_HEAD)
            if end < len(_END_OF_HEAD) or end >= len(data):
                break
            super().data_received(data[at:end])
            at = end
        super().data_received(data[at:] if at else data)
        if self._messages and not isinstance(self._messages[-1][0], RawRequestMessage):
            self._blame_unfinished()
        if self._force_close:
            return
        waiter = self._waiter
        # The first bytes may come before the task that waits for them.
        if not self._request_count or (waiter is not None and not waiter.done()):
            if data:
                self._wait_for_head(len(data))
        elif self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer, self._head_bytes = None, 0

    def _blame_unfinished(self) -> None:
        """An error in a request's body ends that request, which would otherwise wait for the rest of its body."""
        mistake: Any = self._messages[-1][0]
        payloads = [payload for _, payload in self._messages]
        if self._current_request is not None:
            payloads.append(self._current_request.content)
        unfinished = [payload for payload in payloads if not payload.is_eof()]
        for payload in unfinished:
            payload.set_exception(mistake.exc)
        if unfinished:
            self._messages.pop()

    def bucket_of(self, caller: Caller) -> Bucket | None:
        """The bucket that a request of this connection is taken out of."""
        limits = self._gate.limits
        if self.bucket is not None or not (limits.rate and limits.forwarded_hops):
            return self.bucket
        return self._gate.bucket(caller.address)

    def admit(self, request: web.BaseRequest) -> None:
        """Take a request out of the caller's bucket. Raises RateLimited. Every request passes here, or where a
        connection answers by itself, its equal."""
        self._gate.admit(self.bucket_of(caller_of(request)))

    @property
    def forwarded_hops(self) -> int:
        """How many proxies in front are trusted to name the client."""
        return self._gate.limits.forwarded_hops

    @property
    def draining(self) -> bool:
        """Whether the process drains: replies carry `Connection: close`."""
        return bool(getattr(self._manager, "draining", False))  # aiohttp's own server has no such attribute

    @property
    def between_requests(self) -> bool:
        """Whether no request is under way."""
        return self._waiter is not None and not self._waiter.done() and not self._messages

    def may_go_on(self) -> bool:
        """Whether the connection's limit on requests allows one more."""
        return self._request_count < self._most

    def is_followed(self, request: web.BaseRequest) -> bool:
        """Whether bytes followed a request before its reply; true where unknown."""
        return True

    def rests_since(self) -> float | None:
        """Since when (event loop time) it only waits for a request or the rest of its head; None while it works."""
        return self._next_keepalive_close_time - self._keepalive_timeout if self.between_requests else None

    async def finish_response(self, request: Any, resp: Any, start_time: float | None) -> Any:
        """Mark the last reply with `Connection: close`, and bound the time in which the client reads it."""
        upgrade = "Upgrade" in request.headers or request.method == "CONNECT"
        if upgrade and self.is_followed(request):
            resp.force_close()  # the next bytes may belong to another protocol, or be lost between two parsers
        if not self.may_go_on() or (self.draining and not self._messages):  # what is pipelined is answered before
            resp.force_close()
        answered = await super().finish_response(request, resp, start_time)
        if not resp.keep_alive:
            self._watch_reader(self.transport)
        return answered

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader(self.transport)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None and self.transport is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def force_close(self) -> None:
        transport = self.transport
        super().force_close()
        self._watch_reader(transport)

    def _wait_for_head(self, more: int) -> None:
        limits = self._gate.limits
        self._head_bytes += more
        if self._head_bytes > limits.head_bytes:
            self._refuse("head-size", HeadTooLarge(f"the head is above the limit of {limits.head_bytes} bytes"))
        elif self._head_timer is None:
            self._head_timer = self._loop.call_later(limits.head_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.rests_since() is not None:
            late = HeadTimeout(f"the request's head did not arrive within {self._gate.limits.head_seconds:g} seconds")
            self._refuse("head", late)

    def _refuse(self, limit: str, error: ForeseenError) -> None:
        self._gate.count(limit)
        if self.transport is not None:
            self.transport.write(raw_reply(error))
        self.force_close()

    def _watch_reader(self, transport: Any) -> None:
        """Check later whether the client has read, if part of a reply is still buffered."""
        if transport is None or self._write_timer is not None:
            return
        left = transport.get_write_buffer_size()
        if left:
            seconds = self._gate.limits.write_seconds
            self._write_timer = self._loop.call_later(seconds, self._look_at_reader, transport, left)

    def _look_at_reader(self, transport: Any, before: int) -> None:
        self._write_timer = None
        left = transport.get_write_buffer_size()
        if left and before - left < TAKEN_BYTES:
            self._gate.count("write")
            transport.abort()
        else:
            self._watch_reader(transport)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Replace aiohttp's own error replies: their text and log repeat parts of the request."""
        if request.writer.output_size > 0:
            raise ConnectionError("part of a reply is sent; an error cannot follow")
        error: ForeseenError
        if status >= 500:
            error = internal(exc if isinstance(exc, Exception) else RuntimeError(), "unmatched", caller_of(request))
        elif isinstance(exc, LineTooLong) or _TOO_MANY in (message or ""):
            self._gate.count("head-size")
            error = HeadTooLarge("the request has too many header fields, or too long ones")
        else:
            error = BadRequest("the request is not valid HTTP")
        reply = error_reply(error)
        reply.force_close()
        return reply


def raw_reply(error: ForeseenError) -> bytes:
    """An error as bytes, for a connection on which no request was read; it closes afterwards."""
    body = orjson.dumps({"error": str(error), "code": error.code})
    retry = "" if error.retry_after is None else f"Retry-After: {error.retry_after}\r\n"
    head = (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\nServer: {SERVER}\r\nContent-Type: {JSON}\r\n"
        f"{retry}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
