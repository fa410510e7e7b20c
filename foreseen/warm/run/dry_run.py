"""Batches → what a run over them would do: rows, distinct rows, how many are cached, how long and how much memory.

Distinct rows are counted exactly up to a million, then estimated from a sample of the keys (Wegman's adaptive sampling,
error about 0.1 %), so that memory stays bounded. Keys are uniformly distributed already.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import pyarrow as pa
from msgspec import Struct

from foreseen.keys.entry import FAR_OVERHEAD_BYTES
from foreseen.modelspec.manifest import Manifest
from foreseen.protocol.datatypes import DATATYPES
from foreseen.warm.plan import FAILED, HIT
from foreseen.warm.run.warmer import Warmer

SAMPLE_KEYS = 1_000_000
TIMED_ROWS = 64
ENTRY_BYTES = 110
"""An entry without its data: head, layout of one output, tag; and the names of a key."""


class Forecast(Struct):
    """What a run would do. Seconds are None where the model would have to compute and does not run."""

    rows: int
    distinct: int
    cached: int
    failed: int
    far_bytes: int
    seconds: float | None
    estimated: bool
    """Whether `distinct` and `cached` are estimates."""


class _Distinct:
    """Keys whose first bits are zero, `level` of them; half are dropped whenever there are too many."""

    def __init__(self) -> None:
        self.level = 0
        self._kept: dict[int, bool] = {}

    def add(self, key: bytes, *, cached: bool) -> None:
        mark = int.from_bytes(key[:8], "little")
        if mark & ((1 << self.level) - 1):
            return
        self._kept[mark] = cached
        while len(self._kept) > SAMPLE_KEYS:
            self.level += 1
            self._kept = {m: c for m, c in self._kept.items() if not m & ((1 << self.level) - 1)}

    def counts(self) -> tuple[int, int]:
        return len(self._kept) << self.level, sum(self._kept.values()) << self.level


def forecast(batches: Iterable[pa.RecordBatch], warmer: Warmer, running: bool) -> Forecast:
    started, rows, failed = time.perf_counter(), 0, 0
    distinct = _Distinct()
    row_seconds: float | None = None
    for batch in batches:
        warmed = warmer.cached(batch)
        rows += batch.num_rows
        for key, code in zip(warmed.keys, warmed.codes.tolist(), strict=True):
            if code == FAILED:
                failed += 1
            else:
                distinct.add(key, cached=code == HIT)
        if row_seconds is None and running and warmer.plan.mode == "compute":
            row_seconds = _timed(warmer, batch, [i for i, key in enumerate(warmed.keys) if key][:TIMED_ROWS])
    different, cached = distinct.counts()
    missing = different - cached
    if warmer.plan.mode == "import":  # which reads, keys and asks Redis as this has just done
        seconds: float | None = time.perf_counter() - started
    else:
        seconds = None if row_seconds is None else missing * row_seconds
    return Forecast(
        rows,
        different,
        cached,
        failed,
        missing * (row_bytes(warmer.plan.manifest) + ENTRY_BYTES + FAR_OVERHEAD_BYTES),
        seconds,
        distinct.level > 0,
    )


def row_bytes(manifest: Manifest) -> int:
    """The data of one row's outputs, as far as they have a fixed size."""
    total = 0
    for output in manifest.model.outputs:
        size = max(1, DATATYPES[output.datatype].size)
        for dim in output.shape[1:]:
            size *= dim if isinstance(dim, int) else 1
        total += size
    return total


def _timed(warmer: Warmer, batch: pa.RecordBatch, places: Sequence[int]) -> float | None:
    """Seconds per row, by really computing a few; they are not stored."""
    if not places:
        return None
    started = time.perf_counter()
    made = warmer.predicted(batch, places)
    return (time.perf_counter() - started) / len(made) if made else None
