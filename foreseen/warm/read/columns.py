"""Columns of an Arrow batch → tensors of a signature, and the rows that cannot become any, with the reason.

A column holds one value per row: a number, a text, bytes, or a list that holds a tensor flat or nested. Text that
stands for numbers (CSV) is read as JSON reads it. An input of n numbers may also be n columns NAME_0 … NAME_n-1.
Numbers have no datatype of their own here, as in JSON: integers must fit exactly, floats must stay finite. Where an
input takes NaN (`nonfinite`), a missing value is NaN. A column of a type that can never be the input rejects its rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from foreseen.errors import BadInput, SetupError
from foreseen.modelspec.manifest import ClientInput, Dim
from foreseen.modelspec.normalize import cast
from foreseen.protocol.datatypes import BY_DTYPE, DATATYPES, Datatype
from foreseen.protocol.strict_json import doubles_may_differ, load_whole
from foreseen.protocol.tensors import array_of_json
from foreseen.types import Array
from foreseen.warm.read.arrow import decoded, leaf_type, plain_type, with_leaf
from foreseen.warm.read.numbers import value_of


class Spec(Protocol):
    """The fields common to inputs and outputs of both signatures."""

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
    listed = element_names(spec, given[0] if given else spec.name)
    if listed and all(name in have for name in listed):
        return listed
    option = "--outputs" if prefix else "--map"
    raise SetupError(f"no column for {spec.name!r}; the file has {', '.join(have)}; give {option} COLUMN={spec.name}")


def element_names(spec: Spec, column: str) -> list[str]:
    """Names of the columns that hold one element each, of a tensor of fixed size; none for others."""
    size = _size(spec)
    return [f"{column}_{i}" for i in range(size)] if size is not None and spec.shape[1:] else []


def takes_nan(spec: Spec) -> bool:
    """Whether a missing value is NaN to this input."""
    return isinstance(spec, ClientInput) and spec.nonfinite and DATATYPES[spec.datatype].kind == "f"


def fixed(spec: Spec) -> bool:
    """Whether every row of it has the same number of elements."""
    return _size(spec) is not None


def tensor(batch: pa.RecordBatch, columns: Sequence[str], spec: Spec, bad: dict[int, str]) -> Array:
    """The values of one input or output of fixed shape, `[rows, …]`; nothing but zeros in rows that go into `bad`."""
    datatype, shape = DATATYPES[spec.datatype], tuple(int(dim) for dim in spec.shape[1:])
    each = shape if len(columns) == 1 else ()
    parts = [_values(batch.column(name), _TargetType(datatype, each, name, takes_nan(spec)), bad) for name in columns]
    if len(parts) == 1:
        return parts[0]
    return np.stack(parts, axis=1).reshape(batch.num_rows, *shape)


def ragged(batch: pa.RecordBatch, column: str, spec: Spec, bad: dict[int, str]) -> list[Array | None]:
    """The values of one input or output whose rows differ in size, by the row; None in rows that go into `bad`."""
    wanted = _TargetType(DATATYPES[spec.datatype], (), spec.name, takes_nan(spec))
    plain = decoded(batch.column(column))
    _, leaf = leaf_type(plain.type)
    if not (_numeric(leaf) or _textual(leaf) or pa.types.is_null(leaf)):
        _reject_all(bad, len(plain), f"column {column!r} holds {plain.type}, the model takes {spec.datatype}")
        return [None] * len(plain)
    made: list[Array | None] = []
    for index, value in enumerate(plain.to_pylist()):
        try:
            made.append(_one(value, wanted, spec))
        except (BadInput, TypeError, ValueError) as error:
            bad.setdefault(index, f"{spec.name}: {error}")
            made.append(None)
    return made


def never_fits(kind: pa.DataType, spec: Spec, column: str, *, one_of_many: bool) -> str | None:
    """Why no value of a column of this type can be (or, with `one_of_many`, be an element of) the input or output."""
    if not fixed(spec):
        return None
    shape = () if one_of_many else tuple(int(dim) for dim in spec.shape[1:])
    wanted = _TargetType(DATATYPES[spec.datatype], shape, column, takes_nan(spec))
    why = _misfit(plain_type(kind), wanted)
    return None if why is None else f"column {column!r} {why}"


def floats(column: pa.Array, otherwise: float) -> Array:
    """A column as FP64, whatever it holds; `otherwise` where it holds no finite number."""
    made: Array = np.full(len(column), otherwise)
    for index, value in enumerate(decoded(column).to_pylist()):
        try:
            number = float(value)
        except (TypeError, ValueError):
            continue
        made[index] = number if math.isfinite(number) else otherwise
    return made


class _TargetType(Struct, frozen=True):
    """The type that one column is read as. `missing`: nulls and NaN are values."""

    datatype: Datatype
    shape: tuple[int, ...]
    name: str
    missing: bool

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def _size(spec: Spec) -> int | None:
    dims = [dim for dim in spec.shape[1:] if isinstance(dim, int)]
    return math.prod(dims) if len(dims) == len(spec.shape) - 1 else None


def _one(value: Any, wanted: _TargetType, spec: Spec) -> Array:
    """One row of open size: at most one dimension follows from the number of elements."""
    datatype = wanted.datatype
    if isinstance(value, str | bytes) and datatype.kind != "s":
        value = value_of(value, truth=datatype.kind == "b", missing=wanted.missing, listed=True)
    if value is None:
        raise BadInput("is null")
    if not isinstance(value, list):
        raise BadInput("takes a list")
    flat = value
    while flat and isinstance(flat[0], list):
        flat = [item for part in flat for item in part]
    dims = [dim if isinstance(dim, int) else None for dim in spec.shape[1:]]
    known = math.prod(dim for dim in dims if dim is not None)
    if dims.count(None) != 1 or known == 0 or len(flat) % known:
        raise BadInput(f"has {len(flat)} elements, which no shape of {list(spec.shape[1:])} takes")
    shape = tuple(len(flat) // known if dim is None else dim for dim in dims)
    return array_of_json(
        [_json_of(item, datatype) for item in flat], datatype, shape, spec.name, missing=wanted.missing
    )


def _json_of(item: Any, datatype: Datatype) -> Any:
    """An element of an Arrow list as JSON would hold it."""
    if isinstance(item, bytes) and datatype.kind == "s":
        return item.decode()
    if isinstance(item, Decimal):
        return int(item) if item == item.to_integral_value() else float(item)
    return int(item) if isinstance(item, bool) and datatype.kind in "if" else item


def _values(column: pa.Array, wanted: _TargetType, bad: dict[int, str]) -> Array:
    """One column as an array of the datatype, `[rows, *shape]`."""
    rows = len(column)
    made: Array = np.zeros((rows, wanted.size), wanted.datatype.dtype)
    if wanted.datatype.kind == "s":
        made[...] = b""
    column = decoded(column)
    why = _misfit(column.type, wanted)
    if why is not None:
        _reject_all(bad, rows, f"column {wanted.name!r} {why}")
        return made.reshape(rows, *wanted.shape)
    _, leaf = leaf_type(column.type)
    if pa.types.is_null(leaf):
        column = pa.array(column.to_pylist(), with_leaf(column.type, _ARROW_OF_KIND[wanted.datatype.kind]))
    elif pa.types.is_decimal(leaf):
        column = _without_decimals(column, wanted)
    if wanted.datatype.kind != "s" and _textual(column.type):
        return _parsed(column, wanted, bad)
    flat = _flat(column, wanted, bad)
    values = _texts(flat) if wanted.datatype.kind == "s" else _numbers(flat, wanted, bad, _good(bad, rows))
    made[_good(bad, rows)] = values.reshape(-1, wanted.size)
    return made.reshape(rows, *wanted.shape)


_ARROW_OF_KIND = {"s": pa.large_binary(), "b": pa.bool_(), "i": pa.int64(), "f": pa.float64()}


def _misfit(kind: pa.DataType, wanted: _TargetType) -> str | None:
    """Why no value of a column of this plain type can be the input."""
    depth, leaf = leaf_type(kind)
    takes = "text or bytes" if wanted.datatype.kind == "s" else wanted.datatype.name
    if pa.types.is_null(kind) or (depth == 0 and wanted.datatype.kind != "s" and _textual(kind)):
        return None  # of the latter each cell says what it holds
    if depth == 0 and wanted.size != 1:
        return f"holds one {kind} a row, the model takes {wanted.size} elements; map a list"
    if (depth > 1 and depth != len(wanted.shape)) or (depth and not wanted.shape):
        return f"is nested {depth} deep, the model takes shape {list(wanted.shape)}"
    fits = {
        "s": _textual(leaf),
        "b": pa.types.is_boolean(leaf),
        "i": _numeric(leaf),
        "f": _numeric(leaf),
    }[wanted.datatype.kind]
    if not (fits or pa.types.is_null(leaf)):
        return f"holds {kind}, the model takes {takes}; map another column"
    return None


def _reject_all(bad: dict[int, str], rows: int, why: str) -> None:
    for index in range(rows):
        bad.setdefault(index, why)


def _good(bad: Mapping[int, str], rows: int) -> Array:
    """Which rows are not in `bad`, bool."""
    good = np.ones(rows, bool)
    if bad:
        good[list(bad)] = False
    return good


def _without_decimals(column: pa.Array, wanted: _TargetType) -> pa.Array:
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


def _flat(column: pa.Array, wanted: _TargetType, bad: dict[int, str]) -> pa.Array:
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


def _numbers(flat: pa.Array, wanted: _TargetType, bad: dict[int, str], good: Array) -> Array:
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


def _parsed(column: pa.Array, wanted: _TargetType, bad: dict[int, str]) -> Array:
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


def _numeric(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )


def _textual(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )
