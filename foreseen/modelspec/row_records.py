"""Prepared rows ↔ bytes, for another process of the same model: how often each is asked for, and its tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
from msgspec import Struct

from foreseen.protocol.datatypes import BY_DTYPE, DATATYPES
from foreseen.protocol.tensors import array_of_raw, raw_of
from foreseen.types import Array, Prediction, Row, Scope

LENGTH_BYTES = 4


class TensorRecord(Struct, frozen=True, array_like=True):
    """One array of a row."""

    datatype: str
    shape: tuple[int, ...]
    data: bytes


class RowRecord(Struct, frozen=True, array_like=True):
    """One row that is kept: its scope, its parameters as canonical JSON, what the model sees of it, and its heat: the
    larger, the more often it is asked for."""

    scope: Scope
    parameters: bytes
    given: tuple[int, ...] | None
    tensors: tuple[TensorRecord, ...]
    heat: int = 0


class HotRowsHead(Struct, frozen=True):
    """What the answer of one worker begins with."""

    worker: str
    workers: int
    """Of this data directory."""


class TwoAnswers(Struct, frozen=True, array_like=True):
    """A row's key in the space in force, its answer there, and that of a candidate; None where there was none."""

    key: bytes
    old: Prediction | None
    new: Prediction | None


def record_of(scope: Scope, row: Row, parameters: bytes, heat: int) -> RowRecord:
    return RowRecord(scope, parameters, row.given, tuple(map(_tensor, row.tensors)), heat)


def row_of(record: RowRecord) -> Row:
    """Raises BadInput where it is no row."""
    arrays = [array_of_raw(one.data, DATATYPES[one.datatype], one.shape, "row") for one in record.tensors]
    return Row(tuple(arrays), record.given)


def encode(part: HotRowsHead | Sequence[RowRecord]) -> bytes:
    """One part of an answer: its length in 4 bytes, then MessagePack."""
    content = msgspec.msgpack.encode(part)
    return len(content).to_bytes(LENGTH_BYTES, "big") + content


def decode(content: bytes) -> tuple[HotRowsHead, list[RowRecord]]:
    """A whole answer: the head, then the rows of all other parts. Raises msgspec.DecodeError."""
    parts = list(_parts(content))
    if not parts:
        raise msgspec.DecodeError("no head")
    rows = [row for part in parts[1:] for row in msgspec.msgpack.decode(part, type=list[RowRecord])]
    return msgspec.msgpack.decode(parts[0], type=HotRowsHead), rows


def _parts(content: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(content):
        start = at + LENGTH_BYTES
        at = start + int.from_bytes(content[at:start], "big")
        if at > len(content):
            raise msgspec.DecodeError("cut short")
        yield content[start:at]


def _tensor(array: Array) -> TensorRecord:
    datatype = BY_DTYPE[array.dtype]
    return TensorRecord(datatype.name, array.shape, raw_of(array, datatype))
