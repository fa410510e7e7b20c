"""Rows that are equal ↔ one of them, and which row each is: a job of many equal rows is stored and answered once."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from foreseen.errors import EntryError

Item = TypeVar("Item")


def distinct(frames: Sequence[bytes]) -> tuple[list[bytes], bytes]:
    """The frames that differ, and which of them each is: uint32, deflated; empty where all differ."""
    known: dict[bytes, int] = {}
    places = [known.setdefault(frame, len(known)) for frame in frames]
    if len(known) == len(frames):
        return list(frames), b""
    return list(known), zlib.compress(np.array(places, "<u4").tobytes(), 1)


def placed(items: list[Item], places: bytes) -> list[Item]:
    """The item of each row, where equal rows have one. Raises EntryError("format")."""
    if not places:
        return items
    try:
        numbers = np.frombuffer(zlib.decompress(places), "<u4")
        return [items[number] for number in numbers.tolist()]
    except (zlib.error, ValueError, IndexError):
        raise EntryError("format") from None
