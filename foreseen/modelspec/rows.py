"""Batch tensors ↔ rows, on both sides of the model: split, stack. `row_outputs.py` does the same with outputs.

Both processes use these, so that a row cut out of one batch is the row that any other batch would have given: the
proxy splits what clients send and stacks what the model is asked; the model process splits what it is sent, stacks
its own batches, and does the same with the outputs on the way back.

Named dimensions other than "rows" are padded to the largest of the batch. A row's own size comes from the mask where
the signature derives one, else from the tensor. Masks are 1…1 0…0; anything else is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from foreseen.errors import BadInput
from foreseen.modelspec.manifest import BATCH, Dim, ModelInput, ModelSignature
from foreseen.protocol.datatypes import DATATYPES
from foreseen.types import Array, Row


def split(tensors: Mapping[str, Array], signature: ModelSignature) -> list[Row]:
    """The rows of a batch given in `[model]` tensors. Derived inputs may be left out; a mask that is there trims.

    Raises BadInput naming the input: one is missing or too many, datatype or shape do not fit, the batch sizes
    differ, a mask has a hole or masks everything.
    """
    known = {i.name for i in signature.inputs}
    for name in tensors:
        if name not in known:
            raise BadInput(f"inputs.{name}: the model has no such input; it has {', '.join(sorted(known))}")
    sizes: set[int] = set()
    for spec in signature.inputs:
        if spec.name in tensors:
            _fits(tensors[spec.name], spec)
            sizes.add(len(tensors[spec.name]))
        elif spec.role is None:
            raise BadInput(f"inputs.{spec.name}: missing")
    if len(sizes) != 1:
        raise BadInput("inputs: the first dimension (rows) differs between inputs")
    count = sizes.pop()
    lengths = _lengths(tensors, signature)
    columns = [_column(tensors[spec.name], lengths.get(spec.name), count) for spec in signature.keyed]
    return [Row(parts) for parts in zip(*columns, strict=True)]


def stack(rows: Sequence[Row], signature: ModelSignature, length: int | None = None) -> dict[str, Array]:
    """One batch of rows: padded along named dimensions to the largest row or to `length`, derived inputs made."""
    batch: dict[str, Array] = {}
    for index, spec in enumerate(signature.keyed):
        parts = [row.tensors[index] for row in rows]
        widths = None if length is None else [length if isinstance(dim, str) else dim for dim in spec.shape[1:]]
        batch[spec.name] = stack_padded(parts, spec.datatype, spec.pad, widths)
        for derived in signature.inputs:
            if derived.of == spec.name:
                batch[derived.name] = _derived(derived, parts, batch[spec.name].shape)
    return batch


def whole_row(tensors: Mapping[str, Array], signature: ModelSignature) -> Row:
    """A request that cannot be cut into rows, as one row: a tensor per input as it was sent. Inputs derived from
    another may be left out. Raises BadInput naming the input."""
    parts: list[Array] = []
    for name in tensors:
        if all(name != spec.name for spec in signature.inputs):
            raise BadInput(f"inputs.{name}: the model has no such input")
    for spec in signature.inputs:
        if spec.name in tensors:
            _fits(tensors[spec.name], spec)
            parts.append(tensors[spec.name])
        elif spec.role is None or spec.of is None or spec.of not in tensors:
            raise BadInput(f"inputs.{spec.name}: missing")
        else:
            made = np.ones if spec.role == "mask" else np.zeros
            parts.append(made(tensors[spec.of].shape, DATATYPES[spec.datatype].dtype))
    return Row(tuple(parts))


def row_count(tensors: Sequence[Array], inputs: Sequence[ModelInput]) -> int | None:
    """How many rows a whole request has: the size of an axis called "rows". None where no input has one."""
    for spec, tensor in zip(inputs, tensors, strict=True):
        if BATCH in spec.shape:
            return int(tensor.shape[spec.shape.index(BATCH)])
    return None


def tokens(row: Row, signature: ModelSignature) -> int:
    """How long a row is along its named dimension: what decides about padding. 1 where nothing can be padded."""
    for spec, tensor in zip(signature.keyed, row.tensors, strict=True):
        for axis, dim in enumerate(spec.shape[1:]):
            if isinstance(dim, str):
                return int(tensor.shape[axis])
    return 1


def _fits(array: Array, spec: ModelInput) -> None:
    if array.dtype != DATATYPES[spec.datatype].dtype:
        raise BadInput(f"inputs.{spec.name}.datatype: must be {spec.datatype}")
    shape = [-1 if isinstance(d, str) else d for d in spec.shape]
    if array.ndim != len(shape) or any(w not in (-1, got) for w, got in zip(shape, array.shape, strict=True)):
        raise BadInput(f"inputs.{spec.name}.shape: is {list(array.shape)}, must be {shape}")


def _lengths(tensors: Mapping[str, Array], signature: ModelSignature) -> dict[str, Array]:
    """How long each row of an input is, where a mask was sent for it or for its dimension: input → INT64 [rows].

    A pair's token types have no mask of their own: they are as long as the ids, with whom they share a dimension.
    """
    lengths: dict[str, Array] = {}
    named: dict[Dim, Array] = {}
    for derived in signature.inputs:
        if derived.of is None or derived.name not in tensors:
            continue
        given, array = tensors[derived.name], tensors[derived.of]
        if given.shape != array.shape:
            raise BadInput(f"inputs.{derived.name}.shape: must be that of {derived.of}, {list(array.shape)}")
        if derived.role == "zeros":
            if given.any():
                raise BadInput(f"inputs.{derived.name}: must be all zeros")
            continue
        lengths[derived.of] = mask_lengths(given, f"inputs.{derived.name}")
        named |= {dim: lengths[derived.of] for dim in derived.shape[1:2] if isinstance(dim, str)}
    for spec in signature.keyed:
        if spec.name not in lengths and spec.shape[1:2] and spec.shape[1] in named:
            lengths[spec.name] = named[spec.shape[1]]
    return lengths


def _column(array: Array, lengths: Array | None, count: int) -> list[Array]:
    """One input's tensor of every row, cut to the row's length."""
    if lengths is None:
        return [array[i, ...] for i in range(count)]  # the Ellipsis keeps 0-d rows arrays, also of BYTES
    return [array[i, : int(lengths[i])] for i in range(count)]


def mask_lengths(mask: Array, field: str) -> Array:
    """How many ones each row of a mask `[rows, n]` starts with. Raises BadInput unless it is 1…1 0…0."""
    if mask.ndim != 2:
        raise BadInput(f"{field}.shape: a mask is [rows, length]")
    lengths: Array = np.count_nonzero(mask, axis=1)
    whole = (np.arange(mask.shape[1]) < lengths[:, None]).astype(mask.dtype)
    if not np.array_equal(whole, mask):
        raise BadInput(f"{field}: a mask is ones followed by zeros")
    if mask.shape[0] and not lengths.all():
        raise BadInput(f"{field}: masks a whole row")
    return lengths


def stack_padded(parts: Sequence[Array], datatype: str, pad: int, widths: Sequence[int] | None = None) -> Array:
    """One array of all, padded with `pad` to `widths`, or to the largest of each axis."""
    first = parts[0].shape
    if all(part.shape == first for part in parts) and (widths is None or [*first] == [*widths]):
        return np.concatenate(parts).reshape(len(parts), *first) if first else np.stack(parts)  # a fifth of its time
    shape = widths or [max(part.shape[axis] for part in parts) for axis in range(len(first))]
    batch: Array = np.full([len(parts), *shape], pad if datatype != "BYTES" else b"", DATATYPES[datatype].dtype)
    for i, part in enumerate(parts):
        batch[i][_corner(part)] = part
    return batch


def _derived(spec: ModelInput, parts: Sequence[Array], shape: tuple[int, ...]) -> Array:
    made: Array = np.zeros(shape, DATATYPES[spec.datatype].dtype)
    if spec.role == "mask":
        for i, part in enumerate(parts):
            made[i][_corner(part)] = 1
    return made


def _corner(part: Array) -> tuple[slice, ...]:
    return tuple(slice(0, size) for size in part.shape)


def sizes_of(row: Row, signature: ModelSignature) -> dict[str, int]:
    """The row's own size along every named dimension of its inputs."""
    sizes: dict[str, int] = {}
    for spec, tensor in zip(signature.keyed, row.tensors, strict=True):
        for axis, dim in enumerate(spec.shape[1:]):
            if isinstance(dim, str):
                sizes[dim] = int(tensor.shape[axis])
    return sizes
