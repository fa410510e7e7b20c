"""Protobuf bytes of `ModelInfer` ↔ the same `Request`, `Response` and tensors that V2 over HTTP is parsed to. Pure.

`raw_input_contents` are the bytes of the binary extension and are read by the same function. Sources: the protocol's
`open_inference_grpc.proto`; Triton's `InferParameter` has doubles and unsigned integers besides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from foreseen.errors import BadInput, BadRequest
from foreseen.protocol.datatypes import DATATYPES, Datatype, elements
from foreseen.protocol.members import NO_MEMBERS, NO_REPLY_MEMBERS, Members, ReplyMembers, RequestMembers
from foreseen.protocol.open_inference import message
from foreseen.protocol.tensors import array_of_raw, checked_shape, datatype_of, raw_of
from foreseen.protocol.wire import (
    InputTensor,
    Request,
    Response,
    check_elements,
    check_tensors,
    wanted_output,
)
from foreseen.protocol.wire_render import OutputTensor
from foreseen.types import Array, WantedOutput

CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field that holds a tensor of a datatype that is not raw. FP16 and BF16 have none."""
_NAME, _VERSION, _ID = 0x0A, 0x12, 0x1A
"""Tags of a request's first fields: each a length and so many bytes."""
_INT64 = 2**63
REMEMBERED_BYTES = 64 * 1024
MAX_ID_BYTES = 127
"""A longer id is part of the body that it stands in."""


class MessageHead(NamedTuple):
    """The start of a request. `id` is None where it has none, or not where it is expected; `id_start` is its place."""

    model: str
    version: str | None
    id: bytes | None
    id_start: int


_last: tuple[bytes, MessageHead] = (b"", MessageHead("", None, None, 0))


def read_head(body: bytes) -> MessageHead:
    """The head of a message, read once although several ask for it: the last small one is remembered."""
    global _last  # noqa: PLW0603 - a pair that is replaced as a whole
    last, head = _last
    if body is last:
        return head
    head = _read_head(body)
    if len(body) <= REMEMBERED_BYTES:
        _last = body, head
    return head


def _read_head(body: bytes) -> MessageHead:
    """A request's model and version, without reading all of it where they stand first, as every library writes them.
    Raises BadRequest. (A later field of the same number would win: `parse_request` checks that there is none.)

    Fields are read in ascending order only: the place of an id then follows from the bytes before it."""
    found: dict[int, tuple[int, bytes]] = {}
    at = last = 0
    while at < len(body) and last < body[at] and body[at] in (_NAME, _VERSION, _ID):
        last = body[at]
        start, at = _delimited(body, at + 1)
        found[last] = (start, body[start:at])
    if _NAME not in found:
        request = read_message(message("ModelInferRequest"), body)
        return MessageHead(request.model_name, request.model_version or None, None, 0)
    start, own = found.get(_ID, (0, None))
    try:
        version = found[_VERSION][1].decode() if _VERSION in found else ""
        return MessageHead(found[_NAME][1].decode(), version or None, own or None, start)
    except UnicodeDecodeError:
        raise BadRequest("model_name: is not UTF-8") from None


def _delimited(body: bytes, at: int) -> tuple[int, int]:
    """Where a field's bytes start and end; its length, a varint, stands at `at`. Raises BadRequest."""
    length = shift = 0
    while at < len(body) and shift < 35:
        byte = body[at]
        length |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            if at + length > len(body):
                break
            return at, at + length
    raise BadRequest("body: is not a ModelInferRequest")


def parse_request(body: bytes, *, whole: bool = False) -> Request:
    """A `ModelInferRequest`. Its answer is `binary`, all of it, where the request was raw. `whole`: with the members
    that have no meaning here. Raises BadRequest or BadInput naming the field."""
    request, head = read_message(message("ModelInferRequest"), body), read_head(body)
    if (request.model_name, request.model_version or None) != (head.model, head.version):
        raise BadRequest("model_name: the model is named twice")
    if not request.inputs:
        raise BadInput("inputs: at least one is needed")
    check_tensors(request.inputs, "inputs")
    for i, one in enumerate(request.inputs):
        _no_shared_memory(one.parameters, f"inputs[{i}].parameters")
    raws = request.raw_input_contents
    if raws and len(raws) != len(request.inputs):
        raise BadInput(f"raw_input_contents: has {len(raws)} tensors, inputs has {len(request.inputs)}")
    inputs = tuple(_input(one, f"inputs[{i}]", raws[i] if raws else None) for i, one in enumerate(request.inputs))
    parameters = _values(request.parameters, "parameters")
    outputs = tuple(_wanted(one, f"outputs[{i}]") for i, one in enumerate(request.outputs))
    if len({one.name for one in outputs}) != len(outputs):
        raise BadRequest("outputs: two have the same name")
    raw = bool(raws) or not any(one.HasField("contents") for one in request.inputs)
    members = _members(request) if whole else NO_MEMBERS
    return Request(inputs, request.id or None, parameters, outputs or None, raw, members)


