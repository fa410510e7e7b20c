"""Requests that are long enough to be decoded in parts: the same tensors, and nothing of the rest is lost."""

from __future__ import annotations

import gc
import json
import threading
from typing import Any

import numpy as np
import pytest

from foreseen.errors import BadInput, BadRequest
from foreseen.gc_freeze import paused
from foreseen.modelspec.manifest import find
from foreseen.protocol.json_parts import LONG_BYTES
from foreseen.protocol.wire import parse_request
from foreseen.proxy.predict.dialects.decode import decode_v1, decode_v2
from tests.models_fixture import PACKAGED

ROWS = 5000
NUMBERS = [[(row * 31 + at) % 2**40 for at in range(16)] for row in range(ROWS)]


def body(tensor: dict[str, Any], **members: Any) -> bytes:
    text = json.dumps(
        {"inputs": [{"name": "x", "datatype": "INT64", "shape": [ROWS, 16], **tensor}], **members}
    ).encode()
    assert len(text) > LONG_BYTES
    return text


@pytest.mark.parametrize("flat", [False, True])
def test_a_long_tensor_is_what_its_numbers_say(flat: bool) -> None:
    """Flat and nested lists, read in many parts; over V1 by row and by column."""
    data = [number for row in NUMBERS for number in row] if flat else NUMBERS
    manifest = find("fingerprint", PACKAGED)
    made = [decode_v2(body({"data": data}), None, manifest)]
    made.append(decode_v1(json.dumps({"instances": [{"x": row} for row in NUMBERS]}).encode(), manifest))
    made.append(decode_v1(json.dumps({"inputs": {"x": NUMBERS}}).encode(), manifest))
    for decoded in made:
        assert decoded.inputs[0].array.dtype == np.int64
        assert decoded.inputs[0].array.tolist() == NUMBERS


def test_long_floats_booleans_and_texts() -> None:
    """A null among floats is NaN, a number above the datatype is refused, as in short ones; texts keep their order."""
    floats: list[float | None] = [at / 7 for at in range(40_000)]
    floats[20_001] = None
    read = parse_request(body({"datatype": "FP32", "shape": [40_000], "data": floats}), None).inputs[0].array
    assert np.isnan(read[20_001])
    assert read[39_999] == np.float32(39_999 / 7)
    with pytest.raises(BadInput, match="overflows FP32"):
        parse_request(body({"datatype": "FP32", "shape": [40_000], "data": [*floats[1:], 1e39]}), None)
    flags = [at % 3 == 0 for at in range(40_000)]
    assert (
        parse_request(body({"datatype": "BOOL", "shape": [40_000], "data": flags}), None).inputs[0].array.tolist()
        == flags
    )
    texts = [f'text "{at}", é' for at in range(20_000)]
    read = parse_request(body({"datatype": "BYTES", "shape": [20_000], "data": texts}), None).inputs[0].array
    assert read.tolist() == [text.encode() for text in texts]


@pytest.mark.parametrize("at", [0, 40_000, 79_999])
@pytest.mark.parametrize("spelled", ["9007199254740993.0", "1.0000000000000001", "1.5", "1e400", "true", '"1"', "null"])
def test_one_wrong_number_of_many_is_found(spelled: str, at: int) -> None:
    """In whichever part it stands."""
    numbers = ["7"] * (ROWS * 16)
    numbers[at] = spelled
    text = body({"data": ["DATA"]}, parameters={"filling": "x" * LONG_BYTES}).replace(
        b'"DATA"', ",".join(numbers).encode()
    )
    with pytest.raises((BadInput, BadRequest)):
        parse_request(text, None)
    exact = text.replace(spelled.encode(), b"7.0")
    assert parse_request(exact, None).inputs[0].array.tolist() == [[7] * 16] * ROWS


def test_long_members_beside_the_data_are_kept() -> None:
    """Parameters and unknown members, which may decide the answer, are whole after the data has been freed."""
    long = list(range(20_000))
    text = body({"data": NUMBERS, "parameters": {"long": long}, "unknown": long}, parameters={"long": long}, more=long)
    plain = parse_request(text, None, whole=True)
    assert plain.parameters["long"] == long
    assert plain.members == parse_request(text.replace(b" ", b""), None, whole=True).members
    kept = str(plain.members)
    assert kept.count("19999") >= 3


def test_a_member_given_twice_is_refused_across_parts() -> None:
    """Also where both stand far apart, and between them a long list."""
    text = body({"data": NUMBERS}).replace(b'"name": "x", ', b"").replace(b"}]}", b', "name": "x"}], "inputs": []}')
    with pytest.raises(BadRequest, match="twice"):
        parse_request(text, None)


def test_collection_is_paused_while_any_thread_decodes() -> None:
    """It goes on when the last one is done."""
    assert gc.isenabled()
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with paused():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with paused():
        thread.start()
        assert entered.wait(10)
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()
