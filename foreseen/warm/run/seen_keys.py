"""Counts the keys that occurred before, in bounded memory.

Keys are uniformly distributed, so that those whose first bits are zero are a fair sample once there are too many
(Wegman's adaptive sampling).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOST_KEYS = 500_000
_MARK_BYTES = 8


class SeenKeys:
    """Exact up to `MOST_KEYS` keys, an estimate above."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._level = 0

    def again(self, keys: Sequence[bytes]) -> int:
        """How many of these keys occurred before, here or in earlier calls; empty ones do not count."""
        marks = np.frombuffer(b"".join(key[:_MARK_BYTES] for key in keys if key), "<u8")
        if self._level:
            marks = marks[marks & np.uint64((1 << self._level) - 1) == 0]
        before = len(self._seen)
        self._seen.update(marks.tolist())
        again = (len(marks) - (len(self._seen) - before)) << self._level
        while len(self._seen) > MOST_KEYS:
            self._level += 1
            self._seen = {mark for mark in self._seen if not mark & ((1 << self._level) - 1)}
        return again