def render_response(
    model: str, version: str, outputs: Sequence[OutputTensor], members: ReplyMembers | None, *, raw: bool
) -> bytes:
    """A `ModelInferResponse` without an id. It is raw, too, where an output has no other form."""
    raw = raw or any(output.datatype not in CONTENTS for output in outputs)
    response = message("ModelInferResponse")(model_name=model, model_version=version)
    if members is not None:
        _set_values(response.parameters, members.top.get("parameters", {}))
    for output in outputs:
        tensor = response.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        if members is not None:
            _set_values(tensor.parameters, members.outputs.get(output.name, {}).get("parameters", {}))
        if raw:
            response.raw_output_contents.append(output.raw)
        else:
            datatype = DATATYPES[output.datatype]
            array = array_of_raw(output.raw, datatype, output.shape, f"outputs.{output.name}")
            getattr(tensor.contents, CONTENTS[output.datatype]).extend(array.ravel().tolist())
    content: bytes = response.SerializeToString()
    return content


def ticket_response(model: str, version: str, ticket: str, state: str) -> bytes:
    """A `ModelInferResponse` without outputs, for a request that is answered later."""
    response = message("ModelInferResponse")(model_name=model, model_version=version)
    _set_values(response.parameters, {"prediction": ticket, "state": state})
    content: bytes = response.SerializeToString()
    return content


def id_field(request_id: str) -> bytes:
    """The field of an id, to stand anywhere in a response: messages joined are one message."""
    content = request_id.encode()
    return bytes((_ID,)) + varint(len(content)) + content


def stream_response(body: bytes) -> bytes:
    """A `ModelStreamInferResponse` of a response's bytes."""
    return b"\x12" + varint(len(body)) + body


def stream_error(text: str, model: str, request_id: str) -> bytes:
    """A `ModelStreamInferResponse` of an error; the id says of which request."""
    failed = message("ModelStreamInferResponse")(error_message=text)
    failed.infer_response.model_name, failed.infer_response.id = model, request_id
    content: bytes = failed.SerializeToString()
    return content


def render_request(
    model: str,
    inputs: Sequence[tuple[str, str, Array]],
    parameters: Members,
    request_id: str,
    members: RequestMembers = NO_MEMBERS,
) -> bytes:
    """A raw `ModelInferRequest` of (name, datatype, array), as it is sent to another server. Of `members` all but its
    parameters; what only JSON has has no place here. Raises BadRequest."""
    request = message("ModelInferRequest")(model_name=model, id=request_id)
    _set_values(request.parameters, parameters)
    for name, datatype, array in inputs:
        tensor = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        _set_values(tensor.parameters, members.inputs.get(name, {}).get("parameters", {}))
        request.raw_input_contents.append(raw_of(array, DATATYPES[datatype]))
    for name, more in members.outputs.items():
        _set_values(request.outputs.add(name=name).parameters, more.get("parameters", {}))
    content: bytes = request.SerializeToString()
    return content


def find_id(body: bytes, header_length: int | None = None) -> tuple[int, bytes | None]:
    """The place of a request's id and its bytes, where it stands first and is short."""
    head = read_head(body)
    if head.id is None or len(head.id) > MAX_ID_BYTES or not head.id.isascii():
        return 0, None
    return head.id_start, head.id


