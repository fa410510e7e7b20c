"""Rows alone and in batches → how far an answer depends on its batch-mates; and random rows to ask that with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foreseen.modelspec.manifest import ModelInput, ModelSignature
from foreseen.modelspec.row_outputs import RowOutputs
from foreseen.protocol.datatypes import DATATYPES
from foreseen.types import Array, Row

_OPEN_SIZE = 7
"""Of a dimension that differs between requests: ≡ 3 mod 4, where an inexact pool shows (docs/architecture.md)."""
_SCALES = (1.0, 30.0, 0.1, 5.0)
"""Rows of different sizes in one batch: they reveal a model that takes one scale for the whole batch."""


def difference(left: Sequence[RowOutputs], right: Sequence[RowOutputs]) -> float:
    """The largest absolute difference of any element; 0.0 only where all bits are equal, inf where shapes differ."""
    worst = 0.0
    for one, other in zip(left, right, strict=True):
        for a, b in zip(one, other, strict=True):
            if a.shape != b.shape:
                return float("inf")
            if a.tobytes() == b.tobytes() or (a.dtype == object and a.tolist() == b.tolist()):
                continue
            if a.dtype == object:
                return float("inf")
            gap = float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())
            worst = max(worst, gap, 5e-324)  # -0.0 against 0.0 is a difference of bits too
    return worst


def random_rows(signature: ModelSignature, count: int) -> list[Row]:
    """Rows of one shape, each different, the same at every call."""
    numbers = np.random.default_rng(65)
    return [Row(tuple(_tensor(spec, numbers, at) for spec in signature.keyed)) for at in range(count)]


def _tensor(spec: ModelInput, numbers: np.random.Generator, at: int) -> Array:
    shape = tuple(_OPEN_SIZE if isinstance(dim, str) else dim for dim in spec.shape[1:])
    datatype = DATATYPES[spec.datatype]
    if datatype.kind == "s":
        made = np.empty(shape, object)
        for place in np.ndindex(*shape):
            made[place] = " ".join(f"foreseen{number}" for number in numbers.integers(0, 100, at + 1)).encode()
        return made
    if datatype.kind == "b":
        return np.asarray(numbers.random(shape) < 0.5).astype(datatype.dtype)
    if datatype.kind == "i":  # within 1…100: within every vocabulary and every integer
        return np.asarray(numbers.integers(1, 101, shape)).astype(datatype.dtype)
    return np.asarray(numbers.standard_normal(shape) * _SCALES[at % len(_SCALES)]).astype(datatype.dtype)
