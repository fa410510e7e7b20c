"""V2 bodies ↔ tensors: what is let through is well-formed, what is refused names its field."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreseen.errors import BadInput, BadRequest
from foreseen.protocol.datatypes import BY_CODE, BY_DTYPE, DATATYPES, elements
from foreseen.protocol.strict_json import load_json, member_given_twice
from foreseen.protocol.tensors import array_of_raw, raw_of
from foreseen.protocol.wire import parse_raw, parse_request, parse_response
from foreseen.protocol.wire_render import OutputTensor, render_request, render_response
from foreseen.types import WantedOutput


def body(datatype: str, shape: list[Any], data: Any, **more: Any) -> bytes:
    return json.dumps({"inputs": [{"name": "x", "shape": shape, "datatype": datatype, "data": data}], **more}).encode()


def array(datatype: str, shape: list[Any], data: Any) -> np.ndarray:
    return parse_request(body(datatype, shape, data), None).inputs[0].array


def refused(text: bytes, header_length: int | None = None) -> str:
    with pytest.raises(BadRequest) as error:
        parse_request(text, header_length)
    return str(error.value)


def test_datatypes_are_found_by_name_code_and_dtype() -> None:
    """The three tables agree, codes are unique, and sizes are numpy's."""
    assert len(BY_CODE) == len(DATATYPES) == len(BY_DTYPE) == 14
    for datatype in DATATYPES.values():
        assert BY_CODE[datatype.code] is BY_DTYPE[datatype.dtype] is datatype
        assert datatype.kind == "s" or datatype.size == datatype.dtype.itemsize
    assert elements((2**32, 2**32)) == 2**64


@pytest.mark.parametrize("nested", [[[1, 2, 3], [4, 5, 6]], [1, 2, 3, 4, 5, 6]])
@pytest.mark.parametrize("datatype", [n for n, d in DATATYPES.items() if d.kind in "if"])
def test_nested_and_flat_data_are_the_same_tensor(datatype: str, nested: Any) -> None:
    """Row-major either way, in the datatype's dtype."""
    made = array(datatype, [2, 3], nested)
    assert made.dtype == DATATYPES[datatype].dtype
    assert made.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("spelling", ["1", "1.0", "1e0", "10e-1", "0.1E1"])
@pytest.mark.parametrize("datatype", ["FP32", "FP64", "FP16", "BF16", "INT64", "UINT8"])
def test_the_spelling_of_a_number_does_not_matter(datatype: str, spelling: str) -> None:
    """1, 1.0 and 1e0 are one number, for floats and for integers."""
    text = b'{"inputs":[{"name":"x","shape":[1],"datatype":"%s","data":[%s]}]}' % (datatype.encode(), spelling.encode())
    assert raw_of(parse_request(text, None).inputs[0].array, DATATYPES[datatype]) == raw_of(
        np.array([1]), DATATYPES[datatype]
    )


