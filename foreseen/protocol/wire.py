"""Open Inference Protocol V2 bodies ↔ tensors, in JSON and binary form. No I/O.

Sources: kserve/open-inference-protocol `inference_rest.md`; triton-inference-server/server
`docs/protocol/extension_binary_data.md` and `extension_classification.md`.

A body accepted here is well-formed; `prepare` checks it against the model's signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
from msgspec import UNSET, Struct

from foreseen.errors import BadInput, BadRequest, TooLarge
from foreseen.gc_freeze import paused
from foreseen.protocol.datatypes import DATATYPES, elements
from foreseen.protocol.json_parts import LONG_BYTES, free
from foreseen.protocol.json_size import MAX_ELEMENTS
from foreseen.protocol.members import (
    NO_MEMBERS,
    NO_REPLY_MEMBERS,
    ReplyMembers,
    RequestMembers,
    reply_members,
    request_members,
)
from foreseen.protocol.strict_json import load_json, load_plain_json
from foreseen.protocol.tensors import (
    Written,
    array_of_json,
    array_of_raw,
    checked_shape,
    datatype_of,
)
from foreseen.types import Array, WantedOutput

_T = TypeVar("_T")

MAX_TENSORS = 1024
"""Inputs of a request or outputs of a reply; each is an object of its own, however little it holds."""


class InputTensor(Struct, frozen=True):
    """One tensor as it came; `array` has the datatype's dtype and the stated shape. BYTES are objects of `bytes`."""

    name: str
    datatype: str
    array: Array


class Request(Struct, frozen=True):
    """An inference request, well-formed but not yet held against any signature."""

    inputs: tuple[InputTensor, ...]
    id: str | None = None
    parameters: dict[str, Any] = {}
    outputs: tuple[WantedOutput, ...] | None = None
    binary: bool = False
    """Whether outputs that do not say otherwise are wanted as binary tensors."""
    members: RequestMembers = NO_MEMBERS
    """Its other members, if they were asked for."""


class Response(Struct, frozen=True):
    """An inference response of a V2 server."""

    model: str
    version: str | None
    id: str | None
    parameters: dict[str, Any]
    outputs: tuple[InputTensor, ...]
    members: ReplyMembers = NO_REPLY_MEMBERS
    """Its members beside tensors, if they were asked for."""


