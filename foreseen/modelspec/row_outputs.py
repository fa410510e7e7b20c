"""A batch's outputs ↔ each row's own outputs, held against the signature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from foreseen.errors import ModelFailed
from foreseen.modelspec.manifest import BATCH, ModelOutput, ModelSignature
from foreseen.modelspec.rows import sizes_of, stack_padded
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.tensors import raw_of
from foreseen.types import Array, Output, Row

RowOutputs = tuple[Array, ...]
"""The outputs of one row in the signature's order, without the batch axis and cut to the row's own size."""
RawOutputs = tuple[tuple[Output, ...], tuple[bytes, ...]]
"""The same as heads and bytes, which is what is kept of them."""


def split_outputs(
    outputs: Mapping[str, Array], rows: Sequence[Row], signature: ModelSignature, length: int | None = None
) -> list[RowOutputs]:
    """Each row's own outputs of a batch that was padded to `length`, or to its largest row. Raises ModelFailed where
    they are not what the signature says."""
    sizes = _padded_sizes(rows, signature)
    padded = {name: length or max(s[name] for s in sizes) for name in sizes[0]} if sizes else {}
    columns: list[list[Array]] = []
    for spec in signature.outputs:
        wanted = [len(rows) if d == "rows" else padded.get(d, -1) if isinstance(d, str) else d for d in spec.shape]
        array = _answered(outputs, spec, wanted)
        named = [(axis, d) for axis, d in enumerate(spec.shape[1:]) if isinstance(d, str) and d in padded]
        if not named:
            columns.append([array[i, ...] for i in range(len(rows))])
            continue
        column = []
        for i, size in enumerate(sizes):
            cut = [slice(None)] * (array.ndim - 1)
            for axis, dim in named:
                cut[axis] = slice(0, size[dim])
            column.append(np.ascontiguousarray(array[i][tuple(cut)]))
        columns.append(column)
    return list(zip(*columns, strict=True))


def raw_outputs(outputs: Mapping[str, Array], rows: Sequence[Row], signature: ModelSignature) -> list[RawOutputs]:
    """`split_outputs`, as bytes. Rows of one shape share their heads, and are cut out of the batch's own bytes."""
    if any(DATATYPES[spec.datatype].kind == "s" for spec in signature.outputs) or _names(signature):
        return [raw_of_outputs(arrays, signature) for arrays in split_outputs(outputs, rows, signature)]
    heads, columns = [], []
    for spec in signature.outputs:
        array = _answered(outputs, spec, [len(rows), *(-1 if isinstance(d, str) else d for d in spec.shape[1:])])
        heads.append(Output(spec.name, spec.datatype, array.shape[1:]))
        raw = np.ascontiguousarray(array, DATATYPES[spec.datatype].dtype).tobytes()
        width = len(raw) // len(rows) if rows else 0
        columns.append([raw[at * width : (at + 1) * width] for at in range(len(rows))])
    shared = tuple(heads)
    return [(shared, data) for data in zip(*columns, strict=True)]


def raw_of_outputs(arrays: RowOutputs, signature: ModelSignature) -> RawOutputs:
    """One row's outputs as heads and bytes."""
    pairs = list(zip(signature.outputs, arrays, strict=True))
    heads = tuple(Output(spec.name, spec.datatype, array.shape) for spec, array in pairs)
    return heads, tuple(raw_of(array, DATATYPES[spec.datatype]) for spec, array in pairs)


def firsts_of(signature: ModelSignature, rows: int | None) -> dict[str, int | None]:
    """How many rows each output of a whole request has: as many as its inputs where its first axis is "rows", as the
    signature says where that is a number, and None where any may be right."""
    return {
        spec.name: rows if first == BATCH else None if isinstance(first, str) else first
        for spec in signature.outputs
        for first in spec.shape[:1]
    }


def whole_outputs(
    outputs: Mapping[str, Array], signature: ModelSignature, firsts: Mapping[str, int | None]
) -> RowOutputs:
    """The outputs of a request whose rows belong together. `firsts` is how many rows each has, None where any may.

    Raises ModelFailed where they are not what the signature says.
    """
    whole = []
    for spec in signature.outputs:
        others = [None if isinstance(d, str) else d for d in spec.shape[1:]]
        wanted = [firsts[spec.name], *others] if spec.shape else []
        whole.append(_answered(outputs, spec, [-1 if dim is None else dim for dim in wanted]))
    return tuple(whole)


def stack_outputs(answered: Sequence[RowOutputs], signature: ModelSignature) -> dict[str, Array]:
    """The outputs of several rows as one batch, zero-padded along named dimensions."""
    return {
        spec.name: stack_padded([outputs[index] for outputs in answered], spec.datatype, 0)
        for index, spec in enumerate(signature.outputs)
    }


def empty_outputs(signature: ModelSignature) -> dict[str, Array]:
    """The outputs of a request with zero rows: named dimensions are 0 too."""
    return {
        spec.name: np.empty([0 if isinstance(d, str) else d for d in spec.shape], DATATYPES[spec.datatype].dtype)
        for spec in signature.outputs
    }


def _answered(outputs: Mapping[str, Array], spec: ModelOutput, wanted: Sequence[int]) -> Array:
    """One output, held against the signature. -1 is any size."""
    if spec.name not in outputs:
        raise ModelFailed(f"outputs.{spec.name}: the model did not answer with it")
    array = outputs[spec.name]
    datatype = DATATYPES[spec.datatype]
    if array.dtype != datatype.dtype:
        raise ModelFailed(f"outputs.{spec.name}: is {array.dtype}, the signature says {spec.datatype}")
    fits = len(wanted) == array.ndim and all(w in (-1, got) for w, got in zip(wanted, array.shape, strict=True))
    if not fits:
        raise ModelFailed(f"outputs.{spec.name}: has shape {list(array.shape)}, the signature says {list(wanted)}")
    if datatype.kind == "f" and not np.isfinite(array).all():
        raise ModelFailed(f"outputs.{spec.name}: holds NaN or infinity")
    return array


def _names(signature: ModelSignature) -> set[str]:
    """The named dimensions of outputs that rows have sizes of their own in."""
    inputs = {d for spec in signature.keyed for d in spec.shape[1:] if isinstance(d, str)}
    return {d for spec in signature.outputs for d in spec.shape[1:] if d in inputs}


def _padded_sizes(rows: Sequence[Row], signature: ModelSignature) -> list[dict[str, int]]:
    """Each row's own size along these; nothing where there are none."""
    return [sizes_of(row, signature) for row in rows] if _names(signature) else []
