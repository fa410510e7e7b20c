"""Known request heads: heads that aiohttp has accepted, recognised by equality, without a second parser.

A head is the bytes up to the body: request line and headers. It is learned once aiohttp has read it as exactly one
request, the request was answered, and no header decides about more than the reply (`may_be_learned`). Equal bytes then
have an equal meaning. Two things may differ:

- The digits of `Content-Length`. They stand at the same place between the same bytes, without sign or leading zero, so
  there is one way to read them.
- The values of tracing headers (`TRACES`), which meshes set per request and which decide about nothing here: printable
  characters in one line, of which only a well-formed `traceparent` is read.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from aiohttp import web
from msgspec import structs

from foreseen.proxy.predict.ask import RequestHead
from foreseen.tenants.keyring import Keyring
from foreseen.web.http import TRACEPARENT

END_OF_HEAD = b"\r\n\r\n"
MAX_HEAD_BYTES = 4096
MAX_HEADS = 1024
"""Learned heads, and recognised ones with their digits, of one proxy process: 8 MiB at most."""
MAX_DIGITS = 9
MORE_THAN_BYTES = frozenset(
    (
        "Cache-Control", "Content-Encoding", "Cookie", "Expect", "Foreseen-Webhook", "Origin", "Pragma",
        "Prefer", "Request-Timeout", "Transfer-Encoding", "Upgrade", "Via",
    )
)  # fmt: skip
"""Headers that decide about more than the reply's bytes, now or later. `Authorization` and the others that carry a key
are none of them: a credential is part of the bytes that are compared, so another one is another head. What a head asks
names the tenant; a head that was learned before the keys file changed is not used any more."""
TRACES = (
    "traceparent", "tracestate", "X-Request-Id", "X-Correlation-Id", "X-B3-TraceId", "X-B3-SpanId",
    "X-B3-ParentSpanId", "X-B3-Sampled", "b3", "X-Amzn-Trace-Id", "X-Cloud-Trace-Context", "X-Datadog-Trace-Id",
    "X-Datadog-Parent-Id",
)  # fmt: skip
"""Headers that name a request or its trace."""
_NAMES = b"|".join(re.escape(name.encode()) for name in TRACES[1:])
_TRACE = re.compile(rb"(\r\n(?i:(traceparent)|%b):)[ \t]*([!-~](?:[ -~]{0,1022}[!-~])?)?[ \t]*(?=\r\n)" % _NAMES)
_NAMED = re.compile(rb"\r\n(?i:traceparent|%b):" % _NAMES)
_LENGTHS = (b"\r\nContent-Length: ", b"\r\ncontent-length: ")


class KnownHead(NamedTuple):
    """What a known head asks, and how many bytes it and its whole request have."""

    ask: RequestHead
    head: int
    whole: int
    again: bool = True
    """Whether these very bytes may come again: not where they name a request or its trace."""


class KnownHeads:
    """The known heads of one proxy process, bounded; the oldest go."""

    def __init__(self, body_bytes: int, keyring: Keyring | None = None) -> None:
        """`body_bytes` is the limit on a body: a head of a longer one is not recognised, so that aiohttp refuses it."""
        self._body_bytes = body_bytes
        self._keyring = keyring or Keyring()
        self._asks: dict[bytes, RequestHead] = {}
        self._recognised: dict[bytes, KnownHead] = {}

    def __len__(self) -> int:
        return len(self._asks)

    def learn(self, head: bytes, ask: RequestHead, place: bytes = b"") -> None:
        """Remember what a head asks. `head` ends with its empty line; `place` keeps client certificates apart."""
        plain, _ = _untraced(head)
        cut = _cut(plain)
        if ask.tenant.generation != self._keyring.generation or cut is None:  # the keys file has changed meanwhile
            return
        if len(head) > MAX_HEAD_BYTES or head.lower().count(b"\r\ncontent-length") != 1:
            return
        if len(_NAMED.findall(head)) != len(_TRACE.findall(head)):  # one that is not plain comes once, and is aiohttp's
            return
        ask = structs.replace(ask, traceparent=None, caller=None)
        kept = place + cut[0]
        if self._asks.get(kept) != ask:  # a setting that changed
            self._recognised.clear()
            self._asks[kept] = ask
        if len(self._asks) > MAX_HEADS:
            del self._asks[next(iter(self._asks))]

    def of(self, data: bytes, place: bytes = b"") -> KnownHead | None:
        """What the request asks that these bytes begin with, where its head is known. The body may still be missing."""
        end = data.find(END_OF_HEAD, 0, MAX_HEAD_BYTES)
        if end < 0:
            return None
        head = data[: end + 4]
        known = self._recognised.get(place + head if place else head) or self._recognise(head, place)
        if known is None or known.ask.tenant.generation != self._keyring.generation:
            return None  # aiohttp gets it, and whoever has the credential now is asked
        return known

    def _recognise(self, head: bytes, place: bytes) -> KnownHead | None:
        plain, traceparent = _untraced(head)
        cut = _cut(plain)
        ask = None if cut is None else self._asks.get(place + cut[0])
        if cut is None or ask is None or cut[1] > self._body_bytes:
            return None
        if plain is not head:
            if traceparent is not None:
                ask = structs.replace(ask, traceparent=traceparent)
            return KnownHead(ask, len(head), len(head) + cut[1], again=False)
        if len(self._recognised) >= MAX_HEADS:
            self._recognised.clear()
        made = self._recognised[place + head] = KnownHead(ask, len(head), len(head) + cut[1])
        return made


def may_be_learned(request: web.Request) -> bool:
    """Whether a request is no more than its bytes: nothing in its headers decides about later ones."""
    headers = request.headers
    if request.version != (1, 1) or any(name in headers for name in MORE_THAN_BYTES):
        return False
    if not request.keep_alive:  # however it is spelled
        return False
    return headers.get("Connection", "keep-alive").lower() == "keep-alive"  # what HTTP/1.1 does anyhow


def _untraced(head: bytes) -> tuple[bytes, str | None]:
    """A head without the values that name its request, itself where there are none; and its W3C trace context."""
    found = _TRACE.search(head)
    if found is None:
        return head, None
    while found is not None and found[2] is None:
        found = _TRACE.search(head, found.end())
    trace = None if found is None or found[3] is None else found[3].decode()
    return _TRACE.sub(rb"\1", head), trace if trace is not None and TRACEPARENT.match(trace) else None


def _cut(head: bytes) -> tuple[bytes, int] | None:
    """A head without the digits of its `Content-Length`, and their number."""
    for name in _LENGTHS:
        at = head.find(name)
        if at >= 0:
            start = at + len(name)
            end = head.find(b"\r", start)
            digits = head[start:end]
            if not (digits.isdigit() and len(digits) <= MAX_DIGITS) or (digits[0] == 0x30 and len(digits) > 1):
                return None
            return head[:start] + head[end:], int(digits)
    return None
