"""Protobuf bytes of the Open Inference Protocol: what is read, what is refused, and what our .proto is compiled to."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpc_tools import protoc
from hypothesis import given, settings
from hypothesis import strategies as st

from foreseen.errors import BadInput, BadRequest, ForeseenError, TooLarge
from foreseen.protocol import grpc_messages as messages
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.members import ReplyMembers
from foreseen.protocol.open_inference import COMPILED, FILE, message, methods
from foreseen.protocol.tensors import raw_of
from foreseen.protocol.wire_render import OutputTensor

REQUEST = message("ModelInferRequest")
VALUES: dict[str, Any] = {
    "BOOL": [True, False],
    "BYTES": [b"", b"\xff\x00"],
    "FP16": [0.5, -1.0],
    "BF16": [0.5, -1.0],
    "FP32": [0.5, -(2.0**127)],
    "FP64": [0.1, 1e308],
    **{f"INT{bits}": [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": [0, 2**bits - 1] for bits in (8, 16, 32, 64)},
}


def request(datatype: str, values: list[Any], *, raw: bool, **more: Any) -> Any:
    made = REQUEST(model_name="m", **more)
    tensor = made.inputs.add(name="x", datatype=datatype, shape=[len(values)])
    if raw:
        array = np.empty(len(values), object) if datatype == "BYTES" else np.array(values, DATATYPES[datatype].dtype)
        array[:] = values
        made.raw_input_contents.append(raw_of(array, DATATYPES[datatype]))
    else:
        getattr(tensor.contents, messages.CONTENTS[datatype]).extend(values)
    return made


def refused(made: Any) -> ForeseenError:
    with pytest.raises(ForeseenError) as caught:
        messages.parse_request(made if isinstance(made, bytes) else made.SerializeToString())
    return caught.value


def test_the_compiled_descriptors_are_those_of_the_proto(tmp_path: Path) -> None:
    """`make proto` was run after the last change of open_inference.proto."""
    out = tmp_path / "out.binpb"
    assert protoc.main(["protoc", f"-I{COMPILED.parent}", f"--descriptor_set_out={out}", FILE]) == 0
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    assert FileDescriptorSet.FromString(out.read_bytes()) == FileDescriptorSet.FromString(COMPILED.read_bytes())


def test_the_descriptors_leave_the_default_pool_alone() -> None:
    """tritonclient, KServe and MLServer register the same package there."""
    from google.protobuf.descriptor_pool import Default

    methods()
    with pytest.raises(KeyError):
        Default().FindMessageTypeByName("inference.ModelInferRequest")


@pytest.mark.parametrize("datatype", DATATYPES)
def test_contents_and_raw_contents_are_the_same_tensor(datatype: str) -> None:
    """Of every datatype, at the ends of its range; FP16 and BF16 are raw only."""
    values = VALUES[datatype]
    raw = messages.parse_request(request(datatype, values, raw=True).SerializeToString())
    assert raw.binary
    assert raw.inputs[0].array.tolist() == values
    if datatype in messages.CONTENTS:
        plain = messages.parse_request(request(datatype, values, raw=False).SerializeToString())
        assert not plain.binary
        assert plain.inputs[0].array.dtype == raw.inputs[0].array.dtype
        assert raw_of(plain.inputs[0].array, DATATYPES[datatype]) == raw_of(raw.inputs[0].array, DATATYPES[datatype])


def test_what_is_wrong_with_a_tensor_is_said_with_its_field() -> None:
    """Both forms at once, a number of raw contents that is not that of the inputs, another datatype's field, counts,
    ranges, shapes, names, shared memory, values that are none."""
    both = request("INT64", [1], raw=False)
    both.raw_input_contents.append(bytes(8))
    assert str(refused(both)) == "inputs[0]: has both contents and raw contents"
    two = request("INT64", [1], raw=True)
    two.raw_input_contents.append(bytes(8))
    assert str(refused(two)) == "raw_input_contents: has 2 tensors, inputs has 1"
    other = request("INT64", [1], raw=False)
    other.inputs[0].datatype = "INT32"
    assert str(refused(other)) == "inputs[0].contents.int64_contents: INT32 is in int_contents"
    half = request("INT64", [1], raw=False)
    half.inputs[0].datatype = "FP16"
    assert str(refused(half)) == "inputs[0].contents.int64_contents: FP16 is in raw contents"
    wide = request("INT32", [300], raw=False)
    wide.inputs[0].datatype = "UINT8"
    assert "uint_contents" in str(refused(wide))
    narrow = request("INT32", [300], raw=False)
    narrow.inputs[0].datatype = "INT8"
    assert str(refused(narrow)) == "inputs[0].contents.int_contents: an integer does not fit INT8"
    few = request("INT64", [1], raw=False)
    few.inputs[0].shape[:] = [2]
    assert str(refused(few)) == "inputs[0].contents: has 1 elements, shape [2] takes 2"
    short = request("INT64", [1], raw=True)
    short.inputs[0].shape[:] = [2]
    assert str(refused(short)) == "inputs[0]: has 8 bytes, INT64 [2] takes 16"
    huge = request("INT64", [1], raw=True)
    huge.inputs[0].shape[:] = [2**31 - 1] * 8
    assert isinstance(refused(huge), BadInput)
    huge.inputs[0].shape[:] = [-1]
    assert str(refused(huge)) == "inputs[0].shape: -1 is not between 0 and 2147483647"
    huge.inputs[0].datatype, huge.inputs[0].shape[:] = "BYTES", [2**31 - 1]
    assert isinstance(refused(huge), TooLarge)
    huge.inputs[0].datatype = "TEXT"
    assert str(refused(huge)).startswith("inputs[0].datatype: must be one of")
    twice = request("INT64", [1], raw=False)
    twice.inputs.append(twice.inputs[0])
    assert str(refused(twice)) == "inputs: two have the same name"
    shared = request("INT64", [1], raw=False)
    shared.inputs[0].parameters["shared_memory_region"].string_param = "r"
    assert str(refused(shared)) == "inputs[0].parameters: shared memory is not supported"
    nothing = request("INT64", [1], raw=False)
    nothing.parameters["p"].SetInParent()
    assert str(refused(nothing)) == "parameters.p: has no value"
    assert str(refused(REQUEST(model_name="m"))) == "inputs: at least one is needed"
    assert str(refused(b"\x0a\xff")) == "body: is not a ModelInferRequest"
    with pytest.raises(BadRequest, match="model_name: is not UTF-8"):
        messages.read_head(b"\x0a\x01\xff")


def test_a_model_that_is_named_twice_is_refused() -> None:
    """The head is read by the first name, protobuf takes the last: two readers could take different ones."""
    body = request("INT64", [1], raw=False).SerializeToString() + REQUEST(model_name="other").SerializeToString()
    assert messages.read_head(body).model == "m"
    assert str(refused(body)) == "model_name: the model is named twice"


def test_a_head_is_read_wherever_its_fields_stand() -> None:
    """First, as libraries write them, or last; an id counts as the request's own only where its place is certain."""
    made = request("INT64", [1], raw=False, model_version="3", id="i-1")
    body = made.SerializeToString()
    head = messages.read_head(body)
    assert (head.model, head.version, head.id) == ("m", "3", b"i-1")
    assert body[head.id_start : head.id_start + 3] == b"i-1"
    made.ClearField("model_name")
    behind = made.SerializeToString() + REQUEST(model_name="m").SerializeToString()
    assert messages.read_head(behind)[:3] == ("m", "3", None)
    assert messages.find_id(behind) == (0, None)
    doubled = REQUEST(model_name="m", id="a").SerializeToString() + REQUEST(id="b").SerializeToString()
    assert messages.read_head(doubled).id == b"a"
    made.ClearField("model_version")
    assert messages.parse_request(doubled + made.SerializeToString()).id == "i-1"


