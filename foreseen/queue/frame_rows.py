"""Canonical frames of a stored job → the rows that they were made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foreseen.errors import EntryError
from foreseen.keys.explain import FrameInput, read_frame
from foreseen.modelspec.manifest import ModelSignature
from foreseen.protocol.datatypes import DATATYPES
from foreseen.types import Columns, Row


def rows_of(frames: Sequence[bytes], signature: ModelSignature) -> Sequence[Row]:
    """The rows that these frames were made of. Raises EntryError for what the signature does not have."""
    parts = _parts_of(frames[0], signature)
    columns = _columns_of(frames, parts) if len(parts) == len(signature.keyed) else None
    if columns is not None:
        return columns
    return [_row_of(frame, signature) for frame in frames]


def _row_of(frame: bytes, signature: ModelSignature) -> Row:
    """The row of one frame; optional inputs may be missing."""
    parts = _parts_of(frame, signature)
    names, keyed = {part.name for part in parts}, signature.keyed
    given = None if len(parts) == len(keyed) else tuple(at for at, spec in enumerate(keyed) if spec.name in names)
    return Row(tuple(part.array for part in parts), given)


def _parts_of(frame: bytes, signature: ModelSignature) -> list[FrameInput]:
    """A frame's inputs, in the signature's order."""
    parts = {one.name: one for one in read_frame(frame).inputs}
    names = [spec.name for spec in signature.keyed]
    needed = {spec.name for spec in signature.keyed if not spec.optional}
    if not needed <= parts.keys() <= set(names):
        raise EntryError("format")
    return [parts[name] for name in names if name in parts]


def _columns_of(frames: Sequence[bytes], parts: Sequence[FrameInput]) -> Columns | None:
    """The rows of frames that differ in numbers alone, read all at once; None where they differ in more."""
    length = len(frames[0])
    datatypes = [DATATYPES[part.datatype] for part in parts]
    if any(datatype.kind in "sb" for datatype in datatypes) or any(len(frame) != length for frame in frames):
        return None
    table = np.frombuffer(b"".join(frames), np.uint8).reshape(len(frames), length)
    alike, columns = np.ones(length, bool), []
    for part, datatype in zip(parts, datatypes, strict=True):
        size = part.array.size * datatype.size
        alike[part.at : part.at + size] = False
        raw = np.ascontiguousarray(table[:, part.at : part.at + size])
        columns.append(raw.view(datatype.dtype).reshape(len(frames), *part.shape))
    return Columns(columns) if (table[:, alike] == table[0, alike]).all() else None