def test_floats_are_rounded_as_one_double() -> None:
    """16777217 has no FP32: integer and float spelling round to the same neighbour."""
    assert array("FP32", [2], [16777217, 16777217.0]).tolist() == [16777216.0, 16777216.0]


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "says"),
    [
        ("INT8", [1], [128], "does not fit INT8"),
        ("UINT8", [1], [-1], "does not fit UINT8"),
        ("INT64", [1], [2**63], "does not fit INT64"),
        ("INT64", [2], [1, 1.5], "inputs[0].data[1]"),
        ("INT64", [1], [9007199254740994.0], "does not fit INT64 exactly"),
        ("FP32", [1], [1e39], "overflows FP32"),
        ("FP16", [1], [70000], "overflows FP16"),
        ("FP32", [2], [1, True], "not bool"),
        ("INT64", [1], [None], "not NoneType"),
        ("INT64", [1], ["1"], "not str"),
        ("BOOL", [1], [1], "true and false"),
        ("BYTES", [1], [1], "strings only"),
        ("FP32", [2, 2], [[1, 2], [3]], "ragged"),
        ("FP32", [2, 2], [[1, 2], 3], "ragged"),
        ("FP32", [2, 2], [[1, 2]], "1 lists"),
        ("FP32", [3], [1, 2], "has 2 elements"),
        ("FP32", [1], 5, "must be a list"),
        ("FP32", [-1], [5], "not between 0"),
        ("FP32", [2**31], [5], "not between 0"),
        ("FP32", [1] * 9, [5], "9 dimensions"),
        ("FP32", [True], [5], "shape[0]"),
        ("FP32", [1.5], [5], "shape[0]"),
        ("FP32", "1", [5], "shape"),
        ("FP8", [1], [5], "datatype: must be one of"),
        ("INT64", [2**31 - 1, 2**31 - 1, 2**31 - 1], [5], "takes"),
        ("INT64", [0], [5], "takes 0"),
    ],
)
def test_what_is_not_the_tensor_it_says_is_refused_by_name(datatype: str, shape: Any, data: Any, says: str) -> None:
    """400 whose message names the field and what is wrong with it."""
    message = refused(body(datatype, shape, data))
    assert says in message
    assert "inputs[0]" in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "not valid JSON"),
        (b"[]", "body: expected"),
        (b"{}", "inputs"),
        (b'{"inputs":[]}', "at least one"),
        (b'{"inputs":{}}', "inputs: expected"),
        (b'{"inputs":[{"shape":[1],"datatype":"FP32","data":[1]}]}', "inputs[0]"),
        (b'{"inputs":[{"name":1,"shape":[1],"datatype":"FP32","data":[1]}]}', "inputs[0].name"),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32"}]}', "data is missing"),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[NaN]}]}', "not valid JSON"),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1e999]}]}', "not valid JSON"),
        (b'{"inputs":[{"name":"\\ud800","shape":[1],"datatype":"FP32","data":[1]}]}', "not valid JSON"),
        (b'\xef\xbb\xbf{"inputs":[]}', "not valid JSON"),
        (b'{"inputs":[],"inputs":[]}', "'inputs' twice"),
        (b'{"inputs":[],"in\\u0070uts":[]}', "'inputs' twice"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"INT8","parameters":{"binary_data_size":1}}]}', "needs"),
        (
            b'{"inputs":[{"name":"x","shape":[1],"datatype":"INT8","parameters":{"shared_memory_region":"r"}}]}',
            "shared memory",
        ),
        (b'{"id":5,"inputs":[]}', "id: expected"),
    ],
)
def test_malformed_envelopes_are_refused(text: bytes, says: str) -> None:
    """Every way in which a body is not a request."""
    assert says in refused(text)


def test_two_inputs_or_outputs_of_one_name_are_refused() -> None:
    """Last-wins merges are how caches are poisoned."""
    one = {"name": "x", "shape": [1], "datatype": "INT64", "data": [1]}
    assert "same name" in refused(orjson.dumps({"inputs": [one, one]}))
    assert "same name" in refused(orjson.dumps({"inputs": [one], "outputs": [{"name": "y"}, {"name": "y"}]}))


def test_what_is_optional_may_be_absent_or_empty() -> None:
    """`id:""` is none, unknown members are ignored, wanted outputs carry their flags."""
    text = body(
        "INT64",
        [1],
        [1],
        id="",
        model_name="m",
        outputs=[{"name": "y", "parameters": {"binary_data": True}}, {"name": "z"}],
    )
    request = parse_request(text, None)
    assert (request.id, request.parameters, request.binary) == (None, {}, False)
    assert request.outputs == (WantedOutput("y", True), WantedOutput("z"))
    assert parse_request(body("INT64", [1], [1], parameters={"binary_data_output": True}), None).binary


@pytest.mark.parametrize("parameters", [{"binary_data": 1}, {"classification": "3"}, {"classification": -1}])
def test_output_parameters_are_typed(parameters: dict[str, Any]) -> None:
    """A flag is a boolean, a number of classes is a number."""
    assert "outputs[0].parameters" in refused(
        body("INT64", [1], [1], outputs=[{"name": "y", "parameters": parameters}])
    )


@pytest.mark.parametrize("datatype", list(DATATYPES))
def test_binary_and_json_make_the_same_tensor(datatype: str) -> None:
    """A request rendered as binary parses to the bytes that its JSON would have given."""
    kind = DATATYPES[datatype].kind
    data: list[Any] = {"s": ["a", "", "ü"], "b": [True, False, True]}.get(kind, [1, 0, 3])
    made = array(datatype, [3], data)
    text, length = render_request([("x", datatype, made)], {})
    again = parse_request(text, length)
    assert again.binary
    assert raw_of(again.inputs[0].array, DATATYPES[datatype]) == raw_of(made, DATATYPES[datatype])


