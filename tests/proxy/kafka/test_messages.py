"""Records ↔ requests and replies."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from foreseen.errors import BadRequest
from foreseen.proxy.kafka.messages import Incoming, Reader, RowInput, dead_letter_of, reply_of, reply_topic
from foreseen.proxy.predict.response_bytes import Reply
from foreseen.tenants.tenant import PUBLIC_TENANT

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def record(value: bytes | None = b"{}", *headers: tuple[str, bytes], key: bytes | None = b"k") -> Incoming:
    return Incoming("asked", 3, 41, key, value, headers)


def reader(kind: Any = "v2", **inputs: tuple[str, int]) -> Reader:
    return Reader("m", kind, PUBLIC_TENANT, 30.0, RowInput(inputs) if inputs else None)


def test_a_value_is_the_body_of_its_dialect() -> None:
    """The model of V2 is the process's; bodies of other dialects name theirs. All are in the background lane."""
    head, body = reader().read(record(b'{"inputs": []}', ("traceparent", TRACE.encode())))
    assert (head.model, head.protocol, head.header_length, head.lane, body) == (
        "m", "v2", None, "background", b'{"inputs": []}',
    )  # fmt: skip
    assert head.traceparent == TRACE
    head, _ = reader().read(record(b"{}12", ("Inference-Header-Content-Length", b"2")))
    assert (head.protocol, head.header_length) == ("v2", 2)
    head, _ = reader().read(record(b"..", ("content-type", b"application/grpc+proto")))
    assert head.protocol == "grpc"
    head, _ = reader("openai").read(record(b"{}"))
    assert (head.protocol, head.model) == ("openai", "")


@pytest.mark.parametrize(
    ("value", "headers", "field"),
    [
        (None, (), "value"),
        (b"{}", (("inference-header-content-length", b"3"),), "Inference-Header-Content-Length"),
        (b"{}", (("inference-header-content-length", b"-1"),), "Inference-Header-Content-Length"),
    ],
)
def test_what_cannot_be_read_names_its_field(value: bytes | None, headers: Any, field: str) -> None:
    with pytest.raises(BadRequest, match=f"^{field}: "):
        reader().read(record(value, *headers))


@pytest.mark.parametrize(
    ("value", "inputs", "wanted"),
    [
        (b"a text", {"text": ("BYTES", 0)}, [("text", "BYTES", [1], ["a text"])]),
        (b'{"text": "a"}', {"text": ("BYTES", 0)}, [("text", "BYTES", [1], ["a"])]),
        (b"[1, 2]", {"x": ("INT64", 1)}, [("x", "INT64", [1, 2], [[1, 2]])]),
        (b'{"a": 1, "b": [[2]]}', {"a": ("FP32", 0), "b": ("FP32", 2)},
         [("a", "FP32", [1], [1]), ("b", "FP32", [1, 1, 1], [[[2]]])]),
    ],
)  # fmt: skip
def test_a_row_is_wrapped(value: bytes, inputs: dict[str, tuple[str, int]], wanted: list[Any]) -> None:
    _, body = reader("row", **inputs).read(record(value))
    tensors = orjson.loads(body)["inputs"]
    assert [(t["name"], t["datatype"], t["shape"], t["data"]) for t in tensors] == wanted


@pytest.mark.parametrize("value", [b"{", b"[1]", b'{"c": 1}', b"\xff"])
def test_a_row_that_does_not_fit_names_the_value(value: bytes) -> None:
    with pytest.raises(BadRequest, match=r"^value"):
        reader("row", a=("FP32", 0), b=("FP32", 0)).read(record(value))


def test_a_reply_repeats_what_correlates() -> None:
    """Key, correlation ids, CloudEvents' attributes and the trace; other headers of the request are not repeated."""
    asked = record(
        b"{}", ("kafka_correlationId", b"7"), ("correlation-id", b"8"), ("ce_id", b"9"), ("secret", b"x"),
        ("traceparent", TRACE.encode()),
    )  # fmt: skip
    lines = "Content-Type: application/json\r\nCache-Status: foreseen;hit\r\nServer: foreseen\r\n"
    out = reply_of(asked, Reply(200, lines, b"{..}"), "replies", "abc")
    assert (out.topic, out.key, out.value) == ("replies", b"k", b"{..}")
    assert dict(out.headers) == {
        "kafka_correlationId": b"7", "correlation-id": b"8", "ce_id": b"9", "traceparent": TRACE.encode(),
        "content-type": b"application/json", "foreseen-cache-status": b"foreseen;hit", "foreseen-model-digest": b"abc",
    }  # fmt: skip


def test_a_reply_topic_must_be_allowed() -> None:
    asked = record(b"{}", ("kafka_replyTopic", b"theirs"))
    assert reply_topic(asked, "ours", frozenset(("ours", "theirs"))) == "theirs"
    assert reply_topic(asked, "ours", frozenset(("ours",))) == "ours"


def test_a_dead_letter_is_the_message_with_its_reason() -> None:
    out = dead_letter_of(record(b"bad", ("a", b"b")), "dead", 422, "input_rejected", "inputs.x: too long")
    assert (out.topic, out.key, out.value) == ("dead", b"k", b"bad")
    assert dict(out.headers) == {
        "a": b"b", "foreseen-error-status": b"422", "foreseen-error-code": b"input_rejected",
        "foreseen-error": b"inputs.x: too long", "foreseen-source": b"asked/3/41",
    }  # fmt: skip
