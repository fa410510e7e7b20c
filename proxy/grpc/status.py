"""A ForeseenError → a gRPC status: code, message, and when to retry. Pure, without grpcio.

`grpc-status-details-bin` holds a `google.rpc.Status` with `RetryInfo`, which clients of many languages know, and
`grpc-retry-pushback-ms` is what gRPC's own retries wait for (gRFC A6).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from foreseen.protocol.grpc_messages import varint
from foreseen.proxy.predict.response_bytes import Reply

CODES: Mapping[int, str] = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    410: "NOT_FOUND",
    413: "RESOURCE_EXHAUSTED",
    415: "UNIMPLEMENTED",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    501: "UNIMPLEMENTED",
    502: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""By the HTTP status of an error; every other one is INTERNAL."""
NUMBERS: Mapping[str, int] = {"RESOURCE_EXHAUSTED": 8, "UNAVAILABLE": 14}
"""Of the codes that may come with a time to wait."""
TRAILERS: Mapping[str, str] = {
    name: name.lower()
    for name in (
        "Cache-Status", "Age", "Server-Timing", "Retry-After", "Error-Code", "Location", "Preference-Applied"
    )
}  # fmt: skip
"""The headers of a reply that have a meaning over gRPC, as trailing metadata."""
MAX_MESSAGE_CHARACTERS = 1000
"""Clients refuse more than 8 KiB of metadata by default, and a message is percent-encoded."""
_RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"

Metadata = tuple[tuple[str, str | bytes], ...]


class Status(NamedTuple):
    """How a call ends that has no answer."""

    code: str
    message: str
    trailers: Metadata


@lru_cache(1024)
def trailers_of(lines: str) -> Metadata:
    """The trailing metadata of a reply with these header lines. Those of a cached reply change once a second."""
    parted = [line.partition(": ") for line in lines.split("\r\n")]
    return tuple([(TRAILERS[name], value) for name, _, value in parted if name in TRAILERS])


def status_of(reply: Reply) -> Status:
    """The status of a reply whose own is not 200; its body is the message."""
    code = CODES.get(reply.status, "INTERNAL")
    message = reply.body.decode(errors="replace")[:MAX_MESSAGE_CHARACTERS]
    trailers = trailers_of(reply.lines)
    seconds = dict(trailers).get("retry-after", "")
    if code in NUMBERS and isinstance(seconds, str) and seconds.isdigit():
        details = _details(NUMBERS[code], message, int(seconds))
        pushback = ("grpc-retry-pushback-ms", str(1000 * int(seconds)))
        trailers = (*trailers, pushback, ("grpc-status-details-bin", details))
    return Status(code, message, trailers)


def _details(code: int, message: str, seconds: int) -> bytes:
    """A `google.rpc.Status`: code 1, message 2, details 3 (`google.protobuf.Any`) with `RetryInfo.retry_delay`."""
    retry = _field(1, b"\x08" + varint(seconds))
    packed = _field(1, _RETRY_INFO.encode()) + _field(2, retry)
    return b"\x08" + varint(code) + _field(2, message.encode()) + _field(3, packed)


def _field(number: int, content: bytes) -> bytes:
    return bytes((number << 3 | 2,)) + varint(len(content)) + content
