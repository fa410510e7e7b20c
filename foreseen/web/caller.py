"""The caller of a request for logs and counts: address, request id and path; parsed only when a line is written.

The address is the connection's. Behind trusted proxies (`--forwarded-hops`) it is the one that the outermost of them
wrote into `X-Forwarded-For`; a client can forge everything to the left of that.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Container, Sequence

from aiohttp import web
from msgspec import Struct

from foreseen.web.limits import UNIX

MAX_ID_CHARACTERS, MAX_PARTS = 128, 12
_WORDS = frozenset(
    (
        "", "v1", "v2", "batch", "batches", "cancel", "classify", "config", "content", "embed", "embed_all",
        "embed_sparse", "embeddings", "explain", "files", "health", "import", "index", "infer", "info", "live",
        "metrics", "models", "openai", "predict", "predictions", "ranking", "ready",
        "inference.GRPCInferenceService", "ModelInfer", "ModelStreamInfer",
        "repository", "rerank", "result", "score", "similarity", "stats", "versions",
    )
)  # fmt: skip
"""What routes are made of."""
_NUMBER = re.compile(r"[0-9]{1,9}")
_FORWARDED = re.compile(rb"(?i)\r\nx-forwarded-for:([^\r\n]*)")
_ID = re.compile(rb"(?i)\r\n(?:x-request-id|x-correlation-id):[ \t]*([^\r\n]*)")
_TARGET = re.compile(rb"[A-Z]+ ([^ ?\r\n]*)")
_NOT_PLAIN = re.compile(r"[^!-~]")


class Caller(Struct, frozen=True):
    """The caller of one request. What only log lines need is parsed when a line is written."""

    address: str
    head: bytes

    def fields(self, models: Container[str] = ()) -> dict[str, object]:
        """The fields of a log line: client, path, and the request id where there is one. Segments of the path that are
        neither a route's word nor one of these models are the client's text, and left out."""
        target, named = _TARGET.match(self.head), _ID.search(self.head)
        path = "" if target is None else known_path(target[1].decode("latin-1"), models)
        fields: dict[str, object] = {"client": self.address, "path": path}
        if named is not None and named[1].strip():
            fields["request_id"] = plain(named[1].decode("latin-1").strip(), MAX_ID_CHARACTERS)
        return fields


CALLER = web.RequestKey("caller", Caller)
"""Where a request of aiohttp keeps its caller."""


def caller_of(request: web.BaseRequest) -> Caller:
    """The caller of an aiohttp request, parsed once."""
    known = request.get(CALLER)
    if isinstance(known, Caller):
        return known
    hops = getattr(request.protocol, "forwarded_hops", 0)
    wanted = (b"x-forwarded-for", b"x-request-id", b"x-correlation-id")
    lines = [b"\r\n%b:%b" % (name, value) for name, value in request.raw_headers if name.lower() in wanted]
    head = b"%b %b%b" % (request.method.encode(), request.path_qs.encode("latin-1", "replace"), b"".join(lines))
    made = request[CALLER] = Caller(address_in(head, peer_of(request.transport), hops), head)
    return made


def address_in(head: bytes, peer: str, hops: int) -> str:
    """The client's address by a request's head, or by bytes that begin with one: what a body says does not count."""
    forwarded = []
    if hops:
        end = head.find(b"\r\n\r\n")
        forwarded = [line.decode("latin-1") for line in _FORWARDED.findall(head if end < 0 else head[:end])]
    return address_of(peer, forwarded, hops)


def peer_of(transport: object) -> str:
    """The address at the other end of a connection; `unix` where it has none."""
    peer = getattr(transport, "get_extra_info", lambda _: None)("peername")
    return str(peer[0]) if isinstance(peer, tuple) else UNIX


def address_of(peer: str, forwarded: Sequence[str], hops: int) -> str:
    """The client's address behind `hops` trusted proxies, each of which appends its peer to X-Forwarded-For; the
    connection's own where that entry is no address."""
    chain = [part.strip() for line in forwarded for part in line.split(",") if part.strip()]
    if not hops or not chain:
        return peer
    return _plain_address(chain[-min(hops, len(chain))]) or peer


def _plain_address(text: str) -> str | None:
    """An address of X-Forwarded-For without its port and brackets."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def known_path(path: str, models: Container[str]) -> str:
    """A path with `{…}` for every part that is neither a route's word, nor a number, nor the name of a model."""
    shown = []
    for part in path.split("/")[:MAX_PARTS]:
        name, colon, verb = part.partition(":")
        named = name if name in _WORDS or name in models or _NUMBER.fullmatch(name) else "{…}"
        shown.append(f"{named}{colon}{verb if not colon or verb in _WORDS else '{…}'}")
    return "/".join(shown)


def plain(text: str, most: int) -> str:
    """A client's text, safe for a log: visible ASCII, bounded."""
    return _NOT_PLAIN.sub("?", text[:most])