def test_json_and_binary_tensors_mix_in_one_request() -> None:
    """Binary data belongs to the inputs that have none in JSON, in their order; the size may be left out."""
    head = {
        "inputs": [
            {"name": "a", "shape": [2], "datatype": "INT32", "parameters": {"binary_data_size": 8}},
            {"name": "b", "shape": [1], "datatype": "FP32", "data": [2.5]},
            {"name": "c", "shape": [1], "datatype": "UINT16"},
        ]
    }
    envelope = orjson.dumps(head)
    request = parse_request(envelope + struct.pack("<iiH", 7, -7, 9), len(envelope))
    assert [tensor.array.tolist() for tensor in request.inputs] == [[7, -7], [2.5], [9]]


@pytest.mark.parametrize(
    ("size", "tail", "says"),
    [
        (8, b"1234", "end beyond the body"),
        (4, b"12345678", "takes 8"),
        (8, b"123456789", "belong to no tensor"),
        (-1, b"", "number of bytes"),
    ],
)
def test_byte_counts_must_match(size: int, tail: bytes, says: str) -> None:
    """Too few, too many, or another number than the shape says."""
    envelope = orjson.dumps(
        {"inputs": [{"name": "x", "shape": [2], "datatype": "INT32", "parameters": {"binary_data_size": size}}]}
    )
    assert says in refused(envelope + tail, len(envelope))


@pytest.mark.parametrize("length", [0, 10_000])
def test_a_header_length_outside_the_body_is_refused(length: int) -> None:
    """It counts bytes of this body."""
    assert "Inference-Header-Content-Length" in refused(body("INT64", [1], [1]), length)


def test_the_header_may_come_with_an_all_json_body() -> None:
    """Triton's C++ client always sends it."""
    text = body("INT64", [1], [1])
    assert parse_request(text, len(text)).inputs[0].array.tolist() == [1]


@pytest.mark.parametrize(
    ("raw", "says"),
    [(b"\x01\x00\x00", "need at least"), (b"\x05\x00\x00\x00abc", "ends beyond"), (b"\x01\x00\x00\x00abc", "take 5")],
)
def test_byte_strings_are_bounds_checked(raw: bytes, says: str) -> None:
    """Lengths inside the data never reach outside of it."""
    with pytest.raises(BadInput, match=says):
        array_of_raw(raw, DATATYPES["BYTES"], (1,), "inputs[0]")


def test_a_bool_byte_is_zero_or_one() -> None:
    """Two bit patterns for true would be two entries for one question."""
    with pytest.raises(BadInput, match="0 or 1"):
        array_of_raw(b"\x02", DATATYPES["BOOL"], (1,), "inputs[0]")


def test_a_huge_claimed_shape_allocates_nothing() -> None:
    """A million-fold BYTES shape over four bytes is refused before an array of that size is made."""
    with pytest.raises(BadInput, match="need at least"):
        array_of_raw(b"\x00" * 4, DATATYPES["BYTES"], (2**31 - 1, 2**31 - 1), "inputs[0]")


def test_raw_binary_requests() -> None:
    """The body is the one input: rows follow from its length, BYTES are one element."""
    numbers = np.arange(6, dtype=np.float32)
    request = parse_raw(numbers.tobytes(), "x", "FP32", [-1, 3])
    assert request.inputs[0].array.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert request.binary
    assert parse_raw(b"any bytes", "t", "BYTES", [-1]).inputs[0].array.tolist() == [b"any bytes"]
    for shape, content in (([-1, -1], b""), ([-1, 3], b"12345"), ([2, 3], b"1234")):
        with pytest.raises(BadRequest):
            parse_raw(content, "x", "FP32", shape)
    with pytest.raises(BadRequest):
        parse_raw(b"", "t", "BYTES", [-1, 2])


def test_responses_are_flat_json_or_binary() -> None:
    """Data is flat whatever the shape; binary outputs follow in order behind the header's length."""
    values = np.array([[1.5, 2.5], [3.5, 4.5]], np.float32)
    outputs = [OutputTensor("y", "FP32", (2, 2), values.tobytes(), False)]
    text, length = render_response("m", "1", "id-1", outputs)
    assert length is None
    assert orjson.loads(text) == {
        "model_name": "m",
        "model_version": "1",
        "id": "id-1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [1.5, 2.5, 3.5, 4.5]}],
    }
    text, length = render_response(
        "m", "1", None, [OutputTensor("y", "FP32", (2, 2), values.tobytes(), True)], {"digest": "d"}
    )
    assert length is not None
    response = parse_response(text, length)
    assert (response.model, response.version, response.id, response.parameters) == ("m", "1", None, {"digest": "d"})
    assert response.outputs[0].array.tolist() == values.tolist()