def test_parameters_are_the_values_that_json_has() -> None:
    """Of the request, of its outputs, and back; what has no form of its own is JSON text."""
    made = request("INT64", [1], raw=False)
    for name, kind, value in (
        ("b", "bool_param", True),
        ("i", "int64_param", -1),
        ("s", "string_param", "é"),
        ("d", "double_param", 0.5),
        ("u", "uint64_param", 2**64 - 1),
    ):
        setattr(made.parameters[name], kind, value)
    made.outputs.add(name="y").parameters["classification"].int64_param = 3
    parsed = messages.parse_request(made.SerializeToString(), whole=True)
    assert parsed.parameters == {"b": True, "i": -1, "s": "é", "d": 0.5, "u": 2**64 - 1}
    assert parsed.outputs is not None
    assert parsed.outputs[0].classification == 3
    assert parsed.members.outputs == {"y": {"parameters": {"classification": 3}}}
    tensor = OutputTensor("y", "INT64", (1,), bytes(8), False)
    members = ReplyMembers({"parameters": {**parsed.parameters, "l": [1]}}, {"y": {"parameters": {"k": "v"}}})
    reply = messages.parse_response(messages.render_response("m", "1", [tensor], members, raw=False))
    assert reply.parameters == {**parsed.parameters, "l": "[1]"}
    assert reply.members.outputs == {"y": {"parameters": {"k": "v"}}}


