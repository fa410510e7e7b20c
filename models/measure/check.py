"""A candidate and the fp32 graph on the same rows → figures: how well they agree, how far batch-mates change a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b

import numpy as np
from msgspec import Struct

from foreseen.models.measure.graph_run import GraphSession
from foreseen.modelspec.manifest import ModelSignature
from foreseen.modelspec.row_outputs import RowOutputs
from foreseen.types import Array, Row

Head = Callable[[Array], Array]
"""Vectors FP32 [n, k] → labels INT64 [n]."""

LARGEST_BATCH = 32
PADDED_ROWS = 200  # each costs a run of twice the longest row; random batches pad the others
LEAST_DIFFERENCE = float(np.finfo(np.float64).tiny)  # of +0 and −0, and of 64-bit integers that differ, but not as FP64


class Invariance(Struct, frozen=True):
    """What batch-mates and padding do to rows."""

    max_difference: float
    """Largest difference of any element of any output between a row alone and the same row in a batch."""
    flips: float
    """Share of comparisons whose label differs from the row's label alone, 0…1."""
    comparisons: int


def vectors(outputs: Sequence[RowOutputs], signature: ModelSignature) -> Array:
    """The first output of numbers of every row as one vector of a fixed size, FP64 [n, k]. Of a model that gives only
    strings it is the first output, each string as signs that its hash gives.

    Named dimensions (tokens) differ between rows, so the mean is taken over them.
    """
    place = next((at for at, spec in enumerate(signature.outputs) if spec.datatype != "BYTES"), 0)
    shape = signature.outputs[place].shape
    dims = shape[1:] if signature.has_rows else shape
    named = tuple(axis for axis, dim in enumerate(dims) if isinstance(dim, str))
    return np.stack([_means(row[place], named) for row in outputs])


def _means(output: Array, named: tuple[int, ...]) -> Array:
    numbers = _signs(output) if output.dtype.kind == "O" else np.asarray(output, np.float64)
    empty = any(numbers.shape[axis] == 0 for axis in named)  # nothing was found in this row, say
    means = numbers.sum(axis=named) if empty else numbers.mean(axis=named)
    return np.asarray(means).reshape(-1)


def _signs(strings: Array) -> Array:
    """Every string as 64 numbers 1 or −1: equal strings agree, others as good as never."""
    packed = [blake2b(str(item).encode(), digest_size=8).digest() for item in strings.ravel()]
    bits = np.unpackbits(np.frombuffer(b"".join(packed), np.uint8)).astype(np.float64)
    return (2 * bits - 1).reshape(*strings.shape, 64)


def cosines(a: Array, b: Array) -> Array:
    """Row by row, [n]. Two rows of zeros agree."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products = np.einsum("ij,ij->i", a, b)
    cosine: Array = np.where(norms > 0, products / np.where(norms > 0, norms, 1), 1.0)
    return cosine


def invariance(session: GraphSession, rows: Sequence[Row], alone: Sequence[RowOutputs], head: Head) -> Invariance:
    """Every row alone against up to 200 of them padded by the largest, and all in random batches."""
    labels = head(vectors(alone, session.signature))
    largest, flips, count = 0.0, 0, 0
    for members in [*padded(rows)[:PADDED_ROWS], *batches(len(rows))]:
        together = session.run([rows[i] for i in members])
        largest = max(largest, *(difference(alone[i], got) for i, got in zip(members, together, strict=True)))
        flips += int((head(vectors(together, session.signature)) != labels[members]).sum())
        count += len(members)
    return Invariance(largest, flips / count, count)


def padded(rows: Sequence[Row]) -> list[list[int]]:
    """Every row in a pair with the largest one, which pads it as far as these rows can."""
    largest = max(range(len(rows)), key=lambda i: sum(tensor.size for tensor in rows[i].tensors))
    return [[i, largest] for i in range(len(rows)) if i != largest]


def batches(count: int, seed: int = 1, rounds: int = 1) -> Iterator[list[int]]:
    """Indices of random batches of 2 to 32 that hold every row once per round (the last may be a row alone)."""
    chance = np.random.default_rng(seed)
    for _ in range(rounds):
        order = [int(i) for i in chance.permutation(count)]
        while order:
            size = int(chance.integers(2, LARGEST_BATCH + 1))
            yield order[:size]
            order = order[size:]


def difference(a: RowOutputs, b: RowOutputs) -> float:
    """Largest absolute difference of two answers to one row; 0.0 means equal, bit for bit; inf where shapes differ."""
    largest = 0.0
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape:
            return np.inf
        if x.dtype.kind == "O":
            largest = max(largest, 0.0 if np.array_equal(x, y) else np.inf)
        elif x.tobytes() != y.tobytes():
            apart = float(np.abs(x.astype(np.float64) - y.astype(np.float64)).max())
            largest = max(largest, apart or LEAST_DIFFERENCE)
    return largest
