"""Decode and render: every way of asking gives the same rows, every way of answering is made of the same tensors."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest

from foreseen.errors import BadInput, BadRequest
from foreseen.keys.key import Framer
from foreseen.modelspec.manifest import Manifest
from foreseen.modelspec.prepare import Preparer
from foreseen.protocol.wire import parse_response
from foreseen.protocol.wire_render import render_request
from foreseen.proxy.predict.dialects import codecs
from foreseen.proxy.predict.dialects.decode import DecodedRequest, decode_v1, decode_v2
from foreseen.types import Output, OutputOptions, Prediction, WantedOutput


def render(
    manifest: Manifest, predictions: Sequence[Prediction], output_options: OutputOptions
) -> tuple[bytes, int | None]:
    """A reply's whole body, and the length of its JSON part where binary tensors follow."""
    return codecs.render(manifest, predictions, output_options).with_id(output_options.id)


def manifest(inputs: list[Any], outputs: list[Any], **more: Any) -> Manifest:
    keys = ("name", "datatype", "shape")
    listed = [dict(zip(keys, one, strict=True)) for one in inputs]
    answered = [{**dict(zip(keys, one[:3], strict=True)), **(one[3] if len(one) > 3 else {})} for one in outputs]
    model = [dict(zip(keys, one[:3], strict=True)) for one in outputs]
    return msgspec.convert(
        {
            "name": "m",
            "client": {"inputs": listed, "outputs": answered},
            "model": {"inputs": listed, "outputs": model},
            **more,
        },
        Manifest,
    )


ONE = manifest([("x", "FP32", ["rows", 2])], [("y", "FP32", ["rows", 3])])
TWO = manifest(
    [("a", "INT64", ["rows"]), ("t", "BYTES", ["rows"])],
    [("y", "FP32", ["rows", 2], {"labels": ["cat", "dog"]}), ("s", "BYTES", ["rows"]), ("n", "INT64", ["rows"])],
)


def frames(one: Manifest, asked: DecodedRequest) -> list[bytes]:
    return Framer(one.model).frames(Preparer(one, {}).rows(asked.inputs), asked.parameters)