@pytest.mark.parametrize("raw", [True, False])
def test_responses_are_read_as_they_were_rendered(raw: bool) -> None:
    """Raw, or as contents; with FP16 among the outputs all are raw, since there is no other form."""
    tensors = [
        OutputTensor(name, name, (2,), raw_of(array, DATATYPES[name]), False)
        for name in messages.CONTENTS
        if (array := messages.parse_request(request(name, VALUES[name], raw=True).SerializeToString()).inputs[0].array)
        is not None
    ]
    body = messages.render_response("m", "2", tensors, None, raw=raw)
    reply = messages.parse_response(body + messages.id_field("ä" * 200))
    assert (reply.model, reply.version, reply.id) == ("m", "2", "ä" * 200)
    assert [raw_of(one.array, DATATYPES[one.datatype]) for one in reply.outputs] == [one.raw for one in tensors]
    assert bool(message("ModelInferResponse").FromString(body).raw_output_contents) is raw
    half = OutputTensor("h", "FP16", (1,), bytes(2), False)
    mixed = messages.render_response("m", "2", [*tensors, half], None, raw=False)
    assert len(message("ModelInferResponse").FromString(mixed).raw_output_contents) == len(tensors) + 1


def test_a_stream_wraps_responses_without_reading_them() -> None:
    """The bytes of a field: what a reader gets is the response."""
    body = messages.render_response("m", "1", [OutputTensor("y", "INT64", (40,), bytes(320), False)], None, raw=True)
    streamed = message("ModelStreamInferResponse").FromString(messages.stream_response(body))
    assert streamed.infer_response.SerializeToString() == body
    failed = message("ModelStreamInferResponse").FromString(messages.stream_error("why", "m", "7"))
    assert (failed.error_message, failed.infer_response.id) == ("why", "7")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_bytes_that_are_no_message_are_refused(data: st.DataObject) -> None:
    """A well-formed request with bytes changed, cut out or put in is read as another one or refused; nothing else."""
    kind = data.draw(st.sampled_from(sorted(messages.CONTENTS)))
    body = bytearray(request(kind, VALUES[kind], raw=data.draw(st.booleans()), id="abc").SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(body) - 1)))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    with contextlib.suppress(BadRequest, TooLarge):
        messages.find_id(bytes(body))
        messages.parse_request(bytes(body))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    """Whatever is sent."""
    for read in (messages.read_head, messages.parse_request, messages.parse_response):
        with contextlib.suppress(BadRequest, TooLarge):
            read(body)
