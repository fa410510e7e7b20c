"""Sessions and rows → seconds: latency and throughput, on this machine, on one thread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from msgspec import Struct

from foreseen.models.measure.gate import runs_alone
from foreseen.models.measure.graph_run import GraphSession
from foreseen.modelspec.manifest import Manifest
from foreseen.protocol.datatypes import DATATYPES
from foreseen.types import Row

BATCHES = (1, 8, 32)
LENGTHS = (16, 64, 256)
SPEED_LENGTH = 64  # `speedup` is at 1×64 tokens
ROUNDS = 41  # interleaved, so that a slow moment of the machine hits every candidate; odd, so the median was measured
TIMED_SECONDS = 0.25
"""How long one cell of the table is measured; at least three runs."""


class Timing(Struct, frozen=True):
    """One cell of the table: batches of `rows` rows of `tokens` each (None where rows have one size)."""

    rows: int
    tokens: int | None
    milliseconds: float
    """Median of a run."""
    rows_per_second: float


def uniform(manifest: Manifest, like: Row, length: int) -> Row:
    """A row of that length along named dimensions, its values drawn from `like`."""
    tensors = []
    for spec, tensor in zip(manifest.model.keyed, like.tensors, strict=True):
        shape = [length if isinstance(dim, str) else dim for dim in spec.shape[1:]]
        dtype = DATATYPES[spec.datatype].dtype
        tensors.append(np.resize(tensor, shape).astype(dtype))
    return Row(tuple(tensors))


def lengths(manifest: Manifest) -> tuple[int, ...]:
    """The lengths worth measuring; none where rows have one size."""
    if not any(isinstance(dim, str) for spec in manifest.model.keyed for dim in spec.shape[1:]):
        return ()
    longest = min(
        (i.tokenizer.max_tokens for i in manifest.seen.inputs if i.tokenizer is not None), default=LENGTHS[-1]
    )
    return tuple(length for length in LENGTHS if length <= longest)


def batches(manifest: Manifest) -> tuple[int, ...]:
    return (1,) if runs_alone(manifest) else BATCHES


def cells(manifest: Manifest) -> int:
    """How many timings there are to make."""
    return len(batches(manifest)) * max(1, len(lengths(manifest)))


def timings(session: GraphSession, manifest: Manifest, like: Row, part: Callable[[], None]) -> tuple[Timing, ...]:
    """Every batch size at every length."""
    table = []
    for length in lengths(manifest) or (None,):
        for count in batches(manifest):
            row = like if length is None else uniform(manifest, like, length)
            seconds = timed(session, [row] * count)
            table.append(Timing(count, length, round(seconds * 1e3, 3), round(count / seconds, 1)))
            part()
    return tuple(table)


def timed(session: GraphSession, rows: Sequence[Row]) -> float:
    """Median seconds of one run."""
    session.run(rows)
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < TIMED_SECONDS:
        taken.append(_once(session, rows))
    return statistics.median(taken)


def speedups(
    reference: GraphSession, candidates: Mapping[str, GraphSession], manifest: Manifest, like: Row
) -> dict[str, float]:
    """fp32 time / candidate time of one row of 64 tokens (or of the only size), interleaved medians."""
    row = uniform(manifest, like, SPEED_LENGTH) if lengths(manifest) else like
    taken: dict[str, list[float]] = {name: [] for name in ("", *candidates)}
    for round_ in range(ROUNDS + 2):
        for name, session in (("", reference), *candidates.items()):
            seconds = _once(session, [row])
            if round_ >= 2:  # the first two warm up
                taken[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    return {name: medians[""] / medians[name] for name in candidates}


def _once(session: GraphSession, rows: Sequence[Row]) -> float:
    began = time.perf_counter()
    session.run(rows)
    return time.perf_counter() - began
