"""Uniform samples of a stream in bounded memory (Vitter's algorithm R, 1985), and what is made of them."""

from __future__ import annotations

import random

import numpy as np

from foreseen.compare.report import NeighbourOverlap, Spread
from foreseen.types import Array

SAMPLE_VALUES = 65_536
"""Up to so many values quantiles are exact."""
SAMPLE_EMBEDDINGS = 1_000
NEAREST = 10
_QUANTILES = (0.01, 0.05, 0.50, 0.95, 0.99)


class Places:
    """Which place of a sample of `size` the next one of a stream takes; None: it is left out."""

    def __init__(self, size: int, source: random.Random) -> None:
        self._size, self._random, self.seen = size, source, 0

    def next(self) -> int | None:
        self.seen += 1
        if self.seen <= self._size:
            return self.seen - 1
        place = self._random.randrange(self.seen)
        return place if place < self._size else None


class ValueSample:
    """A sample of numbers, and the extremes of all."""

    def __init__(self, source: random.Random, size: int = SAMPLE_VALUES) -> None:
        self._places = Places(size, source)
        self._values: list[float] = []
        self._least, self._most = np.inf, -np.inf

    def add(self, value: float) -> None:
        self._least, self._most = min(self._least, value), max(self._most, value)
        place = self._places.next()
        if place is None:
            return
        if place == len(self._values):
            self._values.append(value)
        else:
            self._values[place] = value

    @property
    def values(self) -> Array:
        return np.array(self._values, np.float64)

    def spread(self) -> Spread | None:
        """None where there were no values."""
        if not self._values:
            return None
        p01, p05, p50, p95, p99 = np.quantile(self.values, _QUANTILES, method="lower").tolist()
        return Spread(self._places.seen, float(self._least), p01, p05, p50, p95, p99, float(self._most))


class EmbeddingSample:
    """A sample of rows with their old and new embeddings."""

    def __init__(self, source: random.Random, size: int = SAMPLE_EMBEDDINGS) -> None:
        self._places = Places(size, source)
        self._old: list[Array] = []
        self._new: list[Array] = []

    def add(self, old: Array, new: Array) -> None:
        place = self._places.next()
        if place is None:
            return
        if place == len(self._old):
            self._old.append(old)
            self._new.append(new)
        else:
            self._old[place], self._new[place] = old, new

    def overlap(self, nearest: int = NEAREST) -> NeighbourOverlap | None:
        """None where the sample has too few rows to choose among, or rows of several widths."""
        rows = len(self._old)
        if rows <= 2 * nearest or len({one.size for one in (*self._old, *self._new)}) != 1:
            return None
        old, new = (_nearest(np.stack(side), nearest) for side in (self._old, self._new))
        shares = np.array([len(np.intersect1d(a, b)) for a, b in zip(old, new, strict=True)]) / nearest
        return NeighbourOverlap(rows, nearest, float(shares.mean()), float(shares.min()))


def _nearest(vectors: Array, nearest: int) -> Array:
    """The places of each row's nearest others by cosine."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = np.nan_to_num(vectors / np.where(lengths > 0, lengths, 1))
    likeness = units @ units.T
    np.fill_diagonal(likeness, -np.inf)
    return np.argpartition(-likeness, nearest - 1, axis=1)[:, :nearest]
