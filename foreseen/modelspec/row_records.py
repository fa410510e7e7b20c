"""Prepared rows ↔ bytes, for another process of the same model: how often each is asked for, and its tensors."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from foreseen.protocol.datatypes import BY_DTYPE, DATATYPES
from foreseen.protocol.tensors import array_of_raw, raw_of
from foreseen.types import Array, Row, Scope


class TensorRecord(Struct, frozen=True, array_like=True):
    """One array of a row."""

    datatype: str
    shape: tuple[int, ...]
    data: bytes


class RowRecord(Struct, frozen=True, array_like=True):
    """One row that is kept: its scope, its parameters as canonical JSON, what the model sees of it, and its heat: the
    larger, the more often it is asked for."""

    scope: str
    parameters: bytes
    given: tuple[int, ...] | None
    tensors: tuple[TensorRecord, ...]
    heat: int = 0


class RowRecords(Struct, frozen=True):
    """The rows that one worker keeps."""

    worker: int
    workers: int
    rows: list[RowRecord]


def record_of(scope: Scope, row: Row, parameters: bytes, heat: int) -> RowRecord:
    return RowRecord(scope, parameters, row.given, tuple(map(_tensor, row.tensors)), heat)


def row_of(record: RowRecord) -> Row:
    """Raises BadInput where it is no row."""
    arrays = [array_of_raw(one.data, DATATYPES[one.datatype], one.shape, "row") for one in record.tensors]
    return Row(tuple(arrays), record.given)


def encode(worker: int, workers: int, rows: Sequence[RowRecord]) -> bytes:
    return msgspec.msgpack.encode(RowRecords(worker, workers, list(rows)))


def decode(content: bytes) -> RowRecords:
    """Raises msgspec.DecodeError."""
    return msgspec.msgpack.decode(content, type=RowRecords)


def _tensor(array: Array) -> TensorRecord:
    datatype = BY_DTYPE[array.dtype]
    return TensorRecord(datatype.name, array.shape, raw_of(array, datatype))
