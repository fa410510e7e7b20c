"""Decodes V2 and V1 bodies: tensors, parameters, output options. Pure.

V1 sources: TensorFlow Serving's REST API (`instances`, columnar `inputs`, `b64`) and KServe's V1 protocol.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

from msgspec import Struct, structs

from foreseen.errors import BadInput, BadRequest
from foreseen.gc_freeze import paused
from foreseen.modelspec.manifest import ClientInput, Manifest, wire_shape
from foreseen.modelspec.parameters import counting, in_sequence, lane_of
from foreseen.modelspec.prepare import Preparer
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.json_parts import LONG_BYTES, flattened, free
from foreseen.protocol.members import naming
from foreseen.protocol.strict_json import load_json
from foreseen.protocol.tensors import Written, array_of_json, checked_shape, object_array
from foreseen.protocol.wire import InputTensor, Request, parse_raw, parse_request
from foreseen.proxy.predict.dialects.render import wanted_outputs
from foreseen.types import Lane, OutputOptions, Row


class DecodedRequest(Struct, frozen=True):
    """A decoded request. `parameters` is canonical JSON of those that may change the answer, empty for none."""

    inputs: tuple[InputTensor, ...]
    output_options: OutputOptions
    parameters: bytes = b""
    sequence: bool = False
    """Part of a stateful sequence: not to be cached."""
    timeout_seconds: float | None = None
    lane: Lane = "online"
    ids: tuple[tuple[int, ...], ...] | None = None
    """Token ids of every row, where they were given in place of text."""
    most_second_tokens: int | None = None
    """What the second texts of pairs are cut to."""


def prepared(decoded: DecodedRequest, preparer: Preparer) -> tuple[DecodedRequest, Sequence[Row]]:
    """The rows of a request; and the request, with the token ids of its rows counted where its reply says so."""
    if decoded.ids is None:
        rows = preparer.rows(decoded.inputs, decoded.most_second_tokens)
    else:
        rows = preparer.id_rows(decoded.ids)
    options = decoded.output_options
    if options.embedding is None and options.scores is None:
        return decoded, rows
    tokens = preparer.token_count(rows)
    if options.embedding is not None:
        options = structs.replace(options, embedding=structs.replace(options.embedding, tokens=tokens))
    if options.scores is not None:
        options = structs.replace(options, scores=structs.replace(options.scores, tokens=tokens))
    return structs.replace(decoded, output_options=options), rows


def decode_v2(body: bytes, header_length: int | None, manifest: Manifest) -> DecodedRequest:
    """An `/infer` body. Raises BadRequest or BadInput naming the field."""
    whole = manifest.upstream is not None
    request = _raw(body, manifest) if header_length == 0 else parse_request(body, header_length, whole=whole)
    return decoded_v2(request, OutputOptions("v2", request.id, request.outputs, request.binary), manifest)


def decoded_v2(request: Request, output_options: OutputOptions, manifest: Manifest) -> DecodedRequest:
    """A request of V2, in whichever encoding it came. Raises BadRequest."""
    wanted_outputs(manifest, output_options)  # an unknown output is refused before anything is asked
    parameters, members = request.parameters, request.members
    if manifest.outputs == "requested" and request.outputs:
        members = naming(members, [wanted.name for wanted in request.outputs])
    return DecodedRequest(
        request.inputs,
        output_options,
        counting(parameters, manifest, members),
        in_sequence(parameters),
        _timeout(parameters),
        lane_of(parameters),
    )


def decode_v1(body: bytes, manifest: Manifest) -> DecodedRequest:
    """A `:predict` body: row `instances` or columnar `inputs`. Raises BadRequest or BadInput naming the field."""
    if len(body) <= LONG_BYTES:
        return _decoded_v1(load_json(body), body, manifest)
    with paused():
        document = load_json(body)
        try:
            return _decoded_v1(document, body, manifest)
        finally:
            free(document)


def _decoded_v1(document: Any, body: bytes, manifest: Manifest) -> DecodedRequest:
    if not isinstance(document, dict):
        raise BadRequest("body: expected an object with instances or inputs")
    if ("instances" in document) == ("inputs" in document):
        raise BadRequest("body: give either instances (by row) or inputs (by column)")
    specs = manifest.seen.inputs
    if "instances" in document and not manifest.model.has_rows:
        raise BadRequest("instances: this model takes whole requests; give inputs (by column), or ask it over V2")
    options, columns = OutputOptions("v1" if "instances" in document else "v1-columns"), _columns(document, specs)
    try:
        tensors = tuple(
            _v1_tensor(spec, columns[spec.name], _written(body, spec, specs)) for spec in specs if spec.name in columns
        )
    finally:
        free(columns)
    return DecodedRequest(tensors, options)


def _columns(document: dict[str, Any], specs: tuple[ClientInput, ...]) -> dict[str, list[Any]]:
    if "instances" in document:
        return _columns_of_instances(document["instances"], specs)
    return _columns_of_inputs(document["inputs"], specs)


def _written(body: bytes, spec: ClientInput, specs: tuple[ClientInput, ...]) -> Written:
    return Written(body, lambda document: _columns(document, specs)[spec.name])


def _raw(body: bytes, manifest: Manifest) -> Request:
    specs = manifest.seen.inputs
    if len(specs) != 1:
        raise BadRequest(f"a raw binary request is for models with one input; this one has {len(specs)}")
    return parse_raw(body, specs[0].name, specs[0].datatype, wire_shape(specs[0].shape))


def _timeout(parameters: dict[str, Any]) -> float | None:
    """The `timeout` parameter, microseconds; 0 means none (Triton)."""
    value = parameters.get("timeout")
    if value is None:
        return None
    if type(value) is not int or value < 0:
        raise BadRequest("parameters.timeout: must be a number of microseconds")
    return value / 1e6 if value else None


def _columns_of_instances(instances: Any, specs: tuple[ClientInput, ...]) -> dict[str, list[Any]]:
    if type(instances) is not list:
        raise BadRequest("instances: must be a list")
    names = {spec.name for spec in specs}
    needed = {spec.name for spec in specs if not (spec.optional or spec.ignore)}
    columns: dict[str, list[Any]] = {}
    for index, instance in enumerate(instances):
        named = type(instance) is dict and instance.keys() != {"b64"}
        if named and not needed <= instance.keys() <= names:
            raise BadInput(f"instances[{index}]: must have exactly {', '.join(sorted(names))}")
        if not named and len(specs) != 1:
            raise BadInput(f"instances[{index}]: must be an object of {', '.join(sorted(names))}")
        row = instance if named else {specs[0].name: instance}
        if index == 0:
            columns = {name: [] for name in row}
        if row.keys() != columns.keys():
            raise BadInput(f"instances[{index}]: must have the inputs of the first, {', '.join(sorted(columns))}")
        for name, value in row.items():
            columns[name].append(value)
    return columns or {spec.name: [] for spec in specs}


def _columns_of_inputs(inputs: Any, specs: tuple[ClientInput, ...]) -> dict[str, list[Any]]:
    columns = inputs if type(inputs) is dict else {specs[0].name: inputs}
    needed = {spec.name for spec in specs if not (spec.optional or spec.ignore)}
    if not needed <= columns.keys() <= {spec.name for spec in specs}:
        raise BadInput(f"inputs: must have exactly {', '.join(sorted(spec.name for spec in specs))}")
    for name, column in columns.items():
        if type(column) is not list:
            raise BadInput(f"inputs.{name}: must be a list")
    return columns


def _v1_tensor(spec: ClientInput, column: list[Any], written: Written) -> InputTensor:
    """V1 states no shapes: they are read off the first elements, and the rest must agree."""
    field, datatype = f"inputs.{spec.name}", DATATYPES[spec.datatype]
    shape, level = [], column
    for depth, dim in enumerate(wire_shape(spec.shape)):
        if type(level) is not list and level is not None:
            shown = ", ".join(map(str, spec.shape))
            raise BadInput(f"{field}: is a list of depth {depth}, its shape [{shown}] needs depth {len(spec.shape)}")
        shape.append(len(level) if type(level) is list else 0)
        level = level[0] if type(level) is list and level else [None] * max(dim, 0)
    if not column:
        shape = [0, *(max(dim, 0) for dim in wire_shape(spec.shape)[1:])]
    checked = checked_shape(shape, field)
    if datatype.kind != "s":
        array = array_of_json(column, datatype, checked, field, written, missing=spec.nonfinite)
        return InputTensor(spec.name, spec.datatype, array)
    flat: list[Any] = column
    for size in checked[1:]:
        if any(type(part) is not list or len(part) != size for part in flat):
            raise BadInput(f"{field}: is ragged, or not nested as the model's input is")
        flat = flattened(flat)
    array = object_array([_bytes_of(item, field) for item in flat])
    return InputTensor(spec.name, spec.datatype, array.reshape(checked))


def _bytes_of(value: Any, field: str) -> bytes:
    """A V1 string, or the bytes of `{"b64": …}`."""
    if type(value) is str:
        return value.encode()
    if type(value) is dict and value.keys() == {"b64"} and type(value["b64"]) is str:
        try:
            return base64.b64decode(value["b64"], validate=True)
        except (binascii.Error, ValueError):
            raise BadInput(f"{field}: b64 is not base64") from None
    raise BadInput(f'{field}: takes strings or {{"b64": "…"}} only')
