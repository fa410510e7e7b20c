"""Columns of an Arrow batch → tensors of a signature, and the rows that cannot become any, with the reason.

A column holds one value per row: a number, a text, bytes, or a list that holds a tensor flat or nested. Text that
stands for numbers (CSV) is read as JSON reads it. An input of n numbers may also be n columns NAME_0 … NAME_n-1.
Numbers have no datatype of their own here, as in JSON: integers must fit exactly, floats must stay finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from foreseen.errors import BadInput, SetupError
from foreseen.modelspec.manifest import Dim
from foreseen.modelspec.normalize import cast
from foreseen.protocol.datatypes import BY_DTYPE, DATATYPES, Datatype
from foreseen.protocol.tensors import array_of_json
from foreseen.types import Array


class Spec(Protocol):
    """What inputs and outputs of either signature have."""

    @property
    def name(self) -> str: ...
    @property
    def datatype(self) -> str: ...
    @property
    def shape(self) -> tuple[Dim, ...]: ...


def columns_for(spec: Spec, have: Sequence[str], mapped: Mapping[str, str], prefix: str = "") -> list[str]:
    """The columns that hold an input or output: one, or one per element. Raises SetupError where there are none."""
    given = [column for column, name in mapped.items() if name == spec.name]
    if given and given[0] not in have:
        raise SetupError(f"there is no column {given[0]!r}; the file has {', '.join(have)}")
    for name in (*given, prefix + spec.name, spec.name):
        if name in have:
            return [name]
    size = _size(spec)
    if size is not None and spec.shape[1:]:
        listed = [f"{given[0] if given else spec.name}_{i}" for i in range(size)]
        if all(name in have for name in listed):
            return listed
    option = "--outputs" if prefix else "--map"
    raise SetupError(f"no column for {spec.name!r}; the file has {', '.join(have)}; give {option} COLUMN={spec.name}")


def fixed(spec: Spec) -> bool:
    """Whether every row of it has the same number of elements."""
    return _size(spec) is not None


def tensor(batch: pa.RecordBatch, columns: Sequence[str], spec: Spec, bad: dict[int, str]) -> Array:
    """The values of one input or output of fixed shape, `[rows, …]`; zeros (or empty texts) in rows that go into `bad`.

    Raises SetupError where the column's type can never be it.
    """
    datatype, shape = DATATYPES[spec.datatype], tuple(int(dim) for dim in spec.shape[1:])
    parts = [_values(batch.column(name), datatype, shape if len(columns) == 1 else (), name, bad) for name in columns]
    if len(parts) == 1:
        return parts[0]
    return np.stack(parts, axis=1).reshape(batch.num_rows, *shape)


def ragged(batch: pa.RecordBatch, column: str, spec: Spec, bad: dict[int, str]) -> list[Array | None]:
    """The values of one input or output whose rows differ in size, by the row; None in rows that go into `bad`."""
    datatype = DATATYPES[spec.datatype]
    made: list[Array | None] = []
    for index, value in enumerate(batch.column(column).to_pylist()):
        try:
            made.append(_one(value, datatype, spec))
        except (BadInput, orjson.JSONDecodeError, TypeError, ValueError) as error:
            bad.setdefault(index, f"{spec.name}: {error}")
            made.append(None)
    return made


def _size(spec: Spec) -> int | None:
    dims = [dim for dim in spec.shape[1:] if isinstance(dim, int)]
    return math.prod(dims) if len(dims) == len(spec.shape) - 1 else None


def _one(value: Any, datatype: Datatype, spec: Spec) -> Array:
    """One row of open size: at most one dimension follows from the number of elements."""
    if isinstance(value, str | bytes) and datatype.kind != "s":
        value = orjson.loads(value)
    if not isinstance(value, list):
        raise BadInput("takes a list")
    flat = value
    while flat and isinstance(flat[0], list):
        flat = [item for part in flat for item in part]
    dims = [dim if isinstance(dim, int) else None for dim in spec.shape[1:]]
    known = math.prod(dim for dim in dims if dim is not None)
    if dims.count(None) != 1 or known == 0 or len(flat) % known:
        raise BadInput(f"has {len(flat)} elements, which no shape of {list(spec.shape[1:])} takes")
    if datatype.kind == "s":
        flat = [item.decode() if isinstance(item, bytes) else item for item in flat]
    shape = tuple(len(flat) // known if dim is None else dim for dim in dims)
    return array_of_json(flat, datatype, shape, spec.name)


def _values(column: pa.Array, datatype: Datatype, shape: tuple[int, ...], name: str, bad: dict[int, str]) -> Array:
    """One column as an array of the datatype, `[rows, *shape]`."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    rows, textual = len(column), pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if datatype.kind != "s" and textual:
        return _parsed(column, datatype, shape, name, bad)
    flat = _flat(column, shape, name, bad)
    size = math.prod(shape)
    good = np.array([i not in bad for i in range(rows)]) if bad else np.ones(rows, bool)
    made: Array = np.zeros((rows, size), datatype.dtype)
    if datatype.kind == "s":
        made[...] = b""
        if not (pa.types.is_string(flat.type) or pa.types.is_large_string(flat.type) or _binary(flat.type)):
            raise SetupError(f"column {name!r} holds {flat.type}, the model takes text or bytes; map another column")
        items = flat.cast(pa.large_binary()).to_pylist()
        values = np.empty(len(items), object)
        values[:] = items
    else:
        values = _numbers(flat, datatype, name, bad, size, good)
        good = np.array([i not in bad for i in range(rows)]) if bad else good
    made[good] = values.reshape(-1, size)
    return made.reshape(rows, *shape)