def test_sixteen_bit_floats_as_json() -> None:
    """FP16 and BF16 are emitted as JSON numbers only where JSON was asked for, and are exact there."""
    for datatype, dtype in (("FP16", np.float16), ("BF16", ml_dtypes.bfloat16)):
        raw = np.array([1.5, -2.0], dtype).tobytes()
        text, _ = render_response("m", "1", None, [OutputTensor("y", datatype, (2,), raw, False)])
        assert orjson.loads(text)["outputs"][0]["data"] == [1.5, -2.0]


def test_bytes_that_are_not_text_are_not_json() -> None:
    """400 that says to ask for binary data, no mojibake."""
    outputs = [OutputTensor("y", "BYTES", (1,), b"\x01\x00\x00\x00\xff", False)]
    with pytest.raises(BadRequest, match="binary_data"):
        render_response("m", "1", None, outputs)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b'{"a":1,"b":{"a":2}}', None),
        (b'{"a":{"b":1},"c":{"b":1}}', None),
        (b'[{"a":1},{"a":1}]', None),
        (b'{"a":"a","b":"a"}', None),
        (b'{"a":["b","b"],"b":1}', None),
        (b'{"a\\\\":1,"a":2}', None),
        (b'{"a":"}{","b":"\\"","c":"\\\\"}', None),
        (b'{"a":1, "a" : 2}', "a"),
        (b'{"x":[{"y":{"z":1,"q":[],"z":2}}]}', "z"),
        (b'{"\xc3\xbc":1,"\\u00fc":2}', "ü"),
        (b'{"a\\"b":1,"a\\u0022b":2}', 'a"b'),
        (b'{"n":' + b"[" + b"1," * 200 + b'1],"n":2}', "n"),
    ],
)
def test_a_member_given_twice_is_found(text: bytes, name: str | None) -> None:
    """In any object at any depth, by any spelling; never a value, never across objects."""
    assert member_given_twice(text) == name
    if name is None:
        assert load_json(text) == json.loads(text)
    else:
        with pytest.raises(BadRequest, match="twice"):
            load_json(text)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)


@given(_JSON, st.booleans(), st.sampled_from([None, 1]))
def test_any_json_without_doubles_is_let_through(document: Any, escaped: bool, indent: int | None) -> None:
    """The walker agrees with a parser that sees every pair."""
    text = json.dumps(document, ensure_ascii=escaped, indent=indent).encode()
    doubles = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        doubles.extend(items if len({name for name, _ in items}) < len(items) else [])
        return dict(items)

    json.loads(text, object_pairs_hook=pairs)
    assert (member_given_twice(text) is None) == (not doubles)


@given(st.binary(max_size=200), st.none() | st.integers(0, 220))
def test_any_bytes_are_a_request_or_refused(text: bytes, header_length: int | None) -> None:
    """No other exception ever leaves the decoder."""
    try:
        parse_request(text, header_length)
    except BadRequest:
        return
    assert json.loads(text[:header_length])


@given(st.data())
def test_a_damaged_request_is_a_request_or_refused(data: st.DataObject) -> None:
    """One byte of a good binary request changed, cut or added: understood or refused, never a crash."""
    good, length = render_request(
        [("x", "INT64", np.arange(4).reshape(2, 2)), ("t", "BYTES", np.array([b"ab", b"c"], object))], {"p": 1}
    )
    at = data.draw(st.integers(0, len(good) - 1))
    change = data.draw(st.sampled_from([b"", bytes([data.draw(st.integers(0, 255))]), b"\x00" * 9]))
    damaged = good[:at] + change + good[at + 1 :]
    try:
        request = parse_request(damaged, length)
    except BadRequest:
        return
    assert request.inputs


@pytest.mark.processes
def test_nothing_is_left_to_be_read_when_threads_decode() -> None:
    """msgspec reads annotations, in Python, when a class is first decoded; two threads that did so at a time ended
    a process by a segmentation fault. After the import there is nothing left to read."""
    program = """
import sys
from foreseen.protocol import wire
called = []
sys.setprofile(lambda frame, event, _: called.append(frame.f_code.co_filename) if event == "call" else None)
tensors = b'[{"name": "x", "datatype": "INT64", "shape": [1], "data": [1]}]'
wire.parse_request(b'{"inputs": ' + tensors + b'}', None)
wire.parse_response(b'{"model_name": "m", "outputs": ' + tensors + b'}', None)
sys.setprofile(None)
assert len(called) > 2
print([name for name in called if "msgspec" in name])
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"
