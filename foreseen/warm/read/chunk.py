"""Chunks: rows of one file that are in memory at once, and how many these may be."""

from __future__ import annotations

import pyarrow as pa
from msgspec import Struct

from foreseen.warm.plan import LINE_COLUMN

CHUNK_BYTES = 64 * 2**20
"""A chunk is cut before it holds more than this."""

Batch = pa.RecordBatch
"""Rows of a file, for rooms that only pass them on."""


class Chunk(Struct):
    """Rows of one file, from place `start` up to but without `stop`."""

    start: int
    stop: int
    batch: pa.RecordBatch

    def line(self, index: int) -> int:
        """Which line or row of the file (from 0) row `index` of the batch came from."""
        if LINE_COLUMN in self.batch.schema.names:
            return int(self.batch.column(LINE_COLUMN)[index].as_py())
        return self.start + index
