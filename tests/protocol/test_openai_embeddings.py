"""OpenAI's embeddings API: what bodies ask, how replies look, which replies of others are believed. Pure."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreseen.errors import BadRequest, ForeseenError, ModelFailed, NotCached, Overloaded, TooLarge
from foreseen.protocol.openai_embeddings import (
    MAX_TEXT_BYTES,
    error_document,
    error_headers,
    read_reply,
    read_request,
    render_reply,
    shortened,
    split_tokens,
)

VECTORS = np.array([[0.1, -2.5, 3e-8], [1.0, 0.0, -0.0]], np.float32)


def ask(**fields: Any) -> bytes:
    return orjson.dumps({"model": "m", "input": "a", **fields})


def test_a_string_a_list_ids_and_lists_of_ids_are_rows() -> None:
    """The four forms of `input`."""
    assert read_request(ask(input="a")).texts == ("a",)
    assert read_request(ask(input=["a", "", "é"])).texts == ("a", "", "é")
    assert read_request(ask(input=[1, 2])).ids == ((1, 2),)
    assert read_request(ask(input=[[1], [2, 3]])).ids == ((1,), (2, 3))


def test_what_is_rendered_is_apart_from_what_may_change_the_answer() -> None:
    """`user` says nothing, prompts have a name, every other field is a parameter."""
    asked = read_request(
        ask(encoding_format="base64", dimensions=2, user="u", input_type="query", truncate="END", modality=None)
    )
    assert (asked.encoding, asked.dimensions, asked.prompts) == ("base64", 2, {"input_type": "query"})
    assert asked.parameters == {"truncate": "END", "modality": None}
    assert read_request(ask(encoding_format=None, dimensions=None, user=None, prompt_name=None)).prompts == {}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": 3}, "input"),
        ({"input": {}}, "input"),
        ({"input": True}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", None]}, "input[1]"),
        ({"input": ["a", ["b"]]}, "input[1]"),
        ({"input": [None]}, "input[0]"),
        ({"input": ["a"] * 10_000}, "input"),
        ({"input": [1, "a"]}, "input[1]"),
        ({"input": [1, True]}, "input[1]"),
        ({"input": [1, -1]}, "input[1]"),
        ({"input": [1, 2.5]}, "input[1]"),
        ({"input": [[1], []]}, "input[1]"),
        ({"input": [[1], 2]}, "input[1]"),
        ({"input": [[1], [[2]]]}, "input[1][0]"),
        ({"input": [[1], ["a"]]}, "input[1][0]"),
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"model": ""}, "model"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"encoding_format": ["float"]}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": True}, "dimensions"),
        ({"dimensions": 2.0}, "dimensions"),
        ({"dimensions": "2"}, "dimensions"),
        ({"input_type": 1}, "input_type"),
        ({"prompt_name": ["query"]}, "prompt_name"),
    ],
)
def test_bad_input_is_400_and_names_the_field(fields: dict[str, Any], param: str) -> None:
    """Wrong types, nothing, too much, ids of mixed kinds."""
    with pytest.raises(BadRequest) as caught:
        read_request(ask(**fields))
    assert (caught.value.status, caught.value.param) == (400, param)


def test_too_much_text_is_413_and_names_the_field() -> None:
    """10 MB of text."""
    with pytest.raises(TooLarge) as caught:
        read_request(ask(input=["x" * (MAX_TEXT_BYTES // 2), "é" * (MAX_TEXT_BYTES // 2)]))
    assert (caught.value.status, caught.value.param) == (413, "input")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_whatever_input_is_the_answer_is_rows_or_400(value: Any) -> None:
    """No value of `input` makes anything but rows or a refusal."""
    try:
        asked = read_request(json.dumps({"model": "m", "input": value}).encode())
    except BadRequest:
        return
    assert (asked.texts is None) != (asked.ids is None)


def test_float_and_base64_are_the_same_float32() -> None:
    """Both forms hold the same bits, little-endian."""
    plain = orjson.loads(render_reply(VECTORS, model="m", encoding="float", tokens=7))
    packed = orjson.loads(render_reply(VECTORS, model="m", encoding="base64", tokens=7))
    rows = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in packed["data"]]
    assert np.array([one["embedding"] for one in plain["data"]], np.float32).tobytes() == np.stack(rows).tobytes()
    for document in (plain, packed):
        del document["data"][0]["embedding"], document["data"][1]["embedding"]
    assert plain == packed == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0}, {"object": "embedding", "index": 1}],
        "model": "m",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }  # fmt: skip


def test_dimensions_cut_and_normalise() -> None:
    """The first numbers, of length 1; a vector of zeros stays one."""
    made = shortened(np.array([[3, 4, 9], [0, 0, 1]], np.float32), 2)
    assert made.tolist() == [[np.float32(0.6), np.float32(0.8)], [0, 0]]
    assert made.dtype == np.float32


def test_half_precision_becomes_float32() -> None:
    """An FP16 model's numbers are sent as float32, exactly."""
    document = orjson.loads(render_reply(VECTORS.astype(np.float16), model="m", encoding="base64"))
    row = np.frombuffer(base64.b64decode(document["data"][0]["embedding"]), "<f4")
    assert row.tolist() == VECTORS.astype(np.float16)[0].astype(np.float32).tolist()


