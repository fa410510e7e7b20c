"""Shows canonical frames in readable form, and the fields in which two of them differ.

It reads the grammar that `key.py` writes. The output holds inputs: show it only to users who may see them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from foreseen.keys.key import MAGIC
from foreseen.protocol.datatypes import BY_CODE, elements
from foreseen.protocol.tensors import array_of_raw
from foreseen.types import Array

MAX_SHOWN = 32
"""Elements of a tensor that are shown; the rest is counted."""


class FrameInput(Struct, frozen=True):
    """One input of a frame; `at` is where its data begin."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    array: Array
    at: int = 0

    def shown(self) -> dict[str, Any]:
        values = [_value(item) for item in self.array.ravel()[:MAX_SHOWN].tolist()]
        more = self.array.size - len(values)
        document = {"name": self.name, "datatype": self.datatype, "shape": list(self.shape), "data": values}
        return {**document, "more": more} if more else document


class Frame(Struct, frozen=True):
    """A frame in readable form."""

    parameters: str
    inputs: tuple[FrameInput, ...]

    def shown(self) -> dict[str, Any]:
        return {"format": MAGIC.decode(), "parameters": self.parameters, "inputs": [i.shown() for i in self.inputs]}


def read_frame(frame: bytes) -> Frame:
    """A frame that `Framer.frame` made. Raises ValueError for any other bytes."""
    if frame[:4] != MAGIC:
        raise ValueError("not a frame of this format")
    (length,) = struct.unpack_from("<I", frame, 4)
    at = 8 + length
    parameters, inputs = frame[8:at].decode(), []
    while at < len(frame):
        (length,) = struct.unpack_from("<H", frame, at)
        name = frame[at + 2 : at + 2 + length].decode()
        at += 2 + length
        datatype, rank = BY_CODE[frame[at]], frame[at + 1]
        shape = struct.unpack_from(f"<{rank}Q", frame, at + 2)
        at += 2 + 8 * rank
        (length,) = struct.unpack_from("<Q", frame, at)
        raw = frame[at + 8 : at + 8 + length]
        inputs.append(FrameInput(name, datatype.name, shape, array_of_raw(raw, datatype, shape, name), at + 8))
        at += 8 + length
    return Frame(parameters, tuple(inputs))


def differences(one: Frame, other: Frame) -> list[str]:
    """The fields in which two frames differ, each as one readable line; empty for equal frames."""
    found = []
    if one.parameters != other.parameters:
        found.append(f"parameters: {one.parameters or 'none'} ≠ {other.parameters or 'none'}")
    left, right = ({i.name: i for i in frame.inputs} for frame in (one, other))
    for name in sorted(left.keys() | right.keys()):
        a, b = left.get(name), right.get(name)
        if a is None or b is None:
            found.append(f"inputs.{name}: only in {'the first' if b is None else 'the second'}")
        elif a.datatype != b.datatype:
            found.append(f"inputs.{name}.datatype: {a.datatype} ≠ {b.datatype}")
        elif a.shape != b.shape:
            found.append(f"inputs.{name}.shape: {list(a.shape)} ≠ {list(b.shape)}")
        else:
            found += _first_difference(a, b)
    return found


def _first_difference(a: FrameInput, b: FrameInput) -> list[str]:
    datatype = a.datatype
    left, right = (_elements(i) for i in (a, b))
    places = [at for at in range(elements(a.shape)) if left[at] != right[at]]
    if not places:
        return []
    at = places[0]
    values = f"{_value(a.array.ravel()[at])!r} ≠ {_value(b.array.ravel()[at])!r}"
    more = f", and {len(places) - 1} more" if len(places) > 1 else ""
    return [f"inputs.{a.name}.data[{at}]: {values}{more} ({datatype})"]


def _elements(one: FrameInput) -> Sequence[bytes]:
    """The elements as bytes: 0.0 and -0.0 differ, and NaN equals itself."""
    flat = one.array.ravel()
    return [item if isinstance(item, bytes) else item.tobytes() for item in flat]


def _value(item: Any) -> Any:
    if isinstance(item, bytes):
        return item.decode(errors="backslashreplace")[:200]
    return item.item() if hasattr(item, "item") else item
