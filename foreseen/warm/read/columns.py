"""Columns of an Arrow batch → tensors of a signature, and the rows that cannot become any, with the reason.

A column holds one value per row: a number, a text, bytes, or a list that holds a tensor flat or nested. Text that
stands for numbers (CSV) is read as JSON reads it. An input of n numbers may also be n columns NAME_0 … NAME_n-1.
Numbers have no datatype of their own here, as in JSON: integers must fit exactly, floats must stay finite. Where an
input takes NaN (`nonfinite`), a missing value is NaN. A column of a type that can never be the input rejects its rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from foreseen.errors import BadInput, SetupError
from foreseen.modelspec.manifest import ClientInput, Dim
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.tensors import array_of_json
from foreseen.types import Array
from foreseen.warm.read.arrow import decoded, leaf_type, plain_type
from foreseen.warm.read.column_values import TargetType, is_numeric, is_textual, json_of, misfit, reject_all, values_of
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
    parts = [values_of(batch.column(name), TargetType(datatype, each, name, takes_nan(spec)), bad) for name in columns]
    if len(parts) == 1:
        return parts[0]
    return np.stack(parts, axis=1).reshape(batch.num_rows, *shape)


def ragged(batch: pa.RecordBatch, column: str, spec: Spec, bad: dict[int, str]) -> list[Array | None]:
    """The values of one input or output whose rows differ in size, by the row; None in rows that go into `bad`."""
    wanted = TargetType(DATATYPES[spec.datatype], (), spec.name, takes_nan(spec))
    plain = decoded(batch.column(column))
    _, leaf = leaf_type(plain.type)
    if not (is_numeric(leaf) or is_textual(leaf) or pa.types.is_null(leaf)):
        reject_all(bad, len(plain), f"column {column!r} holds {plain.type}, the model takes {spec.datatype}")
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
    wanted = TargetType(DATATYPES[spec.datatype], shape, column, takes_nan(spec))
    why = misfit(plain_type(kind), wanted)
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


def _size(spec: Spec) -> int | None:
    dims = [dim for dim in spec.shape[1:] if isinstance(dim, int)]
    return math.prod(dims) if len(dims) == len(spec.shape) - 1 else None


def _one(value: Any, wanted: TargetType, spec: Spec) -> Array:
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
    return array_of_json([json_of(item, datatype) for item in flat], datatype, shape, spec.name, missing=wanted.missing)
