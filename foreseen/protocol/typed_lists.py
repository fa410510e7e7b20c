"""A JSON list by itself → the bytes of a tensor, or its texts. For lists that stand where a valid one stood before.

Only one kind of element is read, and others are refused: an integer spelled `1.0`, a null, a bool among numbers.
What is refused here is no error: `array_of_json` decides about it, and what is accepted here it reads as the same bytes
(`tests/protocol/test_typed_lists.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache, lru_cache
from itertools import chain
from typing import Any

import msgspec
import orjson

from foreseen.errors import BadInput
from foreseen.protocol.datatypes import Datatype, elements

REFUSED = (msgspec.DecodeError, orjson.JSONDecodeError, struct.error, OverflowError, BadInput)
"""What the readers of this file raise."""

Reader = Callable[[bytes], bytes]

_CODES = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i",
    "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip
_KINDS: dict[str, type] = {"b": bool, "i": int, "f": float}


def number_reader(datatype: Datatype, row: tuple[int, ...], rows: int | None) -> Reader | None:
    """Reads lists of numbers: with `rows` flat or nested as [rows, *row], else nested, of any number of rows but none.
    None for what it does not read: BF16, which is rounded twice here, and shapes without elements."""
    code, each = _CODES.get(datatype.name), elements(row)
    if code is None or each == 0 or rows == 0:
        return None
    kind = _KINDS[datatype.kind]
    nested = _decoder(kind, len(row) + 1)
    if rows is None:

        def read_rows(text: bytes) -> bytes:
            data = _flat(nested(text), row)
            if not data:
                raise BadInput("no rows")
            return _packer(code, len(data))(*data)

        return read_rows
    flat = {bool: _decoder(bool, 1), int: _integers, float: _floats}[kind]
    pack = struct.Struct(f"<{rows * each}{code}").pack

    def read(text: bytes) -> bytes:
        if row and text.startswith(b"[", 1):
            data = nested(text)
            if len(data) != rows:
                raise BadInput("another number of rows")
            return pack(*_flat(data, row))
        return pack(*flat(text))

    return read


def read_texts(text: bytes) -> list[bytes]:
    """The elements of a flat list of strings, or the one string that stands in its place."""
    read = orjson.loads(text)
    if type(read) is str:
        return [read.encode()]
    if type(read) is not list or set(map(type, read)) != {str}:
        raise BadInput("not a list of strings")
    return [one.encode() for one in read]


def _integers(text: bytes) -> list[Any]:
    """A flat list for a `pack` of integers, which refuses everything else but bools. A third faster than a decoder that
    knows the kind."""
    return _listed(text, b"e", b"e")


def _floats(text: bytes) -> list[Any]:
    """The same for a `pack` of floats."""
    return _listed(text, b"u", b"l")


def _listed(text: bytes, of_true: bytes, of_false: bytes) -> list[Any]:
    """A list without bools, which have these letters."""
    data = None if of_true in text or of_false in text else orjson.loads(text)
    if type(data) is not list:
        raise BadInput("not a list of numbers")
    return data


def _flat(data: list[Any], row: tuple[int, ...]) -> list[Any]:
    for size in row:
        if set(map(len, data)) != {size}:
            raise BadInput("ragged")
        data = list(chain.from_iterable(data))
    return data


@cache
def _decoder(kind: type, depth: int) -> Callable[[bytes], list[Any]]:
    nested: Any = kind
    for _ in range(depth):
        nested = list[nested]
    return msgspec.json.Decoder(nested).decode


@lru_cache(maxsize=256)
def _packer(code: str, count: int) -> Callable[..., bytes]:
    """Kept for the sizes that came last: making one costs as much as using it."""
    return struct.Struct(f"<{count}{code}").pack
