"""Forecasts a run without computing: rows, distinct rows, cached rows, time and memory.

Distinct rows are counted exactly up to a million, then estimated from a sample of the keys (Wegman's adaptive sampling,
error about 0.1 %), so that memory stays bounded. Keys are uniformly distributed already.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable

import pyarrow as pa
from msgspec import Struct

from foreseen.keys.entry import FAR_OVERHEAD_BYTES
from foreseen.modelspec.manifest import Manifest
from foreseen.protocol.datatypes import DATATYPES
from foreseen.types import Key, Row
from foreseen.warm.model.model_rows import Rows
from foreseen.warm.plan import FAILED, HIT
from foreseen.warm.run.warmer import Warmer

SAMPLE_KEYS = 1_000_000
TIMED_ROWS, FEWEST_ROWS, TIMED_BYTES = 1024, 32, 64 * 2**20
"""Rows that the model computes for the estimate: enough to sort by length as a run does."""
ENTRY_BYTES = 110
"""An entry without its data: head, layout of one output, tag; and the names of a key."""


class Forecast(Struct):
    """The forecast of a run. Seconds are None where the model would have to compute and does not run."""

    rows: int
    distinct: int
    cached: int
    failed: int
    far_bytes: int
    seconds: float | None
    estimated: bool
    """Whether `distinct` and `cached` are estimates."""


class _Distinct:
    """A sample of the keys: those whose first `level` bits are zero. One more bit halves it when it is too large."""

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


class _Sample:
    """A uniform sample of the rows that would be computed, bounded in number and in bytes."""

    def __init__(self) -> None:
        self._dice = random.Random(0)  # noqa: S311 - a sample, no secret
        self._seen = 0
        self._most = TIMED_ROWS
        self.rows: list[tuple[Key, tuple[Row, bytes]]] = []

    def add(self, rows: Rows) -> None:
        for one in rows.items():
            if self._seen == 0:
                size = sum(part.nbytes for part in one[1][0].tensors)
                self._most = max(FEWEST_ROWS, min(TIMED_ROWS, TIMED_BYTES // max(1, size)))
            self._seen += 1
            if len(self.rows) < self._most:
                self.rows.append(one)
            elif (place := self._dice.randrange(self._seen)) < self._most:
                self.rows[place] = one


def forecast(batches: Iterable[pa.RecordBatch], warmer: Warmer, running: bool) -> Forecast:
    started, counting, rows, failed = time.perf_counter(), 0.0, 0, 0
    distinct, sample = _Distinct(), _Sample()
    for batch in batches:
        warmed, missed = warmer.looked(batch)
        since = time.perf_counter()
        if warmer.plan.mode == "compute":
            sample.add(missed)
        rows += batch.num_rows
        for key, code in zip(warmed.keys, warmed.codes.tolist(), strict=True):
            if code == FAILED:
                failed += 1
            else:
                distinct.add(key, cached=code == HIT)
        counting += time.perf_counter() - since  # which a run does not do
    read_seconds = time.perf_counter() - started - counting
    different, cached = distinct.counts()
    missing = different - cached
    if warmer.plan.mode == "import":  # which reads, keys and asks Redis as this has just done
        seconds: float | None = read_seconds
    else:
        seconds = _seconds(warmer, sample, missing, read_seconds) if running else None
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


def _seconds(warmer: Warmer, sample: _Sample, missing: int, read_seconds: float) -> float:
    """How long a run would take: it reads and asks the model, both in one interpreter, and does not exceed its rate.

    The sample is computed as a run computes: sorted by length, two requests under way. The first rows are a warm-up.
    """
    if not missing or not sample.rows:
        return read_seconds
    first = max(1, len(sample.rows) // 8)
    if len(sample.rows) > first:
        warmer.timed(dict(sample.rows[:first]))
    made, seconds = warmer.timed(dict(sample.rows[first:] or sample.rows))
    computing = missing * seconds / max(1, made)
    rate = warmer.plan.rows_per_second
    return max(read_seconds + computing, missing / rate if rate else 0.0)