def _flat(column: pa.Array, shape: tuple[int, ...], name: str, bad: dict[int, str]) -> pa.Array:
    """The elements of the good rows, in order; rows of another length or with nulls go into `bad`."""
    rows, size = len(column), math.prod(shape)
    level, dims, owner = column, list(shape), np.arange(rows)
    if column.null_count:
        for index in np.flatnonzero(np.asarray(column.is_null())).tolist():
            bad.setdefault(index, f"{name}: is null")
    depth = _depth(column.type)
    if depth == 0 and size != 1:
        raise SetupError(f"column {name!r} holds one {column.type} a row, the model takes {size} elements; map a list")
    if (depth > 1 and depth != len(shape)) or (depth and not shape):
        raise SetupError(f"column {name!r} is nested {depth} deep, the model takes shape {list(shape)}")
    for wanted in [size] if depth == 1 else dims[:depth]:
        lengths = np.asarray(pc.fill_null(pc.list_value_length(level), -1))
        wrong = lengths != wanted
        if wrong.any():
            for index, length in zip(owner[wrong].tolist(), lengths[wrong].tolist(), strict=True):
                bad.setdefault(index, f"{name}: has {length} elements, must have {wanted}")
        keep = ~np.isin(owner, list(bad)) if bad else None
        if keep is not None:
            level, owner = level.filter(pa.array(keep)), owner[keep]
        level, owner = level.flatten(), np.repeat(owner, wanted)
    if level.null_count:
        for index in np.unique(owner[np.asarray(level.is_null())]).tolist():
            bad.setdefault(index, f"{name}: holds a null")
    if bad:
        level = level.filter(pa.array(~np.isin(owner, list(bad))))
    return level


def _numbers(flat: pa.Array, datatype: Datatype, name: str, bad: dict[int, str], size: int, good: Array) -> Array:
    """Elements as the datatype; rows in which one does not fit go into `bad`."""
    kind = flat.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise SetupError(f"column {name!r} holds {kind}, the model takes {datatype.name}; map another column")
    values: Array = flat.to_numpy(zero_copy_only=False)
    given = BY_DTYPE[np.dtype(values.dtype)]
    if given == datatype:
        return values
    if given.kind == "b" or datatype.kind == "b":
        raise SetupError(f"column {name!r} holds {kind}, the model takes {datatype.name}; map another column")
    try:
        return cast(values, given, datatype, name)
    except BadInput as error:
        owners, fits = np.flatnonzero(good), []
        lines = values.reshape(len(owners), size)
        for owner, line in zip(owners.tolist(), lines, strict=True):
            try:
                fits.append(cast(line, given, datatype, name))
            except BadInput:
                bad.setdefault(owner, str(error))
        return np.array(fits, datatype.dtype)


def _parsed(column: pa.Array, datatype: Datatype, shape: tuple[int, ...], name: str, bad: dict[int, str]) -> Array:
    """Text that stands for numbers, as JSON reads it."""
    made: Array = np.zeros((len(column), *shape), datatype.dtype)
    for index, text in enumerate(column.to_pylist()):
        try:
            value = orjson.loads(text)
            made[index] = array_of_json(value if shape else [value], datatype, shape or (1,), name).reshape(shape)
        except BadInput as error:
            bad.setdefault(index, str(error))
        except (orjson.JSONDecodeError, TypeError):
            bad.setdefault(index, f"{name}: is not a number" if not shape else f"{name}: is not a list of numbers")
    return made


def _depth(kind: pa.DataType) -> int:
    depth = 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        depth, kind = depth + 1, kind.value_type
    return depth


def _binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))
