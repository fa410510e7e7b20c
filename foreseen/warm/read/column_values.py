"""Values of one Arrow column → an array of the input's datatype; rows that do not fit are rejected with the reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from foreseen.errors import BadInput
from foreseen.modelspec.normalize import cast
from foreseen.protocol.datatypes import BY_DTYPE, Datatype
from foreseen.protocol.strict_json import doubles_may_differ, load_whole
from foreseen.protocol.tensors import array_of_json
from foreseen.types import Array
from foreseen.warm.read.arrow import decoded, leaf_type, with_leaf
from foreseen.warm.read.numbers import value_of


class TargetType(Struct, frozen=True):
    """The type that one column is read as. `missing`: nulls and NaN are values."""

    datatype: Datatype
    shape: tuple[int, ...]
    name: str
    missing: bool

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def json_of(item: Any, datatype: Datatype) -> Any:
    """An element of an Arrow list as JSON would hold it."""
    if isinstance(item, bytes) and datatype.kind == "s":
        return item.decode()
    if isinstance(item, Decimal):
        return int(item) if item == item.to_integral_value() else float(item)
    return int(item) if isinstance(item, bool) and datatype.kind in "if" else item


def values_of(column: pa.Array, wanted: TargetType, bad: dict[int, str]) -> Array:
    """One column as an array of the datatype, `[rows, *shape]`."""
    rows = len(column)
    made: Array = np.zeros((rows, wanted.size), wanted.datatype.dtype)
    if wanted.datatype.kind == "s":
        made[...] = b""
    column = decoded(column)
    why = misfit(column.type, wanted)
    if why is not None:
        reject_all(bad, rows, f"column {wanted.name!r} {why}")
        return made.reshape(rows, *wanted.shape)
    _, leaf = leaf_type(column.type)
    if pa.types.is_null(leaf):
        column = pa.array(column.to_pylist(), with_leaf(column.type, _ARROW_OF_KIND[wanted.datatype.kind]))
    elif pa.types.is_decimal(leaf):
        column = _without_decimals(column, wanted)
    if wanted.datatype.kind != "s" and is_textual(column.type):
        return _parsed(column, wanted, bad)
    flat = _flat(column, wanted, bad)
    values = _texts(flat) if wanted.datatype.kind == "s" else _numbers(flat, wanted, bad, _good(bad, rows))
    made[_good(bad, rows)] = values.reshape(-1, wanted.size)
    return made.reshape(rows, *wanted.shape)


_ARROW_OF_KIND = {"s": pa.large_binary(), "b": pa.bool_(), "i": pa.int64(), "f": pa.float64()}


def misfit(kind: pa.DataType, wanted: TargetType) -> str | None:
    """Why no value of a column of this plain type can be the input."""
    depth, leaf = leaf_type(kind)
    takes = "text or bytes" if wanted.datatype.kind == "s" else wanted.datatype.name
    if pa.types.is_null(kind) or (depth == 0 and wanted.datatype.kind != "s" and is_textual(kind)):
        return None  # of the latter each cell says what it holds
    if depth == 0 and wanted.size != 1:
        return f"holds one {kind} a row, the model takes {wanted.size} elements; map a list"
    if (depth > 1 and depth != len(wanted.shape)) or (depth and not wanted.shape):
        return f"is nested {depth} deep, the model takes shape {list(wanted.shape)}"
    fits = {
        "s": is_textual(leaf),
        "b": pa.types.is_boolean(leaf),
        "i": is_numeric(leaf),
        "f": is_numeric(leaf),
    }[wanted.datatype.kind]
    if not (fits or pa.types.is_null(leaf)):
        return f"holds {kind}, the model takes {takes}; map another column"
    return None


def reject_all(bad: dict[int, str], rows: int, why: str) -> None:
    for index in range(rows):
        bad.setdefault(index, why)


def _good(bad: Mapping[int, str], rows: int) -> Array:
    """Which rows are not in `bad`, bool."""
    good = np.ones(rows, bool)
    if bad:
        good[list(bad)] = False
    return good


def _without_decimals(column: pa.Array, wanted: TargetType) -> pa.Array:
    """Decimals as integers where all of them are, else as text that is read like JSON's: both are exact."""
    if wanted.datatype.kind == "i":
        try:
            return column.cast(with_leaf(column.type, pa.int64()))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            pass
    return pa.array([None if row is None else _decimal_text(row) for row in column.to_pylist()], pa.large_string())


