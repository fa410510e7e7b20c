"""Renders V2 and V1 replies from predictions: rows in order, the requested outputs in the requested encoding.

Output selection, encoding, classification and dialect are applied to the stored tensors here, so none of them is part
of a key. Only the echoed id is specific to a request: a hit's body equals the miss's.
"""

from __future__ import annotations

import base64
import heapq
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from msgspec import Struct, structs

from foreseen.errors import BadRequest, ModelUnavailable
from foreseen.modelspec.manifest import ClientOutput, Manifest, wire_shape
from foreseen.protocol.datatypes import DATATYPES, elements
from foreseen.protocol.members import ReplyMembers, reply_of
from foreseen.protocol.tensors import array_of_raw, raw_of
from foreseen.protocol.wire_render import OutputTensor, render_response
from foreseen.types import Array, OutputOptions, Prediction, WantedOutput

MAX_CLASSES = 1_000_000
VIEW_BYTES = 2**20
"""A body of so many bytes is not copied where it is kept in two parts."""
_NUMPY = orjson.OPT_SERIALIZE_NUMPY


class RenderedBody(Struct, frozen=True):
    """A reply's body in two parts: the request's id goes between them, where it has one. `json_length` is that of the
    JSON part without an id, None where no binary tensors follow; `id_format` takes the inside of a JSON string."""

    before: bytes
    after: bytes | memoryview
    """A large body is not cut: this is a view of all of it, from behind `before`."""
    json_length: int | None
    id_format: bytes = b',"id":"%b"'

    def with_id(self, request_id: str | None) -> tuple[bytes, int | None]:
        """The body, and the length of its JSON part where binary tensors follow."""
        if request_id is None and type(self.after) is memoryview:
            return self.after.obj, self.json_length  # type: ignore[return-value] # the bytes of the whole body
        if request_id is None:
            return b"".join((self.before, self.after)), self.json_length
        member = self.id_format % orjson.dumps(request_id)[1:-1]
        return b"".join((self.before, member, self.after)), self.json_length and self.json_length + len(member)


def render_v2(manifest: Manifest, predictions: Sequence[Prediction], options: OutputOptions) -> RenderedBody:
    """The body of an `/infer` reply. Raises BadRequest."""
    outputs, members = tensors_of(manifest, predictions, options)
    body, length = render_response(manifest.name, manifest.version, None, outputs, members=members)
    before = v2_start(manifest)
    assert body.startswith(before)
    after = body[len(before) :] if len(body) < VIEW_BYTES else memoryview(body)[len(before) :]
    return RenderedBody(before, after, length)


def tensors_of(
    manifest: Manifest, predictions: Sequence[Prediction], options: OutputOptions
) -> tuple[list[OutputTensor], ReplyMembers | None]:
    """The tensors of a reply of V2, and what an upstream's reply held beside them. Raises BadRequest."""
    outputs = [_tensor(manifest, predictions, wanted, options) for wanted in _there(manifest, predictions, options)]
    return outputs, _members(manifest, predictions, outputs)


def v2_start(manifest: Manifest) -> bytes:
    """What every `/infer` reply begins with; its id follows."""
    return orjson.dumps({"model_name": manifest.name, "model_version": manifest.version})[:-1]


def wanted_outputs(manifest: Manifest, options: OutputOptions) -> tuple[WantedOutput, ...]:
    """What is to be rendered: what was asked for, or all of it. Raises BadRequest for an unknown output."""
    known = {output.name for output in manifest.seen.outputs}
    if options.outputs is None:
        return tuple(WantedOutput(output.name) for output in manifest.seen.outputs)
    for wanted in options.outputs:
        if wanted.name not in known:
            raise BadRequest(f"outputs.{wanted.name[:64]}: there is no such output; the model has {', '.join(known)}")
    return options.outputs


def _there(manifest: Manifest, predictions: Sequence[Prediction], options: OutputOptions) -> tuple[WantedOutput, ...]:
    """What is wanted, of what was answered: an upstream may answer with some of its outputs. Raises ModelUnavailable
    where one that was named is missing: that it has to be asked for has just been found out."""
    wanted = wanted_outputs(manifest, options)
    if manifest.upstream is None or not predictions:
        return wanted
    names = set.intersection(*({head.name for head in one.outputs} for one in predictions))
    missing = [one.name for one in wanted if one.name not in names]
    if missing and options.outputs is not None:
        raise ModelUnavailable(f"outputs.{missing[0]}: the model returns it only if requested; send the request again")
    return tuple(one for one in wanted if one.name in names)


def _members(
    manifest: Manifest, predictions: Sequence[Prediction], outputs: Sequence[OutputTensor]
) -> ReplyMembers | None:
    """What an upstream's reply held beside its tensors; not of an output that is rendered as something else here."""
    if manifest.upstream is None:
        return None
    members = reply_of(predictions)
    if members is None or not members.outputs:
        return members
    datatypes = {head.name: head.datatype for head in predictions[0].outputs}
    same = {output.name for output in outputs if datatypes[output.name] == output.datatype}
    return ReplyMembers(members.top, {name: more for name, more in members.outputs.items() if name in same})


