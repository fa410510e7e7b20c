"""An ONNX graph's inputs and outputs → a signature in the manifest's words, and which axis holds the rows.

A graph's declaration may be wrong: exporters write a fixed 1 where any number is allowed, or one name for two sizes.
`settled` corrects the outputs after a few runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from foreseen.errors import SetupError
from foreseen.models.graphs import onnx_file
from foreseen.modelspec.manifest import BATCH, Dim, ModelInput, ModelOutput, ModelSignature
from foreseen.protocol.datatypes import BY_DTYPE

Axis = Literal["rows", "one", "whole"]
"""`rows`: the first axis of every input. `one`: that axis takes one row only. `whole`: there is no such axis."""
ADVICE = {
    "map_type": "a map: convert the model with options={'zipmap': False}, so that it gives plain tensors",
    "sequence_type": "a sequence: convert the model with options={'zipmap': False}, so that it gives plain tensors",
    "optional_type": "an optional value: export the model with plain tensors",
    "sparse_tensor_type": "a sparse tensor: export the model with plain tensors",
}


class Declared(Struct, frozen=True):
    """A tensor as the graph declares it: a number, a name or None (unknown) for each axis; no shape at all is None."""

    name: str
    datatype: str
    shape: tuple[int | str | None, ...] | None


class GraphRun(Struct, frozen=True):
    """The result of a run: the sizes of named dimensions of its inputs, and the shape of every output by name."""

    rows: int | None
    sizes: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]


class Draft(Struct, frozen=True):
    axis: Axis
    signature: ModelSignature
    is_named: bool
    """Whether the first axis has one and the same name in every input, so that it is surely one axis."""
    why: str = ""
    """Why there is no axis of rows, in words."""


def draft_of(model: ModelProto, file: str) -> Draft:
    """The signature as the graph declares it. Raises SetupError with the remedy."""
    inputs = [declared(value, "input", file) for value in onnx_file.inputs(model)]
    outputs = [declared(value, "output", file) for value in model.graph.output]
    for tensor in inputs:
        if tensor.shape is None:
            raise SetupError(f"{file}: the input {tensor.name!r} declares no shape; export it with one")
    _refuse_fixed_batches(inputs, outputs, file)
    axis, why = _axis(inputs)
    firsts = {tensor.shape[0] if tensor.shape else None for tensor in inputs}
    return Draft(axis, signature_of(inputs, outputs, axis), len(firsts) == 1 and None not in firsts, why)


def whole(model: ModelProto, file: str) -> ModelSignature:
    """The signature of a graph whose requests cannot be cut into rows."""
    inputs = [declared(value, "input", file) for value in onnx_file.inputs(model)]
    outputs = [declared(value, "output", file) for value in model.graph.output]
    return signature_of(inputs, outputs, "whole")


def declared(value: ValueInfoProto, side: str, file: str) -> Declared:
    """One input or output. Raises SetupError where it is no tensor, or of a type that cannot be served."""
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        what = ADVICE.get(str(kind), "of no known type: export the model with typed tensors")
        raise SetupError(f"{file}: the {side} {value.name!r} is {what}")
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return Declared(value.name, _datatype(tensor.elem_type, value.name, side, file), None)
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim)
    shape = tuple(dim if not isinstance(dim, int) or dim > 0 else None for dim in shape)
    return Declared(value.name, _datatype(tensor.elem_type, value.name, side, file), shape)


def _datatype(element: int, name: str, side: str, file: str) -> str:
    if element == TensorProto.STRING:
        return "BYTES"
    if element == TensorProto.BFLOAT16:
        raise SetupError(
            f"{file}: the {side} {name!r} is BF16, which ONNX Runtime's Python cannot take or give; cast it to FP32 "
            "inside the graph"
        )
    found = None if element == TensorProto.UNDEFINED else BY_DTYPE.get(helper.tensor_dtype_to_np_dtype(element))
    if found is None:
        kind = TensorProto.DataType.Name(element)
        raise SetupError(f"{file}: the {side} {name!r} is {kind}, which V2 has no datatype for; cast it in the graph")
    return found.name


def _refuse_fixed_batches(inputs: Sequence[Declared], outputs: Sequence[Declared], file: str) -> None:
    firsts = {tensor.shape[0] if tensor.shape else None for tensor in (*inputs, *outputs)}
    first = firsts.pop() if len(firsts) == 1 else None
    if isinstance(first, int) and first > 1:
        name = inputs[0].name
        raise SetupError(f"{file}: {name!r} takes batches of exactly {first}; export it with any size")


def _axis(inputs: Sequence[Declared]) -> tuple[Axis, str]:
    """The axis of the rows according to the graph, and if there is none, the reason."""
    shapes = {tensor.name: tensor.shape or () for tensor in inputs}
    scalar = next((name for name, shape in shapes.items() if not shape), None)
    if scalar is not None:
        return "whole", f"the input {scalar!r} is a scalar"
    firsts = {name: shape[0] for name, shape in shapes.items()}
    fixed = {name: first for name, first in firsts.items() if isinstance(first, int)}
    if len(fixed) == len(firsts) and set(fixed.values()) == {1}:
        return "one", "the graph takes one row at a time"
    if fixed:
        name = next(iter(fixed))
        return "whole", f"the first axis of the input {name!r} is always {fixed[name]}"
    symbols = {first for first in firsts.values() if first is not None}
    again = next((name for name, shape in shapes.items() if symbols & set(shape[1:])), None)
    if again is not None:
        return "whole", f"the input {again!r} has the first axis of the inputs as another axis too"
    return "rows", ""


def signature_of(inputs: Sequence[Declared], outputs: Sequence[Declared], axis: Axis) -> ModelSignature:
    """Names in the place of unknown sizes. Where rows have an axis it is the first of every tensor."""
    firsts = {tensor.shape[0] for tensor in inputs if tensor.shape}
    rows = firsts.pop() if axis == "whole" and len(firsts) == 1 else None
    named = rows if isinstance(rows, str) else None
    return ModelSignature(
        tuple(ModelInput(t.name, t.datatype, _dims(t, axis, named)) for t in inputs),
        tuple(ModelOutput(t.name, t.datatype, _dims(t, axis, named)) for t in outputs),
    )


def _dims(tensor: Declared, axis: Axis, rows: str | None) -> tuple[Dim, ...]:
    dims: list[Dim] = []
    for at, dim in enumerate(tensor.shape or ()):
        if (at == 0 and axis != "whole") or (rows is not None and dim == rows):
            dims.append(BATCH)
        elif isinstance(dim, int):
            dims.append(dim)
        else:
            name = re.sub(r"\W+", "_", dim or "").strip("_")
            dims.append(name if name and name != BATCH else own_name(tensor.name, at))
    return tuple(dims or ([BATCH] if axis != "whole" else []))


def own_name(tensor: str, at: int) -> str:
    """A dimension's name that no other tensor shares."""
    return re.sub(r"\W+", "_", f"{tensor}_{at}")