def _decimal_text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_decimal_text, value))}]"
    return "null" if value is None else f"{value:f}"


def _texts(flat: pa.Array) -> Array:
    items = flat.cast(pa.large_binary()).to_pylist()
    values = np.empty(len(items), object)
    values[:] = items
    return values


def _flat(column: pa.Array, wanted: TargetType, bad: dict[int, str]) -> pa.Array:
    """The elements of the good rows, in order; rows of another length or with nulls go into `bad`."""
    name, level, owner = wanted.name, column, np.arange(len(column))
    depth, _ = leaf_type(column.type)
    if column.null_count and not (depth == 0 and wanted.missing):
        for index in np.flatnonzero(np.asarray(column.is_null())).tolist():
            bad.setdefault(index, f"{name}: is null")
    for size in [wanted.size] if depth == 1 else wanted.shape[:depth]:
        lengths = np.asarray(pc.fill_null(pc.list_value_length(level), -1))
        wrong = lengths != size
        if wrong.any():
            for index, length in zip(owner[wrong].tolist(), lengths[wrong].tolist(), strict=True):
                bad.setdefault(index, f"{name}: has {length} elements, must have {size}")
        keep = ~np.isin(owner, list(bad)) if bad else None
        if keep is not None:
            level, owner = level.filter(pa.array(keep)), owner[keep]
        level, owner = level.flatten(), np.repeat(owner, size)
    if level.null_count and not wanted.missing:
        for index in np.unique(owner[np.asarray(level.is_null())]).tolist():
            bad.setdefault(index, f"{name}: holds a null")
    if bad:
        level = level.filter(pa.array(~np.isin(owner, list(bad))))
    return level


def _numbers(flat: pa.Array, wanted: TargetType, bad: dict[int, str], good: Array) -> Array:
    """Elements of the good rows as the datatype; rows in which one does not fit go into `bad` and are left out."""
    datatype, name = wanted.datatype, wanted.name
    if pa.types.is_boolean(flat.type) and datatype.kind != "b":
        flat = flat.cast(pa.uint8())
    values: Array = flat.to_numpy(zero_copy_only=False)  # integers with nulls become floats, nulls NaN
    given = BY_DTYPE[np.dtype(values.dtype)]
    if given == datatype:
        return values
    try:
        return cast(values, given, datatype, name)
    except BadInput as error:
        owners, fits = np.flatnonzero(good), []
        lines = values.reshape(len(owners), wanted.size)
        for owner, line in zip(owners.tolist(), lines, strict=True):
            try:
                fits.append(cast(line, given, datatype, name))
            except BadInput:
                bad.setdefault(owner, str(error))
        return np.array(fits, datatype.dtype)


def _parsed(column: pa.Array, wanted: TargetType, bad: dict[int, str]) -> Array:
    """Text that stands for numbers, as JSON reads it."""
    datatype, shape, name = wanted.datatype, wanted.shape, wanted.name
    made: Array = np.zeros((len(column), *shape), datatype.dtype)
    for index, text in enumerate(column.to_pylist()):
        if text is None and (shape or not wanted.missing):
            bad.setdefault(index, f"{name}: is null")
            continue
        try:
            value = value_of(
                "" if text is None else text,
                truth=datatype.kind == "b",
                missing=wanted.missing,
                listed=bool(shape),
            )
            if datatype.kind == "i" and text is not None and doubles_may_differ(text):
                value = load_whole(text)
            listed = value if shape else [value]
            made[index] = array_of_json(listed, datatype, shape or (1,), name, missing=wanted.missing).reshape(shape)
        except BadInput as error:
            bad.setdefault(index, str(error))
        except ValueError:
            what = "true or false" if datatype.kind == "b" else "a number"
            bad.setdefault(index, f"{name}: is not {what}" if not shape else f"{name}: is not a list of numbers")
    return made


def is_numeric(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )


def is_textual(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )
