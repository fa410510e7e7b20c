"""Tensor data, as JSON lists or as bytes ↔ arrays of the stated datatype and shape.

NumPy casts silently: NaN to int32, 1e39 to inf, -1 to uint8, True to 1, and `np.prod([2**32, 2**32])` is 0. Nothing of
that passes here. Refusals are BadInput and name the field.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import ml_dtypes
import numpy as np
from msgspec import Struct

from foreseen.errors import BadInput, BadRequest
from foreseen.protocol.datatypes import DATATYPES, Datatype, elements
from foreseen.protocol.json_parts import PART_ELEMENTS, flattened, in_parts, types_of
from foreseen.protocol.strict_json import MAX_FLOAT_INT, doubles_may_differ, load_whole
from foreseen.types import Array

MAX_RANK = 8
MAX_DIM = 2**31 - 1


class Written(Struct, frozen=True):
    """The JSON text that data was read of, and how to find the data in the value of the text."""

    text: bytes
    find: Callable[[Any], Any]

    @property
    def may_differ(self) -> bool:
        """Whether a number of the text may be another one than its double."""
        return doubles_may_differ(self.text)

    def whole(self) -> Any:
        """The data, with the integers that the digits say where numbers are spelled as floats."""
        return self.find(load_whole(self.text))


def checked_shape(shape: Sequence[int], field: str) -> tuple[int, ...]:
    """A shape as clients may send it: rank up to 8, sizes from 0 to 2^31-1."""
    if len(shape) > MAX_RANK:
        raise BadInput(f"{field}.shape: has {len(shape)} dimensions, at most {MAX_RANK} are allowed")
    for dim in shape:
        if not 0 <= dim <= MAX_DIM:
            raise BadInput(f"{field}.shape: {dim} is not between 0 and {MAX_DIM}")
    return tuple(shape)


def array_of_json(
    data: Any,
    datatype: Datatype,
    shape: tuple[int, ...],
    field: str,
    written: Written | None = None,
    *,
    missing: bool = False,
) -> Array:
    """A tensor of its JSON data, which is flat or nested as the shape says.

    Integers may be spelled `1`, `1.0` or `1e0`, and are decided from the digits that were `written`, as far as these
    are known; floats are doubles, rounded once to the datatype, and stay finite; BYTES are strings.
    With `missing` a null among floats is NaN; whether the input takes NaN is for preparation to say.
    """
    if type(data) is not list:
        raise BadInput(f"{field}.data: must be a list")
    flat = _flat(data, shape, field)
    kinds = types_of(flat)
    if missing and datatype.kind == "f" and type(None) in kinds:
        flat = [math.nan if value is None else value for value in flat]
        kinds = kinds - {type(None)} | {float}
    if datatype.kind == "s":
        return _strings(flat, kinds, shape, field)
    if datatype.kind == "b":
        if not kinds <= {bool}:
            raise BadInput(f"{field}.data: BOOL takes true and false only")
        return _array(flat, np.dtype(np.bool_)).reshape(shape)
    if not kinds <= {int, float}:
        strange = sorted(kind.__name__ for kind in kinds - {int, float})
        raise BadInput(f"{field}.data: {datatype.name} takes numbers only, not {', '.join(strange)}")
    if datatype.kind == "f":
        return _floats(flat, datatype, field, missing).reshape(shape)
    if float in kinds and written is not None and written.may_differ:
        flat = _flat(written.whole(), shape, field)
    return _integers(flat, kinds, datatype, field).reshape(shape)


def array_of_raw(raw: bytes | memoryview, datatype: Datatype, shape: tuple[int, ...], field: str) -> Array:
    """A tensor of its bytes: little-endian, row-major; BYTES elements behind a 4-byte length each.

    Arrays of numbers are read-only views of `raw`, without a copy.
    """
    count = elements(shape)
    if datatype.kind == "s":
        return _byte_strings(memoryview(raw), count, shape, field)
    if len(raw) != count * datatype.size:
        wanted = f"{datatype.name} {list(shape)} takes {count * datatype.size}"
        raise BadInput(f"{field}: has {len(raw)} bytes, {wanted}")
    array = np.frombuffer(raw, datatype.dtype).reshape(shape)
    if datatype.kind == "b" and np.frombuffer(raw, np.uint8).max(initial=0) > 1:
        raise BadInput(f"{field}: a BOOL byte is 0 or 1")
    return array


def raw_of(array: Array, datatype: Datatype) -> bytes:
    """A tensor's bytes, as `array_of_raw` reads them."""
    if datatype.kind == "s":
        return b"".join(chain.from_iterable((len(item).to_bytes(4, "little"), item) for item in array.ravel()))
    return np.ascontiguousarray(array, datatype.dtype).tobytes()


def json_of_raw(raw: bytes, datatype: Datatype, count: int, field: str) -> Any:
    """Flat JSON data of a tensor's bytes, as something that orjson renders. Raises BadRequest for non-UTF-8 BYTES."""
    if datatype.kind == "s":
        try:
            return [item.decode() for item in _byte_strings(memoryview(raw), count, (count,), field)]
        except UnicodeDecodeError:
            raise BadRequest(f"{field}: holds bytes that are not UTF-8; ask for binary_data") from None
    array = np.frombuffer(raw, datatype.dtype)
    return array.astype(np.float32) if datatype.dtype == ml_dtypes.bfloat16 else array