class _TensorDocument(Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: Any = UNSET


class _RequestedOutput(Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _RequestBody(Struct):
    inputs: list[_TensorDocument]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[_RequestedOutput] | None = None


class _OnlyId(Struct):
    id: str | None = None


_ID = msgspec.json.Decoder(_OnlyId)


class _ResponseBody(Struct):
    model_name: str
    outputs: list[_TensorDocument]
    model_version: str | None = None
    id: str | None = None
    parameters: dict[str, Any] | None = None


# msgspec reads a class's annotations when it first decodes one, and another thread that decodes one meanwhile reads a
# half-made table: a segmentation fault (seen, with 0.22). Making a decoder reads them now, while there is one thread.
_READ = [msgspec.json.Decoder(kind) for kind in (_RequestBody, _ResponseBody)]


def parse_request(body: bytes, header_length: int | None, *, whole: bool = False) -> Request:
    """An `/infer` body. `header_length` is the `Inference-Header-Content-Length`, None where the header is absent.
    `whole`: with the members that have no meaning here.

    Raises BadRequest or BadInput. A `header_length` of 0 (raw binary) needs the signature: see `parse_raw`.
    """
    envelope, tail = _cut(body, header_length)
    if len(envelope) <= LONG_BYTES:
        return _request(load_json(envelope), envelope, tail, whole=whole)
    with paused():
        plain = load_json(envelope)
        try:
            return _request(plain, envelope, tail, whole=whole)
        finally:
            _free_data(plain)


def _free_data(plain: Any) -> None:
    """Data is in arrays by now; other members may be part of the request."""
    listed = plain.get("inputs") if type(plain) is dict else None
    if type(listed) is list and len(listed) > MAX_TENSORS:  # refused
        free(listed)
    elif type(listed) is list:
        for tensor in listed:
            free(tensor.get("data") if type(tensor) is dict else tensor)


def _request(plain: Any, envelope: bytes, tail: memoryview | None, *, whole: bool) -> Request:
    document = _convert(plain, _RequestBody)
    inputs = _tensors(document.inputs, "inputs", tail, envelope, bounded=True)
    if not inputs:
        raise BadInput("inputs: at least one is needed")
    parameters = document.parameters or {}
    wanted = [wanted_output(o.name, o.parameters or {}, f"outputs[{i}]") for i, o in enumerate(document.outputs or ())]
    if len({one.name for one in wanted}) != len(wanted):
        raise BadRequest("outputs: two have the same name")
    return Request(
        inputs,
        document.id or None,  # perf_analyzer sends "" where it means none
        parameters,
        tuple(wanted) or None,
        _flag(parameters, "binary_data_output", "parameters") or False,
        request_members(plain) if whole else NO_MEMBERS,
    )


def request_id(envelope: bytes) -> str | None:
    """The `id` of a request that is known to be well-formed, past everything else of it."""
    return _ID.decode(envelope).id


def parse_raw(body: bytes, name: str, datatype: str, shape: Sequence[int]) -> Request:
    """A raw binary request: the body is the only input's bytes, all outputs are wanted as binary.

    `shape` is the signature's, with -1 for open dimensions, of which there may be one; a BYTES input is one element.
    """
    known = DATATYPES[datatype]
    if list(shape).count(-1) > 1 or (known.kind == "s" and any(dim not in (1, -1) for dim in shape)):
        raise BadRequest(f"inputs.{name}: a raw binary request cannot hold an input of shape {list(shape)}")
    if known.kind == "s":
        array = np.empty([1] * len(shape), object)
        array[(0,) * len(shape)] = body
        return Request((InputTensor(name, datatype, array),), binary=True)
    fixed = elements(tuple(dim for dim in shape if dim != -1)) * known.size
    rows = len(body) // fixed if fixed else 0
    full = tuple(rows if dim == -1 else dim for dim in shape)
    return Request((InputTensor(name, datatype, array_of_raw(body, known, full, f"inputs.{name}")),), binary=True)


def parse_response(body: bytes, header_length: int | None, *, ours: bool = False) -> Response:
    """A V2 server's reply to `/infer`. Raises BadRequest or BadInput, which the caller maps. `ours`: a reply of our own
    model process, which has neither duplicate nor unknown members."""
    envelope, tail = _cut(body, header_length)
    plain = load_plain_json(envelope) if ours else load_json(envelope, bounded=False)
    document = _convert(plain, _ResponseBody)
    outputs = _tensors(document.outputs, "outputs", tail, envelope, bounded=False)
    members = NO_REPLY_MEMBERS if ours else reply_members(plain)
    return Response(
        document.model_name, document.model_version, document.id, document.parameters or {}, outputs, members
    )


def _cut(body: bytes, header_length: int | None) -> tuple[bytes, memoryview | None]:
    """The JSON part, and the binary tensors behind it where the request says that there may be some."""
    if header_length is None:
        return body, None
    if not 0 < header_length <= len(body):
        raise BadRequest(f"Inference-Header-Content-Length: is {header_length}, the body has {len(body)} bytes")
    return body[:header_length], memoryview(body)[header_length:]


def _convert(document: Any, kind: type[_T]) -> _T:
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        raise BadRequest(f"{where.strip('`.') or 'body'}: {what[:1].lower()}{what[1:]}") from None


def _tensors(
    listed: list[_TensorDocument], part: str, tail: memoryview | None, envelope: bytes, *, bounded: bool
) -> tuple[InputTensor, ...]:
    """The tensors of a body: JSON data of the envelope, or binary data in the order of listing. `bounded`: in their
    elements."""
    check_tensors(listed, part)
    at, tensors = 0, []
    for index, tensor in enumerate(listed):
        field = f"{part}[{index}]"
        datatype = datatype_of(tensor.datatype, field)
        shape = checked_shape(tensor.shape, field)
        size = _binary_size(tensor, field)
        if size is None and tensor.data is not UNSET:
            written = _written(envelope, part, index) if datatype.kind == "i" else None
            array = array_of_json(tensor.data, datatype, shape, field, written, missing=part == "inputs")
        elif tail is None:
            what = (
                "binary_data_size needs an Inference-Header-Content-Length" if size is not None else "data is missing"
            )
            raise BadInput(f"{field}: {what}")
        else:
            if size is None:  # it may be left out where it follows from the shape, as OpenVINO's server allows
                size = elements(shape) * datatype.size if datatype.size else len(tail) - at
            if at + size > len(tail):
                raise BadInput(f"{field}: its {size} bytes of binary data end beyond the body")
            if datatype.kind == "s" and bounded:
                check_elements(shape, field)
            array = array_of_raw(tail[at : at + size], datatype, shape, field)
            at += size
        tensors.append(InputTensor(tensor.name, tensor.datatype, array))
    if tail is not None and at != len(tail):
        raise BadRequest(f"{part}: {len(tail) - at} bytes of binary data belong to no tensor")
    return tuple(tensors)


def check_tensors(listed: Sequence[Any], part: str) -> None:
    """Raises BadInput for too many tensors, or two of one name."""
    if len(listed) > MAX_TENSORS:  # before anything of that size is made, as the names
        raise BadInput(f"{part}: has {len(listed)} tensors, at most {MAX_TENSORS} are allowed")
    if len({tensor.name for tensor in listed}) != len(listed):
        raise BadInput(f"{part}: two have the same name")


def check_elements(shape: tuple[int, ...], field: str) -> None:
    """Raises TooLarge for more BYTES elements than a request may have."""
    if elements(shape) > MAX_ELEMENTS:
        raise TooLarge(f"{field}: has more than {MAX_ELEMENTS} BYTES elements; split the request")


def _written(envelope: bytes, part: str, index: int) -> Written:
    return Written(envelope, lambda document: document[part][index]["data"])


def _binary_size(tensor: _TensorDocument, field: str) -> int | None:
    parameters = tensor.parameters or {}
    if any(name.startswith("shared_memory") for name in parameters):
        raise BadRequest(f"{field}.parameters: shared memory is not supported")
    size = parameters.get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size < 0:
        raise BadInput(f"{field}.parameters.binary_data_size: must be a number of bytes")
    if tensor.data is not UNSET:
        raise BadInput(f"{field}: has both data and binary_data_size")
    return size


def wanted_output(name: str, parameters: dict[str, Any], field: str) -> WantedOutput:
    """A requested output by its parameters. Raises BadRequest."""
    classes = parameters.get("classification")
    if classes is not None and (type(classes) is not int or classes < 0):
        raise BadRequest(f"{field}.parameters.classification: must be a number of classes")
    if any(name.startswith("shared_memory") for name in parameters):
        raise BadRequest(f"{field}.parameters: shared memory is not supported")
    return WantedOutput(name, _flag(parameters, "binary_data", f"{field}.parameters"), classes or None)


def _flag(parameters: dict[str, Any], name: str, field: str) -> bool | None:
    value = parameters.get(name)
    if value is not None and type(value) is not bool:
        raise BadRequest(f"{field}.{name}: must be true or false")
    return value
