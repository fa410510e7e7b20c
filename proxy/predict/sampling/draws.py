"""Which rows are audited: a share of all, drawn uniformly; at most so many a second; and how many keys differed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import numpy as np

from foreseen.types import Key

DISTINCT_BITS = 2**17
"""16 KiB a model. Linear counting (Whang et al., 1990): within 1 % up to half a million keys, 2 % at a million."""


class Draws:
    """Draws each row that passes with the same probability, independently of all others.

    `left` is how many rows pass before the next one that is drawn: geometrically distributed, so that a row that is not
    drawn costs a subtraction.
    """

    __slots__ = ("_log", "_random", "_share", "_totals", "left")

    def __init__(self, share: float, source: random.Random | None = None) -> None:
        self._random = source or random.Random()  # noqa: S311 - which rows are audited is no secret
        self._share, self._totals = min(1.0, share), np.random.default_rng(self._random.getrandbits(64))
        self._log = -math.inf if share >= 1 else math.log1p(-share)
        self.left = self._gap()

    def of(self, rows: int) -> Sequence[int]:
        """The places of those drawn among the next so many rows."""
        if self.left >= rows:
            self.left -= rows
            return ()
        drawn, at = [], self.left
        while at < rows:
            drawn.append(at)
            at += 1 + self._gap()
        self.left = at - rows
        return drawn

    def number_of(self, rows: int) -> int:
        """How many of so many rows are drawn, where it does not matter which."""
        return int(self._totals.binomial(rows, self._share))

    def _gap(self) -> int:
        return int(math.log1p(-self._random.random()) / self._log)


class RowBudget:
    """A token bucket: so many rows a second, and one second's at once."""

    def __init__(self, per_second: float, clock: Callable[[], float]) -> None:
        self._rate, self._clock = per_second, clock
        self._most = max(1.0, per_second)
        self._tokens, self._at = self._most, clock()

    def take(self, rows: int) -> int:
        """How many of so many rows may be audited now."""
        now = self._clock()
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._rate)
        self._at = now
        taken = min(rows, int(self._tokens))
        self._tokens -= taken
        return taken

    @property
    def empty_seconds(self) -> float:
        """How long no row may be audited."""
        return max(0.0, (1 - self._tokens) / self._rate - (self._clock() - self._at))


class DistinctKeys:
    """How many different keys came, estimated in constant memory. Keys are uniform, so they need no hash."""

    def __init__(self) -> None:
        self._bits = bytearray(DISTINCT_BITS // 8)
        self._set = 0

    def add(self, key: Key) -> None:
        place, bit = divmod(int.from_bytes(key[:8], "little") % DISTINCT_BITS, 8)
        if not self._bits[place] >> bit & 1:
            self._bits[place] |= 1 << bit
            self._set += 1

    @property
    def count(self) -> int:
        free = max(1, DISTINCT_BITS - self._set)
        return round(DISTINCT_BITS * math.log(DISTINCT_BITS / free))