def parse_response(body: bytes) -> Response:
    """Another server's `ModelInferResponse`. Raises BadRequest or BadInput: the caller says whose fault that is."""
    response = read_message(message("ModelInferResponse"), body)
    raws = response.raw_output_contents
    if raws and len(raws) != len(response.outputs):
        raise BadInput(f"raw_output_contents: has {len(raws)} tensors, outputs has {len(response.outputs)}")
    check_tensors(response.outputs, "outputs")
    outputs = tuple(_tensor(one, f"outputs[{i}]", raws[i] if raws else None) for i, one in enumerate(response.outputs))
    parameters = _values(response.parameters, "parameters")
    more = {one.name: {"parameters": _values(one.parameters, "parameters")} for one in response.outputs}
    of_outputs = {name: one for name, one in more.items() if one["parameters"]}
    kept = NO_REPLY_MEMBERS
    if parameters or of_outputs:
        kept = ReplyMembers({"parameters": parameters} if parameters else {}, of_outputs)
    return Response(response.model_name, response.model_version or None, response.id or None, parameters, outputs, kept)


def read_message(kind: Any, body: bytes) -> Any:
    """A message of its bytes. Raises BadRequest."""
    from google.protobuf.message import DecodeError

    try:
        return kind.FromString(body)
    except DecodeError:
        raise BadRequest(f"body: is not a {kind.DESCRIPTOR.name}") from None


def _input(tensor: Any, field: str, raw: bytes | None) -> InputTensor:
    if tensor.datatype == "BYTES":
        check_elements(checked_shape(tensor.shape, field), field)
    return _tensor(tensor, field, raw)


def _tensor(tensor: Any, field: str, raw: bytes | None) -> InputTensor:
    datatype, shape = datatype_of(tensor.datatype, field), checked_shape(tensor.shape, field)
    if raw is None:
        return InputTensor(tensor.name, tensor.datatype, _array(tensor.contents, datatype, shape, field))
    if tensor.HasField("contents") and tensor.contents.ListFields():
        raise BadInput(f"{field}: has both contents and raw contents")
    return InputTensor(tensor.name, tensor.datatype, array_of_raw(raw, datatype, shape, field))


def _array(contents: Any, datatype: Datatype, shape: tuple[int, ...], field: str) -> Array:
    """A tensor of its contents, which have to be in the field of its datatype."""
    own, count = CONTENTS.get(datatype.name), elements(shape)
    for given, _ in contents.ListFields():
        if given.name != own:
            wanted = "raw contents" if own is None else own
            raise BadInput(f"{field}.contents.{given.name}: {datatype.name} is in {wanted}")
    values = () if own is None else getattr(contents, own)
    if len(values) != count:
        raise BadInput(f"{field}.contents: has {len(values)} elements, shape {list(shape)} takes {count}")
    if datatype.kind == "s":
        array = np.empty(count, object)
        array[:] = list(values)
        return array.reshape(shape)
    try:
        return np.fromiter(values, datatype.dtype, count).reshape(shape)
    except OverflowError:
        raise BadInput(f"{field}.contents.{own}: an integer does not fit {datatype.name}") from None


def _wanted(output: Any, field: str) -> WantedOutput:
    return wanted_output(output.name, _values(output.parameters, f"{field}.parameters"), field)


def _members(request: Any) -> RequestMembers:
    """Parameters of inputs and requested outputs."""
    return RequestMembers(inputs=_by_name(request.inputs, "inputs"), outputs=_by_name(request.outputs, "outputs"))


def _by_name(tensors: Iterable[Any], part: str) -> dict[str, Members]:
    given = {one.name: _values(one.parameters, f"{part}.{one.name[:64]}.parameters") for one in tensors}
    return {name: {"parameters": values} for name, values in given.items() if values}


def _no_shared_memory(parameters: Any, field: str) -> None:
    if any(name.startswith("shared_memory") for name in parameters):
        raise BadRequest(f"{field}: shared memory is not supported")


def _values(parameters: Any, field: str) -> dict[str, Any]:
    """Parameters as JSON has them. Raises BadRequest."""
    values: dict[str, Any] = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise BadRequest(f"{field}.{name[:64]}: has no value")
        values[name] = getattr(parameter, choice)
    return values


def _set_values(parameters: Any, values: Mapping[str, Any]) -> None:
    """Parameters of JSON values; a list or an object is its JSON text, since there is no other form."""
    for name, value in values.items():
        match value:
            case bool():
                parameters[name].bool_param = value
            case int() if -_INT64 <= value < _INT64:
                parameters[name].int64_param = value
            case int() if value >= 0:
                parameters[name].uint64_param = value
            case float():
                parameters[name].double_param = value
            case str():
                parameters[name].string_param = value
            case _:
                parameters[name].string_param = orjson.dumps(value).decode()


def varint(number: int) -> bytes:
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)