def _tensor(
    manifest: Manifest, predictions: Sequence[Prediction], wanted: WantedOutput, options: OutputOptions
) -> OutputTensor:
    spec = _spec(manifest, wanted.name)
    binary = options.binary if wanted.binary is None else wanted.binary
    if wanted.classification is not None and _is_classified(predictions, spec):
        spec = structs.replace(spec, datatype="BYTES")
        raw, shape = joined_rows(manifest, predictions, spec)
        return OutputTensor(wanted.name, "BYTES", shape, raw, binary)
    raw, shape = joined_rows(manifest, predictions, spec)
    if wanted.classification is None:
        return OutputTensor(wanted.name, spec.datatype, shape, raw, binary)
    classes = _classes(array_of_raw(raw, DATATYPES[spec.datatype], shape, wanted.name), wanted.classification, spec)
    return OutputTensor(wanted.name, "BYTES", classes.shape, raw_of(classes, DATATYPES["BYTES"]), binary)


def _is_classified(predictions: Sequence[Prediction], spec: ClientOutput) -> bool:
    """Whether an upstream has classified an output itself: it may know labels that its metadata do not say."""
    heads = predictions[0].outputs if predictions else ()
    return any(head.name == spec.name and head.datatype != spec.datatype for head in heads)


def joined_rows(
    manifest: Manifest, predictions: Sequence[Prediction], spec: ClientOutput
) -> tuple[bytes, tuple[int, ...]]:
    """All rows of one output as one tensor's bytes and shape; rows of different sizes are zero-padded again."""
    if not predictions:
        return b"", tuple(0 if dim == -1 else dim for dim in wire_shape(spec.shape))
    if manifest.upstream is not None:  # its replies need not have the same outputs
        predictions = [_only(prediction, spec.name) for prediction in predictions]
    place = next(i for i, output in enumerate(predictions[0].outputs) if output.name == spec.name)
    shapes = {prediction.outputs[place].shape for prediction in predictions}
    if manifest.rows == "together":
        return predictions[0].data[place], shapes.pop()
    if len(shapes) == 1:
        return b"".join([prediction.data[place] for prediction in predictions]), (len(predictions), *shapes.pop())
    datatype = DATATYPES[spec.datatype]
    largest = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    batch: Array = np.full((len(predictions), *largest), b"" if datatype.kind == "s" else 0, datatype.dtype)
    for i, prediction in enumerate(predictions):
        part = array_of_raw(prediction.data[place], datatype, prediction.outputs[place].shape, spec.name)
        batch[i][tuple(slice(0, size) for size in part.shape)] = part
    return raw_of(batch, datatype), batch.shape


def _only(prediction: Prediction, name: str) -> Prediction:
    """A prediction with one of its outputs."""
    place = next(i for i, output in enumerate(prediction.outputs) if output.name == name)
    return structs.replace(prediction, outputs=(prediction.outputs[place],), data=(prediction.data[place],))


def _classes(array: Array, count: int, spec: ClientOutput) -> Array:
    """The classification extension: `[rows, n]` BYTES of "value:index[:label]", the largest first.

    Values are printed as Triton does (`std::to_string`: six decimals for floats).
    """
    if DATATYPES[spec.datatype].kind not in "if" or not array.ndim:
        raise BadRequest(f"outputs.{spec.name}.parameters.classification: {spec.datatype} cannot be ranked")
    flat = array.reshape(len(array), elements(array.shape[1:]))  # of no rows, -1 would not say how many
    count = min(count, flat.shape[1], MAX_CLASSES)
    made = np.empty((len(flat), count), object)
    for i, row in enumerate(flat):
        values = row.tolist()
        best = heapq.nsmallest(count, range(len(values)), key=lambda at: (-values[at], at))
        for j, at in enumerate(best):
            value = f"{values[at]:.6f}" if isinstance(values[at], float) else str(values[at])
            label = f":{spec.labels[at]}" if at < len(spec.labels) else ""
            made[i, j] = f"{value}:{at}{label}".encode()
    return made


def render_v1(manifest: Manifest, predictions: Sequence[Prediction], options: OutputOptions) -> RenderedBody:
    """`{"predictions": [...]}` by row, or `{"outputs": ...}` by column; one output stands without its name. Raises
    BadRequest."""
    return RenderedBody(orjson.dumps(_document_v1(manifest, predictions, options), option=_NUMPY), b"", None)


def _document_v1(manifest: Manifest, predictions: Sequence[Prediction], options: OutputOptions) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for wanted in _there(manifest, predictions, options):
        spec = _spec(manifest, wanted.name)
        raw, shape = joined_rows(manifest, predictions, spec)
        array = array_of_raw(raw, DATATYPES[spec.datatype], shape, wanted.name)
        columns[wanted.name] = _v1_values(array, spec)
    return arranged_v1(columns, options)


def arranged_v1(columns: Mapping[str, Any], options: OutputOptions) -> dict[str, Any]:
    """A reply of columns, each of which has a value for every row. Raises BadRequest."""
    single = next(iter(columns.values())) if len(columns) == 1 else None
    if options.protocol == "v1-columns":
        return {"outputs": columns if single is None else single}
    if single is not None:
        return {"predictions": single}
    if len({len(values) for values in columns.values()}) > 1:  # a detector's, whose rows are what it has found
        raise BadRequest("instances: the outputs differ in their number of rows; ask by column (inputs), or over V2")
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return {"predictions": rows}


def _v1_values(array: Array, spec: ClientOutput) -> Any:
    if DATATYPES[spec.datatype].kind == "s":
        return _nested_text(array.tolist())
    return np.ascontiguousarray(array, np.float32) if spec.datatype in ("BF16", "FP16") else np.ascontiguousarray(array)


def _nested_text(value: Any) -> Any:
    if isinstance(value, list):
        return [_nested_text(item) for item in value]
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


def _spec(manifest: Manifest, name: str) -> ClientOutput:
    return next(output for output in manifest.seen.outputs if output.name == name)
