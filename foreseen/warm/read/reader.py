"""Reads a file as Arrow batches of a given number of rows, from any row on, in bounded memory.

A place in a file is a number of rows (JSONL: lines, CSV: records). Parquet skips whole row groups; the others are read
up to it. Columns that no input or output needs are not read.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import structs

from foreseen.modelspec.manifest import Manifest
from foreseen.warm.read.arrow import decoded_batch
from foreseen.warm.read.chunk import CHUNK_BYTES, Chunk
from foreseen.warm.read.delimited import csv_chunks
from foreseen.warm.read.files import File, opened
from foreseen.warm.read.json_lines import Signature, json_chunks
from foreseen.warm.read.looks import arrow_reader
from foreseen.warm.read.npz import npz_batches

__all__ = ["Chunk", "chunks"]

_BATCH_ROWS = 16384


def chunks(
    file: File, manifest: Manifest, wanted: Mapping[str, str], start: int, rows: int, first_rows: int | None = None
) -> Generator[Chunk, None, None]:
    """The file from place `start` on, `rows` at a time, the first time `first_rows`. `wanted` are the columns that are
    read, as far as it has them, and what each is.

    Raises SetupError where the file turns out to be broken.
    """
    if file.rows == 0:
        return
    partitions = [(name, value) for name, value in file.partitions if name in wanted]
    with opened(file.url) as handle:
        sizes = chain([min(first_rows or rows, rows)], repeat(rows))
        for chunk in _read(handle, file, manifest, wanted, start, rows, sizes):
            yield structs.replace(chunk, batch=_with_columns(chunk.batch, partitions)) if partitions else chunk


def _read(
    handle: Any,
    file: File,
    manifest: Manifest,
    wanted: Mapping[str, str],
    start: int,
    rows: int,
    sizes: Iterator[int],
) -> Iterator[Chunk]:
    of_path = [name for name, _ in file.partitions]
    columns = [name for name in file.columns or () if name in wanted and name not in of_path]
    match file.format:
        case "jsonl":
            return json_chunks(handle, file.url, Signature(manifest, wanted, of_path), start, sizes)
        case "csv":
            return csv_chunks(handle, file.url, columns, start, sizes)
        case "parquet":
            pieces = _parquet(handle, columns, start, rows)
        case "arrow":
            pieces = _arrow(handle, columns, start)
        case "npz":
            pieces = npz_batches(handle, columns, start, rows)
    return _cut(map(decoded_batch, pieces), start, sizes)


def _with_columns(batch: pa.RecordBatch, values: Sequence[tuple[str, str | None]]) -> pa.RecordBatch:
    """The batch with text columns of one value each."""
    for name, value in values:
        batch = batch.append_column(name, pa.array([value] * batch.num_rows, pa.large_string()))
    return batch


def _cut(pieces: Iterator[pa.RecordBatch], start: int, sizes: Iterator[int]) -> Iterator[Chunk]:
    """Batches of any size as chunks of so many rows each, or fewer where they are large."""
    held: list[pa.RecordBatch] = []
    count, rows = 0, next(sizes)
    for piece in pieces:
        while piece.num_rows:
            each = max(1, piece.nbytes // piece.num_rows)
            room = max(1, min(rows - count, CHUNK_BYTES // each - count))
            part, piece = piece.slice(0, room), piece.slice(room)
            held.append(part)
            count += part.num_rows
            if piece.num_rows or count >= rows:
                yield Chunk(start, start + count, _joined(held))
                start, held, count, rows = start + count, [], 0, next(sizes)
    if held:
        yield Chunk(start, start + count, _joined(held))


def _joined(held: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    return held[0] if len(held) == 1 else pa.concat_batches(held)


def _parquet(handle: Any, columns: list[str], start: int, rows: int) -> Iterator[pa.RecordBatch]:
    file = pq.ParquetFile(handle, pre_buffer=False, buffer_size=1 << 20)
    group, skipped = 0, 0
    while group < file.num_row_groups and skipped + file.metadata.row_group(group).num_rows <= start:
        skipped += file.metadata.row_group(group).num_rows
        group += 1
    left = start - skipped
    groups = list(range(group, file.num_row_groups))
    size = min(rows, _BATCH_ROWS, _rows_that_fit(file))
    for batch in file.iter_batches(size, row_groups=groups, columns=columns) if groups else ():
        cut = min(left, batch.num_rows)
        left -= cut
        if cut < batch.num_rows:
            yield batch.slice(cut)


def _rows_that_fit(file: pq.ParquetFile) -> int:
    """How many rows have the bytes of a chunk, by the uncompressed size of the largest row group."""
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    each = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
    return max(1, int(CHUNK_BYTES // max(1, each)))


def _arrow(handle: Any, columns: list[str], start: int) -> Iterator[pa.RecordBatch]:
    reader = arrow_reader(handle)
    whole = isinstance(reader, pa.RecordBatchFileReader)
    places = [reader.schema.names.index(name) for name in columns]
    for batch in (reader.get_batch(i) for i in range(reader.num_record_batches)) if whole else reader:
        cut = min(start, batch.num_rows)
        start -= cut
        if cut < batch.num_rows:
            yield batch.slice(cut).select(places)
