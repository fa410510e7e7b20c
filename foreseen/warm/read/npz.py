"""Reads NPZ as record batches, a column for each array. Arrays that no input or output needs are not read."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from msgspec import Struct

from foreseen.types import Array

MAX_WHOLE_BYTES = 2**30
"""An array in column order (Fortran) is read as a whole, as its rows do not lie together; a larger one is refused."""
_DOUBLE_BYTES = 8


class Header(Struct, frozen=True):
    """Of an .npy in the archive."""

    shape: tuple[int, ...]
    column_order: bool
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize


def npz_names(file: Any) -> tuple[list[str], int | None]:
    """The arrays of an archive, and the number of rows that all of them have, if it is one."""
    with zipfile.ZipFile(file) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        counts = {header.shape[0] for name in set(names) if (header := _header(archive, name)).shape}
    return names, counts.pop() if len(counts) == 1 else None if counts else 0


def check_npz(file: Any, names: Sequence[str]) -> int:
    """The rows of the named arrays. Raises ValueError for one that cannot be read by the row."""
    with zipfile.ZipFile(file) as archive:
        headers = {name: _header(archive, name) for name in names}
    for name, header in headers.items():
        if header.dtype.hasobject:
            raise ValueError(f"array {name!r} holds Python objects, which are not read; save text as dtype=str")
        if not header.shape:
            raise ValueError(f"array {name!r} is a scalar and has no rows")
        if header.dtype.kind not in "biufSU":
            raise ValueError(f"array {name!r} holds {header.dtype}, which is neither numbers nor text")
        if header.dtype.kind == "f" and header.dtype.itemsize > _DOUBLE_BYTES:
            raise ValueError(f"array {name!r} holds {header.dtype}, which no datatype takes; save it as float64")
        if header.column_order and header.row_bytes * header.shape[0] > MAX_WHOLE_BYTES:
            raise ValueError(
                f"array {name!r} is in column order and larger than 1 GiB; save np.ascontiguousarray of it"
            )
    counts = {name: header.shape[0] for name, header in headers.items()}
    if len(set(counts.values())) > 1:
        counted = ", ".join(f"{name!r} {count}" for name, count in counts.items())
        raise ValueError(f"its arrays have different numbers of rows ({counted})")
    return next(iter(counts.values()), 0)


def npz_batches(handle: Any, names: Sequence[str], start: int, rows: int) -> Iterator[pa.RecordBatch]:
    """Each array is streamed out of the archive: the file is never in memory as a whole."""
    total = check_npz(handle, names)
    handle.seek(0)
    with zipfile.ZipFile(handle) as archive:
        streams = [_Rows(archive, name, start) for name in names]
        for at in range(start, total, rows):
            arrays = [stream.read(min(rows, total - at)) for stream in streams]
            yield pa.RecordBatch.from_arrays([_arrow_of(array) for array in arrays], list(names))


class _Rows:
    """The rows of one array, in order."""

    def __init__(self, archive: zipfile.ZipFile, name: str, start: int) -> None:
        self._name, self._at = name, start
        self._member = archive.open(f"{name}.npy")
        self._header = _read_header(self._member)
        self._whole: Array | None = None
        if self._header.column_order and len(self._header.shape) > 1:
            raw = self._exactly(self._header.row_bytes * self._header.shape[0])
            self._whole = np.frombuffer(raw, self._header.dtype).reshape(self._header.shape, order="F")
        else:
            self._skip(start * self._header.row_bytes)

    def read(self, count: int) -> Array:
        self._at += count
        if self._whole is not None:
            return np.ascontiguousarray(self._whole[self._at - count : self._at])
        raw = self._exactly(count * self._header.row_bytes)
        return np.frombuffer(raw, self._header.dtype).reshape(count, *self._header.shape[1:])

    def _exactly(self, count: int) -> bytes:
        raw = self._member.read(count)
        if len(raw) != count:
            raise EOFError(f"array {self._name!r} ends early")
        return raw

    def _skip(self, count: int) -> None:
        while count > 0:
            got = len(self._member.read(min(count, 1 << 20)))
            if not got:
                return
            count -= got


def _header(archive: zipfile.ZipFile, name: str) -> Header:
    with archive.open(f"{name}.npy") as member:
        return _read_header(member)


def _read_header(member: Any) -> Header:
    """Leaves `member` at the array's data."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, column_order, dtype = read(member)
    return Header(shape, column_order, dtype)


def _arrow_of(array: Array) -> pa.Array:
    """An array with its batch axis as a column: scalars, or flat lists of fixed size."""
    if array.dtype.kind in "SU":
        return pa.array(array.tolist())
    size = int(np.prod(array.shape[1:], dtype=np.int64))
    flat = pa.array(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))).reshape(-1))
    return flat if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, size)