def answered(*rows: Any, **more: Any) -> bytes:
    data = [{"object": "embedding", "index": at, "embedding": row} for at, row in enumerate(rows)]
    return json.dumps({"data": data, "usage": {"prompt_tokens": 9}, **more}).encode()


def test_a_reply_of_another_server_is_read_in_the_order_asked() -> None:
    """Shuffled indexes are put in order; base64 and numbers are the same."""
    packed = base64.b64encode(VECTORS[1].tobytes()).decode()
    shuffled = [{"index": 1, "embedding": packed}, {"index": 0, "embedding": VECTORS[0].tolist()}]
    reply = read_reply(json.dumps({"data": shuffled}).encode(), 2)
    assert reply.vectors.tobytes() == VECTORS.tobytes()
    assert (reply.tokens, reply.base64) == (None, False)


@pytest.mark.parametrize(
    "body",
    [
        answered([1.0]),
        answered([1.0], [2.0], [3.0]),
        answered([1.0], [2.0, 3.0]),
        answered([], []),
        answered([1.0], [float("nan")]),
        answered([1.0], [1e39]),
        answered([1.0], [10**400]),
        answered([1.0], None),
        answered([1.0], ["1"]),
        answered([1.0], [[1.0]]),
        answered([1.0], "not base64!"),
        answered([1.0], "AAA="),
        answered([1.0], [2.0], error={"message": "overloaded"}),
        json.dumps({"data": []}).encode(),
        json.dumps({"error": "x"}).encode(),
        json.dumps({"data": [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}]}).encode(),
        json.dumps({"data": [{"index": 1, "embedding": [1.0]}, {"index": 2, "embedding": [1.0]}]}).encode(),
        json.dumps({"data": [{"index": "0", "embedding": [1.0]}, {"index": 1, "embedding": [1.0]}]}).encode(),
        json.dumps({"data": [1, 2]}).encode(),
        b"[]",
        b"",
        b"<html>",
    ],
)
def test_a_reply_that_cannot_be_right_is_refused(body: bytes) -> None:
    """Another count, a repeated index, differing lengths, NaN, nothing, an error under 200."""
    with pytest.raises(ModelFailed):
        read_reply(body, 2)


@given(st.integers(0, 10**6), st.lists(st.binary(max_size=50), min_size=1, max_size=40))
def test_tokens_of_a_group_are_split_without_a_rest(total: int, texts: list[bytes]) -> None:
    """Every text gets a number, by its length, and they add up."""
    parts = split_tokens(total, texts)
    assert sum(parts) == total
    assert all(part >= 0 for part in parts)


def test_errors_have_openais_form_and_say_where_repeating_is_of_no_use() -> None:
    """The SDK reads type, param and code, and obeys `x-should-retry`."""
    error: ForeseenError = BadRequest("dimensions: no", param="dimensions")
    assert error_document(error) == {
        "error": {
            "message": "dimensions: no",
            "type": "invalid_request_error",
            "param": "dimensions",
            "code": "bad_request",
        }
    }
    assert error_headers(error) == {}
    assert error_headers(NotCached("no")) == error_headers(ModelFailed("no")) == {"x-should-retry": "false"}
    assert error_headers(ModelFailed("no", retry_after=2)) == error_headers(Overloaded("busy")) == {}
    assert error_document(Overloaded("busy"))["error"]["type"] == "server_error"