def v2(data: Any, shape: Any = (2, 2), **more: Any) -> bytes:
    return orjson.dumps({"inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "data": data}], **more})


def test_null_is_nan_where_the_input_takes_it() -> None:
    """JSON has no NaN: null is one among floats, by V2 nested and flat and by V1, and is the same row as a binary NaN.
    An input that takes none refuses it."""
    numbers = np.array([[np.nan, 2]], np.float32)
    binary, length = render_request([("x", "FP32", numbers)], {})
    takes = msgspec.convert({**msgspec.to_builtins(ONE)}, Manifest)
    seen = msgspec.structs.replace(takes.seen.inputs[0], nonfinite=True)
    takes = msgspec.structs.replace(takes, client=msgspec.structs.replace(takes.seen, inputs=(seen,)))
    ways = [
        lambda one: decode_v2(v2([None, 2], (1, 2)), None, one),
        lambda one: decode_v2(v2([[None, 2]], (1, 2)), None, one),
        lambda one: decode_v1(b'{"instances":[[null,2]]}', one),
        lambda one: decode_v1(b'{"inputs":{"x":[[null,2]]}}', one),
        lambda one: decode_v2(binary, length, one),
    ]
    assert len({frames(takes, way(takes))[0] for way in ways}) == 1
    for way in ways:
        with pytest.raises(BadInput):
            frames(ONE, way(ONE))


def test_every_way_of_asking_one_input_gives_the_same_rows() -> None:
    """V2 nested, flat, binary, raw binary, V1 rows and V1 columns, any id, spelling and output selection."""
    numbers = np.array([[1, 2], [3, 4.5]], np.float32)
    binary, length = render_request([("x", "FP32", numbers)], {})
    ways = [
        decode_v2(v2([[1, 2], [3, 4.5]]), None, ONE),
        decode_v2(v2([1, 2.0, 3e0, 45e-1]), None, ONE),
        decode_v2(v2([1, 2, 3, 4.5], id="other", parameters={"timeout": 5, "priority": 1, "triton_x": 1}), None, ONE),
        decode_v2(v2([1, 2, 3, 4.5], outputs=[{"name": "y", "parameters": {"classification": 1}}]), None, ONE),
        decode_v2(
            b'{ "outputs":[],\n"inputs":[{"data":[1,2,3,4.5],"datatype":"FP32","shape":[2,2],"name":"\\u0078"}]}',
            None,
            ONE,
        ),
        decode_v2(binary, length, ONE),
        decode_v2(numbers.tobytes(), 0, ONE),
        decode_v1(b'{"instances":[[1,2],[3,4.5]]}', ONE),
        decode_v1(b'{"instances":[{"x":[1,2]},{"x":[3,4.5]}],"signature_name":"serving_default"}', ONE),
        decode_v1(b'{"inputs":{"x":[[1,2],[3,4.5]]}}', ONE),
        decode_v1(b'{"inputs":[[1,2],[3,4.5]]}', ONE),
    ]
    assert len({tuple(frames(ONE, way)) for way in ways}) == 1


def test_every_way_of_asking_two_inputs_gives_the_same_rows() -> None:
    """Member order does not matter; text is a string or base64."""
    b64 = base64.b64encode("ü".encode()).decode()
    array = np.array(["ü".encode(), b"b"], object)
    binary, length = render_request([("t", "BYTES", array), ("a", "INT64", np.array([1, 2]))], {})
    ways = [
        decode_v1(orjson.dumps({"instances": [{"a": 1, "t": "ü"}, {"t": "b", "a": 2}]}), TWO),
        decode_v1(orjson.dumps({"instances": [{"a": 1, "t": {"b64": b64}}, {"a": 2.0, "t": "b"}]}), TWO),
        decode_v1(orjson.dumps({"inputs": {"t": ["ü", "b"], "a": [1, 2]}}), TWO),
        decode_v2(binary, length, TWO),
    ]
    assert len({tuple(frames(TWO, way)) for way in ways}) == 1


def test_parameters_count_unless_they_are_known_not_to() -> None:
    """Unknown ones may change the answer; their order does not; the manifest can exempt them."""
    plain = decode_v2(v2([1, 2, 3, 4]), None, ONE).parameters
    one = decode_v2(v2([1, 2, 3, 4], parameters={"b": 1, "a": "x"}), None, ONE).parameters
    assert decode_v2(v2([1, 2, 3, 4], parameters={"priority": 1}), None, ONE).lane == "online"
    assert decode_v2(v2([1, 2, 3, 4], parameters={"priority": 2}), None, ONE).lane == "background"
    other = decode_v2(v2([1, 2, 3, 4], parameters={"a": "x", "b": 1, "priority": 3}), None, ONE).parameters
    assert plain == b""
    assert one == other == b'{"a":"x","b":1}'
    exempt = manifest([("x", "FP32", ["rows", 2])], [("y", "FP32", ["rows", 3])], ignored_parameters=["a", "b"])
    assert decode_v2(v2([1, 2, 3, 4], parameters={"b": 1, "a": "x"}), None, exempt).parameters == b""


def test_sequences_and_timeouts_are_noticed() -> None:
    """A stateful request is not to be cached; a timeout is microseconds, 0 is none."""
    asked = decode_v2(v2([1, 2, 3, 4], parameters={"sequence_id": 5, "timeout": 1_500_000}), None, ONE)
    assert (asked.sequence, asked.timeout_seconds) == (True, 1.5)
    asked = decode_v2(v2([1, 2, 3, 4], parameters={"sequence_id": 0, "timeout": 0}), None, ONE)
    assert (asked.sequence, asked.timeout_seconds) == (False, None)
    with pytest.raises(BadRequest, match=r"parameters\.timeout"):
        decode_v2(v2([1, 2, 3, 4], parameters={"timeout": "soon"}), None, ONE)


def test_an_unknown_output_is_refused_before_anything_is_asked() -> None:
    """400 that lists the outputs there are."""
    with pytest.raises(BadRequest, match="the model has y"):
        decode_v2(v2([1, 2, 3, 4], outputs=[{"name": "z"}]), None, ONE)


def test_raw_binary_is_for_models_with_one_input() -> None:
    """400 that says how many there are."""
    with pytest.raises(BadRequest, match="this one has 2"):
        decode_v2(b"12345678", 0, TWO)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"[]", "expected an object"),
        (b"{}", "either instances"),
        (b'{"instances":[],"inputs":[]}', "either instances"),
        (b'{"instances":5}', "instances: must be a list"),
        (b'{"instances":[[1,2],[3]]}', "ragged"),
        (b'{"instances":[[1,2],[3,true]]}', "not bool"),
        (b'{"instances":[{"z":1}]}', "instances[0]"),
        (b'{"instances":[1]}', "inputs.x: is a list of depth 1, its shape [rows, 2] needs depth 2"),
        (b'{"instances":[[[1],[2]]]}', "inputs.x"),
        (b'{"inputs":{"z":[1]}}', "must have exactly x"),
        (b'{"inputs":{"x":1}}', "inputs.x: must be a list"),
        (b'{"instances":[[1,2]],"instances":[]}', "twice"),
        (b'{"instances":' + b"[" * 900 + b"]" * 900 + b"}", "inputs.x"),
    ],
)
def test_v1_bodies_that_make_no_sense_are_refused(body: bytes, says: str) -> None:
    """400 naming the field; never a crash, however deep."""
    with pytest.raises(BadRequest) as error:
        frames(ONE, decode_v1(body, ONE))
    assert says in str(error.value)


@pytest.mark.parametrize("item", ['{"b64":5}', '{"b64":"%%"}', "5", '["a"]', '{"b":1}'])
def test_v1_text_is_a_string_or_base64(item: str) -> None:
    """Anything else is 400."""
    with pytest.raises(BadInput, match=r"inputs\.t|instances"):
        decode_v1(f'{{"instances":[{{"a":1,"t":{item}}}]}}'.encode(), TWO)


