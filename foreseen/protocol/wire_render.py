"""Tensors → V2 bodies: requests to a model, responses to a client. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from msgspec import Struct

from foreseen.protocol.datatypes import DATATYPES, elements
from foreseen.protocol.members import (
    NO_MEMBERS,
    Members,
    ReplyMembers,
    RequestMembers,
)
from foreseen.protocol.tensors import (
    json_of_raw,
    raw_of,
)
from foreseen.types import Array


class OutputTensor(Struct, frozen=True):
    """One tensor to render: `raw` is little-endian and row-major, BYTES elements carry a 4-byte length each."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes
    binary: bool
    text: bytes | None = None
    """Its data as JSON, where that is at hand."""


def render_request(
    inputs: Sequence[tuple[str, str, Array]],
    parameters: Members,
    request_id: str | None = None,
    members: RequestMembers = NO_MEMBERS,
) -> tuple[bytes, int]:
    """A request of (name, datatype, array) with every tensor binary: body, header length. Of `members` all but its
    parameters."""
    heads, tails = [], []
    for name, datatype, array in inputs:
        raw = raw_of(array, DATATYPES[datatype])
        more = members.inputs.get(name, {})
        head = {**more, "name": name, "shape": array.shape, "datatype": datatype}
        heads.append({**head, "parameters": {**more.get("parameters", {}), "binary_data_size": len(raw)}})
        tails.append(raw)
    document = {**members.top, "parameters": {**parameters, "binary_data_output": True}, "inputs": heads}
    if members.outputs:
        document["outputs"] = [{**more, "name": name} for name, more in members.outputs.items()]
    if request_id is not None:
        document["id"] = request_id
    header = orjson.dumps(document)
    return b"".join((header, *tails)), len(header)


def render_json_request(
    inputs: Sequence[tuple[str, str, Array]],
    parameters: Members,
    request_id: str | None = None,
    members: RequestMembers = NO_MEMBERS,
) -> bytes:
    """The same with every tensor as JSON. Raises BadRequest where BYTES are not UTF-8."""
    tensors = []
    for name, datatype, array in inputs:
        known = DATATYPES[datatype]
        data = json_of_raw(raw_of(array, known), known, array.size, f"inputs.{name}")
        more = members.inputs.get(name, {})
        tensors.append({**more, "name": name, "shape": array.shape, "datatype": datatype, "data": data})
    document = {**members.top, "inputs": tensors}
    if members.outputs:
        document["outputs"] = [{**more, "name": name} for name, more in members.outputs.items()]
    if parameters:
        document["parameters"] = parameters
    if request_id is not None:
        document["id"] = request_id
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def render_response(
    model: str,
    version: str,
    request_id: str | None,
    outputs: Sequence[OutputTensor],
    parameters: dict[str, Any] | None = None,
    members: ReplyMembers | None = None,
) -> tuple[bytes, int | None]:
    """A response: body, and header length if any tensor is binary. `members` is what else it is to hold.

    Data is emitted flat (Triton's C++ client sizes its buffers from the outer array). Raises BadRequest where BYTES
    that are not UTF-8 are wanted as JSON.
    """
    document: dict[str, Any] = {"model_name": model, "model_version": version}
    if request_id is not None:
        document["id"] = request_id
    if parameters:
        document["parameters"] = parameters
    of_outputs: Mapping[str, Members] = {}
    if members is not None:
        document = {**document, **members.top}
        of_outputs = members.outputs
    heads, tails = [], []
    for output in outputs:
        head: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
        if of_outputs:
            head = {**head, **of_outputs.get(output.name, {})}
        if output.binary:
            head["parameters"] = {**head.get("parameters", {}), "binary_data_size": len(output.raw)}
            tails.append(output.raw)
        elif output.text is not None:
            head["data"] = orjson.Fragment(output.text)
        else:
            datatype, field = DATATYPES[output.datatype], f"outputs.{output.name}"
            head["data"] = json_of_raw(output.raw, datatype, elements(output.shape), field)
        heads.append(head)
    document["outputs"] = heads
    header = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not any(output.binary for output in outputs):
        return header, None
    return b"".join((header, *tails)), len(header)