def _flat(data: list[Any], shape: tuple[int, ...], field: str) -> list[Any]:
    """The elements in row-major order, whether `data` is flat or nested as the shape says."""
    count = elements(shape)
    if len(shape) > 1 and count and type(data[0] if data else None) is list:
        for axis, size in enumerate(shape):
            if axis and (types_of(data) != {list} or any(set(map(len, part)) != {size} for part in in_parts(data))):
                raise BadInput(f"{field}.data: is ragged, or not nested as shape {list(shape)} says")
            if axis:
                data = flattened(data)
            elif len(data) != size:
                raise BadInput(f"{field}.data: has {len(data)} lists, shape {list(shape)} says {size}")
    elif count == 0:
        return [] if _no_elements(data) else _wrong_count(data, shape, field)
    if len(data) != count:
        return _wrong_count(data, shape, field)
    return data


def _no_elements(data: list[Any]) -> bool:
    """Whether nested lists hold nothing at all."""
    level = data
    while level:
        if types_of(level) != {list}:
            return False
        level = flattened(level)
    return True


def _wrong_count(data: list[Any], shape: tuple[int, ...], field: str) -> list[Any]:
    raise BadInput(f"{field}.data: has {len(data)} elements, shape {list(shape)} takes {elements(shape)}")


def _integers(flat: list[Any], kinds: set[type], datatype: Datatype, field: str) -> Array:
    if float in kinds:
        for index, value in enumerate(flat):
            if type(value) is float and not (value.is_integer() and abs(value) <= MAX_FLOAT_INT):
                raise BadInput(f"{field}.data[{index}]: does not fit {datatype.name} exactly")
        flat = [int(value) for value in flat]
    try:
        return _array(flat, datatype.dtype)
    except OverflowError:
        raise BadInput(f"{field}.data: an integer does not fit {datatype.name}") from None


def _array(flat: list[Any], dtype: np.dtype[Any]) -> Array:
    """The numbers of a list, some thousand at a time: one call holds the interpreter until it is done."""
    if len(flat) <= PART_ELEMENTS:
        return np.array(flat, dtype)
    array, at = np.empty(len(flat), dtype), 0
    for part in in_parts(flat):
        array[at : at + len(part)] = np.array(part, dtype)
        at += len(part)
    return array


def object_array(values: Sequence[object]) -> Array:
    """An array of these objects themselves."""
    array, at = np.empty(len(values), object), 0
    for part in in_parts(values):
        array[at : at + len(part)] = part
        at += len(part)
    return array


def _floats(flat: list[Any], datatype: Datatype, field: str, missing: bool) -> Array:
    # Through float64, so that `16777217`, `16777217.0` and `16777217e0` are the same number for every float datatype.
    with np.errstate(over="ignore"):
        given = _array(flat, np.dtype(np.float64))
        array = rounded(given, datatype)
    if not (np.isfinite(array) | (missing & ~np.isfinite(given))).all():
        raise BadInput(f"{field}.data: a number overflows {datatype.name}")
    return array


def rounded(array: Array, datatype: Datatype) -> Array:
    """An array as another datatype; doubles are rounded once, half to even.

    NumPy makes a bfloat16 of a float32, which is rounded already: 1.00390625 and a little becomes 1.00390625, then 1.0.
    So the float32 in between is rounded to odd, which keeps that there was a little more (Boldo and Melquiond, 2008).
    """
    if datatype.dtype != ml_dtypes.bfloat16 or array.dtype != np.float64:
        return array.astype(datatype.dtype)
    single = array.astype(np.float32)
    bits = single.view(np.uint32)
    wide = single.astype(np.float64)
    bits -= np.abs(wide) > np.abs(array)  # toward zero
    bits |= (wide != array) & ~np.isnan(array)
    return single.astype(datatype.dtype)


def _strings(flat: list[Any], kinds: set[type], shape: tuple[int, ...], field: str) -> Array:
    if not kinds <= {str}:
        raise BadInput(f"{field}.data: BYTES takes strings only")
    return object_array([item.encode() for item in flat]).reshape(shape)


def _byte_strings(raw: memoryview, count: int, shape: tuple[int, ...], field: str) -> Array:
    if len(raw) < 4 * count:  # before anything of that size is allocated
        raise BadInput(f"{field}: has {len(raw)} bytes, {count} BYTES elements need at least {4 * count}")
    array = np.empty(count, object)
    at = 0
    for index in range(count):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        if at + 4 > len(raw) or end > len(raw):
            raise BadInput(f"{field}: BYTES element {index} ends beyond the data")
        array[index] = bytes(raw[at + 4 : end])
        at = end
    if at != len(raw):
        raise BadInput(f"{field}: has {len(raw)} bytes, its {count} BYTES elements take {at}")
    return array.reshape(shape)


def datatype_of(name: str, field: str) -> Datatype:
    """Raises BadInput for a datatype that the protocol does not have."""
    try:
        return DATATYPES[name]
    except KeyError:
        raise BadInput(f"{field}.datatype: must be one of {', '.join(DATATYPES)}") from None