def predictions(*values: tuple[float, float]) -> list[Prediction]:
    heads = (Output("y", "FP32", (2,)), Output("s", "BYTES", ()), Output("n", "INT64", ()))
    return [
        Prediction(
            heads,
            (np.array(pair, np.float32).tobytes(), b"\x02\x00\x00\x00ok", index.to_bytes(8, "little")),
            "d", 0.0, 1.0, 0.0,
        )
        for index, pair in enumerate(values)
    ]  # fmt: skip


def test_v2_rendering_selects_orders_and_encodes() -> None:
    """The outputs that were asked for, in that order, each binary or JSON as it was asked."""
    answers = predictions((0.25, 0.75), (1.0, 0.0))
    body, length = render(
        TWO, answers, OutputOptions("v2", "id-7", (WantedOutput("n", True), WantedOutput("y", False)), binary=True)
    )
    assert length is not None
    response = parse_response(body, length)
    assert (response.id, [output.name for output in response.outputs]) == ("id-7", ["n", "y"])
    assert response.outputs[0].array.tolist() == [0, 1]
    assert response.outputs[1].array.tolist() == [[0.25, 0.75], [1.0, 0.0]]
    body, length = render(TWO, answers, OutputOptions())
    assert length is None
    assert [output["data"] for output in orjson.loads(body)["outputs"]] == [
        [0.25, 0.75, 1.0, 0.0],
        ["ok", "ok"],
        [0, 1],
    ]
    assert "id" not in orjson.loads(body)


def test_a_large_body_is_kept_and_sent_without_a_copy() -> None:
    """Its text is the same as that of the parts, with an id and without one."""
    value = np.arange(3, dtype=np.float32)
    one = Prediction((Output("y", "FP32", (3,)),), (value.tobytes(),), "d", 0.0, 9.0, 0.1)
    rendered = codecs.render(ONE, [one] * 100_000, OutputOptions())
    whole, again = rendered.with_id(None)[0], rendered.with_id(None)[0]
    assert len(whole) > 2**20
    assert whole is again
    told = orjson.loads(whole)
    assert told["outputs"][0]["data"] == [0.0, 1.0, 2.0] * 100_000
    assert orjson.loads(rendered.with_id("a")[0]) == {**told, "id": "a"}


def test_classification_is_made_of_the_tensor() -> None:
    """`[rows, n]` BYTES of value, index and label, the largest first, ties by index."""
    answers = predictions((0.25, 0.75), (0.5, 0.5))
    body, _ = render(TWO, answers, OutputOptions(outputs=(WantedOutput("y", classification=5),)))
    (output,) = orjson.loads(body)["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    assert output["data"] == ["0.750000:1:dog", "0.250000:0:cat", "0.500000:0:cat", "0.500000:1:dog"]
    body, _ = render(TWO, answers, OutputOptions(outputs=(WantedOutput("n", classification=1),)))
    assert orjson.loads(body)["outputs"][0]["data"] == ["0:0", "1:0"]
    with pytest.raises(BadRequest, match="cannot be ranked"):
        render(TWO, answers, OutputOptions(outputs=(WantedOutput("s", classification=1),)))


def test_v1_rendering_by_row_and_by_column() -> None:
    """One output stands without its name; several are objects by row or lists by column."""
    answers = predictions((0.25, 0.75), (1.0, 0.0))
    assert orjson.loads(render(TWO, answers, OutputOptions("v1", outputs=(WantedOutput("y"),)))[0]) == {
        "predictions": [[0.25, 0.75], [1.0, 0.0]]
    }
    assert orjson.loads(render(TWO, answers, OutputOptions("v1"))[0])["predictions"][1] == {
        "y": [1.0, 0.0],
        "s": "ok",
        "n": 1,
    }
    assert orjson.loads(render(TWO, answers, OutputOptions("v1-columns"))[0])["outputs"]["s"] == ["ok", "ok"]


def test_rows_of_different_lengths_are_padded_again() -> None:
    """Sequence outputs are stored trimmed and rendered zero-padded to the longest of this request."""
    one = manifest([("x", "INT64", ["rows", "n"])], [("y", "FP32", ["rows", "n"])])
    answers = [
        Prediction((Output("y", "FP32", (size,)),), (np.ones(size, np.float32).tobytes(),), "d", 0.0, 1.0, 0.0)
        for size in (1, 3)
    ]
    (output,) = orjson.loads(render(one, answers, OutputOptions())[0])["outputs"]
    assert (output["shape"], output["data"]) == ([2, 3], [1, 0, 0, 1, 1, 1])


def test_no_rows_render_as_empty_outputs() -> None:
    """Open dimensions are 0, fixed ones stay."""
    body, _ = render(TWO, [], OutputOptions())
    assert [output["shape"] for output in orjson.loads(body)["outputs"]] == [[0, 2], [0], [0]]