def settled(signature: ModelSignature, model: ModelProto, runs: Sequence[GraphRun], file: str) -> ModelSignature | None:
    """The outputs that a run returned. None if an output's first axis is not the rows although every input's is."""
    known = {value.name: declared(value, "output", file) for value in model.graph.output}
    inputs = {dim for spec in signature.inputs for dim in spec.shape if isinstance(dim, str)}
    outputs = []
    for spec in signature.outputs:
        shapes = [run.shapes[spec.name] for run in runs]
        if signature.has_rows and any(shape[:1] != (run.rows,) for shape, run in zip(shapes, runs, strict=True)):
            return None
        if len({len(shape) for shape in shapes}) > 1:
            raise SetupError(f"{file}: the output {spec.name!r} has a different number of axes from run to run")
        written = spec.shape if known[spec.name].shape is not None else ()
        dims = (_settled(spec.name, at, written, runs, inputs) for at in range(len(shapes[0])))
        outputs.append(ModelOutput(spec.name, spec.datatype, tuple(dims)))
    return ModelSignature(signature.inputs, tuple(outputs))


def _settled(name: str, at: int, written: tuple[Dim, ...], runs: Sequence[GraphRun], inputs: set[str]) -> Dim:
    """One axis of an output: as declared where the runs agree; the input's name where it always has that size."""
    sizes = [run.shapes[name][at] for run in runs]
    dim = written[at] if len(written) == len(runs[0].shapes[name]) else None
    if isinstance(dim, int) and set(sizes) == {dim}:
        return dim
    said = [run.rows if dim == BATCH else run.sizes.get(dim) if isinstance(dim, str) else None for run in runs]
    is_right = said == sizes if dim in inputs else dim not in (BATCH, own_name(name, at))
    if isinstance(dim, str) and is_right:
        return dim
    for other in sorted(inputs - {BATCH}):
        if len(set(sizes)) > 1 and [run.sizes.get(other) for run in runs] == sizes:
            return other
    if at == 0 and [run.rows for run in runs] == sizes:
        return BATCH
    return own_name(name, at)
