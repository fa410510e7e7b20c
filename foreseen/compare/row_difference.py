"""Two answers to one row → how they differ."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from msgspec import Struct

from foreseen.protocol.datatypes import DATATYPES
from foreseen.types import Array, Prediction

LEAST_EMBEDDING = 8
"""Elements of a float vector that is taken for an embedding, where its output has no labels."""
HALF = 0.5


class RowDifference(Struct, frozen=True, gc=False):
    """How the new answer to a row differs from the old one. None: the answers have nothing to measure that by."""

    bits: bool = False
    """Whether any bit differs."""
    comparable: bool = True
    """False where the two have other outputs, datatypes or shapes: then nothing else is measured."""
    label: bool | None = None
    """Whether the top label of an output with labels differs."""
    beyond: bool = False
    """Whether a value differs by more than the tolerance."""
    cosine: float | None = None
    """Of float vectors; the smallest, where there are several."""
    max_abs: float | None = None
    """The largest difference of two numbers."""


def difference(old: Prediction, new: Prediction, tolerance: float, labelled: Collection[str] = ()) -> RowDifference:
    """`tolerance` is absolute and relative, as of `numpy.allclose`; the last axis of `labelled` outputs is classes."""
    if old.outputs != new.outputs:
        return RowDifference(bits=True, comparable=False, label=True if labelled else None, beyond=True)
    label: bool | None = None
    beyond, cosines, largest = False, [], []
    for output, one, other in zip(old.outputs, old.data, new.data, strict=True):
        datatype = DATATYPES[output.datatype]
        if datatype.kind == "s":
            beyond = beyond or one != other
            continue
        left, right = (np.frombuffer(raw, datatype.dtype).reshape(output.shape) for raw in (one, other))
        if output.name in labelled:
            label = bool(label) or _top_differs(left, right)
        left, right = left.astype(np.float64), right.astype(np.float64)
        beyond = beyond or not np.allclose(left, right, tolerance, tolerance, equal_nan=True)
        largest.append(_max_abs(left, right))
        if datatype.kind == "f" and left.size > 1:
            cosines.append(cosine(left, right))
    return RowDifference(
        bits=old.data != new.data,
        label=label,
        beyond=beyond,
        cosine=min(cosines, default=None),
        max_abs=max(largest, default=None),
    )


def embedding_of(prediction: Prediction, labelled: Collection[str] = ()) -> Array | None:
    """The first output that is a float vector of some length and has no labels, as FP32; None where there is none."""
    for output, raw in zip(prediction.outputs, prediction.data, strict=True):
        datatype = DATATYPES[output.datatype]
        vector = datatype.kind == "f" and len(output.shape) == 1 and output.shape[0] >= LEAST_EMBEDDING
        if vector and output.name not in labelled:
            return np.frombuffer(raw, datatype.dtype).astype(np.float32)
    return None


def cosine(left: Array, right: Array) -> float:
    """The cosine of two arrays as vectors: 1 of two that are equal, 0 of one without a length, -1 of no number."""
    if np.array_equal(left, right, equal_nan=True):
        return 1.0
    left, right = left.ravel(), right.ravel()
    lengths = float(np.linalg.norm(left) * np.linalg.norm(right))
    found = float(left @ right) / lengths if lengths else 0.0
    return max(-1.0, min(1.0, found)) if np.isfinite(found) else -1.0


def _top_differs(left: Array, right: Array) -> bool:
    """Whether the largest class differs; of a single score, whether it has crossed one half."""
    if not left.size:
        return False
    if left.shape[-1:] in ((), (1,)):
        return not np.array_equal(left > HALF, right > HALF)
    return not np.array_equal(left.argmax(-1), right.argmax(-1))


def _max_abs(left: Array, right: Array) -> float:
    """Equal infinities and two NaNs differ by nothing, a NaN from a number by infinity."""
    with np.errstate(invalid="ignore"):
        gaps = np.atleast_1d(np.abs(left - right))
    gaps[np.atleast_1d((left == right) | (np.isnan(left) & np.isnan(right)))] = 0.0
    gaps[np.isnan(gaps)] = np.inf
    return float(gaps.max(initial=0.0))
