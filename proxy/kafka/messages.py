"""Kafka messages ↔ requests and replies of the normal path: a record → head and body; a reply → value and headers.

Headers have the names of Spring Kafka's request-reply (`kafka_replyTopic`, `kafka_correlationId`) and of CloudEvents'
binary mode (`ce_*`, `content-type`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import orjson
from msgspec import Struct, structs

from foreseen.errors import BadRequest
from foreseen.proxy.predict.ask import Protocol, RequestHead
from foreseen.proxy.predict.response_bytes import Reply
from foreseen.tenants.tenant import Tenant
from foreseen.web.http import TRACEPARENT

Headers = Sequence[tuple[str, bytes]]

HEADER_LENGTH = "inference-header-content-length"
REPLY_TOPIC = "kafka_replyTopic"
COPIED = frozenset(("correlation-id", "correlationid", "kafka_correlationid", "traceparent", "tracestate"))
"""Headers that a reply repeats, in lower case; also those that begin with `ce_`."""
CACHE_STATUS, DIGEST = "foreseen-cache-status", "foreseen-model-digest"
GIVEN = {
    "content-type": "content-type",
    HEADER_LENGTH: HEADER_LENGTH,
    "cache-status": CACHE_STATUS,
}
"""Headers of an answer that a reply has, in lower case, and their names there."""
ERROR_CODE, ERROR_STATUS = "foreseen-error-code", "foreseen-error-status"
DIALECTS: Mapping[str, Protocol] = {
    "v2": "v2", "v1": "v1", "openai": "openai", "rerank": "rerank-v2", "score": "score", "grpc": "grpc",
}  # fmt: skip
"""`--as` → the protocol of the values."""
As = Literal["v2", "v1", "openai", "rerank", "score", "grpc", "row"]


class Incoming(NamedTuple):
    """One record, whatever client library has read it."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Outgoing(NamedTuple):
    """One record to send."""

    topic: str
    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes]]


class RowInput(Struct, frozen=True):
    """How the value of `--as row` becomes a V2 request: the model's client inputs by name → datatype, and their rank
    without the row's axis."""

    inputs: Mapping[str, tuple[str, int]]


class Reader:
    """Records → requests. `model` answers those that name none."""

    def __init__(self, model: str, kind: As, tenant: Tenant, seconds: float, row: RowInput | None) -> None:
        self._kind, self._row = kind, row
        protocol = DIALECTS.get(kind, "v2")
        named_by_body = protocol not in ("v2", "v1", "grpc")
        named = "" if named_by_body else model
        self._plain = RequestHead(named, None, protocol, tenant, None, seconds, lane="background")

    def read(self, record: Incoming) -> tuple[RequestHead, bytes]:
        """What a record asks. Raises BadRequest naming the value or the header."""
        if record.value is None:
            raise BadRequest("value: is null; a tombstone is not a request")
        body = record.value if self._row is None else self._wrapped(record.value)
        return (self._headed(record.headers, len(body)) if record.headers else self._plain), body

    def _headed(self, headers: Headers, size: int) -> RequestHead:
        """The head of a record with headers."""
        found = {name.lower(): value for name, value in reversed(headers)}
        trace = found.get("traceparent", b"").decode("latin-1")
        protocol, length = self._plain.protocol, None
        if self._kind == "v2":
            if found.get("content-type", b"").startswith((b"application/grpc", b"application/protobuf")):
                protocol = "grpc"
            elif HEADER_LENGTH in found:
                length = _length(found[HEADER_LENGTH], size)
        traceparent = trace if TRACEPARENT.match(trace) else None
        return structs.replace(self._plain, protocol=protocol, header_length=length, traceparent=traceparent)

    def _wrapped(self, value: bytes) -> bytes:
        """The one row of a value as a V2 request: a JSON object of inputs, or the one input itself as JSON or text."""
        assert self._row is not None
        inputs = self._row.inputs
        only = next(iter(inputs)) if len(inputs) == 1 else None
        if only is not None and inputs[only] == ("BYTES", 0) and not value.lstrip().startswith(b"{"):
            members: dict[str, object] = {only: _text(value)}
        else:
            members = _object(value, only)
        tensors = []
        for name, data in members.items():
            if name not in inputs:
                raise BadRequest(f"value.{name}: the model has no such input; it has {', '.join(inputs)}")
            datatype, _ = inputs[name]
            tensors.append({"name": name, "datatype": datatype, "shape": [1, *_shape(data)], "data": [data]})
        return orjson.dumps({"inputs": tensors})


def reply_of(record: Incoming, reply: Reply, topic: str, digest: str | None) -> Outgoing:
    """The answer to a record, or the error that it has come to."""
    headers = _copied(record.headers)
    for line in reply.lines.split("\r\n"):
        at = line.find(":")
        name = GIVEN.get(line[:at].lower())
        if name is not None:
            headers.append((name, line[at + 2 :].encode("latin-1")))
    if digest is not None:
        headers.append((DIGEST, digest.encode()))
    return Outgoing(topic, record.key, reply.body, headers)


def dead_letter_of(record: Incoming, topic: str, status: int, code: str, message: str) -> Outgoing:
    """A record that cannot be answered, as it came, with the reason in its headers."""
    headers = [*record.headers, (ERROR_STATUS, b"%d" % status), (ERROR_CODE, code.encode())]
    headers += [
        ("foreseen-error", message[:1024].encode()),
        ("foreseen-source", f"{record.topic}/{record.partition}/{record.offset}".encode()),
    ]
    return Outgoing(topic, record.key, record.value or b"", headers)


def reply_topic(record: Incoming, default: str, allowed: frozenset[str]) -> str:
    """Where the reply goes: to the topic that the record names, where that is allowed."""
    for name, value in record.headers:
        if name.lower() == REPLY_TOPIC.lower():
            asked = value.decode("utf-8", "replace")
            return asked if asked in allowed else default
    return default


def _copied(headers: Headers) -> list[tuple[str, bytes]]:
    return [(name, value) for name, value in headers if name.lower() in COPIED or name.lower().startswith("ce_")]


def _length(text: bytes, size: int) -> int:
    if not text.isdigit() or int(text) > size:
        raise BadRequest("Inference-Header-Content-Length: must be a number up to the length of the value")
    return int(text)


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest("value: is not UTF-8") from None


def _object(value: bytes, only: str | None) -> dict[str, object]:
    try:
        found = orjson.loads(value)
    except orjson.JSONDecodeError:
        raise BadRequest("value: is not JSON") from None
    if isinstance(found, dict):
        return found
    if only is None:
        raise BadRequest("value: must be an object of inputs")
    return {only: found}


def _shape(data: object) -> list[int]:
    """The shape of nested lists, by their first elements; the normal path finds what does not fit."""
    shape = []
    while isinstance(data, list):
        shape.append(len(data))
        data = data[0] if data else None
    return shape
