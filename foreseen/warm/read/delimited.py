"""Reads CSV and TSV as chunks of text columns. A record that cannot be read is a rejected row that names its line.

All cells stay text until the signature says their datatype: a text that looks like a number stays a text. Blank lines
are no rows, as in JSON Lines. A place in a file is a number of records, blank lines included.
"""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from msgspec import Struct

from foreseen.warm.plan import LINE_COLUMN, REJECT_COLUMN
from foreseen.warm.read.chunk import CHUNK_BYTES, Chunk

MAX_CELL_CHARACTERS = 2**30
MAX_RECORD_CHARACTERS = 2**26
"""A record of several lines that is longer has an opening quote without a closing one."""
_PIECE_ROWS, _PIECE_CHARACTERS = 16384, 4 * 2**20
"""So many rows are Python strings at a time, which take many times the memory of the Arrow column they become."""
_SEPARATORS = ";\t|"

csv.field_size_limit(MAX_CELL_CHARACTERS)  # the module's own limit of 131,072 is less than a picture as a JSON list


class DelimitedRecord(Struct):
    """One record: its cells, or why there are none; no cells and no reason for a blank line."""

    cells: list[str]
    reason: str | None
    characters: int


@contextmanager
def text_of(file: Any) -> Iterator[io.TextIOWrapper]:
    """Bytes as lines of text; what is not UTF-8 survives as surrogates, and its row is rejected."""
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    try:
        yield text
    finally:
        text.detach()  # its opener closes the file


def delimiter_of(url: str) -> str:
    name = url.rsplit("/", 1)[-1].lower()
    return "\t" if ".tsv" in name or ".tab" in name else ","


class DelimitedRecords:
    """The records of a file behind its header, in order; `header` are the column names.

    An opening quote without a closing one takes all lines up to the next quote into its cell. Such a record is rejected
    by its first line, and reading goes on with the second.
    """

    def __init__(self, lines: Iterator[str], delimiter: str) -> None:
        """Raises ValueError where the header cannot be read."""
        self._source, self._again = lines, deque[str]()
        self._taken: list[str] = []
        self._characters = 0
        self._line = 0
        self._unsure_until = 0
        self._reader = csv.reader(self._pull(), delimiter=delimiter, strict=True)
        self.header = self._header(delimiter)

    def __iter__(self) -> Iterator[DelimitedRecord]:
        return self

    def __next__(self) -> DelimitedRecord:
        first = self._line + 1
        self._taken, self._characters = [], 0
        try:
            cells = next(self._reader)
        except csv.Error as error:
            return self._rejected(first, str(error))
        text = self._taken[0]
        if len(self._taken) == 1 and self._line <= self._unsure_until and text.count('"') % 2:
            return DelimitedRecord([], f"line {first}: is the rest of a cell whose quote does not match", len(text))
        return DelimitedRecord(cells, None, self._characters)

    def _pull(self) -> Iterator[str]:
        """Physical lines, those that are to be read again first."""
        while True:
            line = self._again.popleft() if self._again else next(self._source, None)
            if line is None:
                return
            self._line += 1
            self._characters += len(line)
            self._taken.append(line)
            if len(self._taken) > 1 and self._characters > MAX_RECORD_CHARACTERS:
                raise csv.Error("a quote opens a cell of more than 64 million characters")
            yield line

    def _rejected(self, first: int, why: str) -> DelimitedRecord:
        """The record's first line, rejected; its other lines are read again."""
        rest = self._taken[1:]
        self._again.extendleft(reversed(rest))
        self._unsure_until = max(self._unsure_until, self._line)
        self._line = first
        self._restart()
        return DelimitedRecord([], f"line {first}: a quote does not match ({why})", len(self._taken[0]))

    def _restart(self) -> None:
        """A generator that has raised or ended gives no more lines: the reader gets a new one."""
        self._reader = csv.reader(self._pull(), dialect=self._reader.dialect)

    def _header(self, delimiter: str) -> list[str]:
        """The first record that is not blank. Excel's `sep=;` line says the delimiter; a header of one unquoted cell
        that holds another delimiter is taken to be separated by it."""
        for record in self:
            if record.reason is not None:
                raise ValueError(f"the header cannot be read: {record.reason}")
            if not record.cells:
                continue
            line = self._taken[0].rstrip("\r\n")
            if len(line) == 5 and line.lower().startswith("sep="):
                self._reader = csv.reader(self._pull(), delimiter=line[4], strict=True)
                continue
            if len(record.cells) == 1:
                return self._split(record.cells, line, delimiter)
            return record.cells
        return []

    def _split(self, cells: list[str], line: str, delimiter: str) -> list[str]:
        for other in _SEPARATORS:
            parts = next(csv.reader([line], delimiter=other)) if other != delimiter else cells
            if len(parts) > 1:
                self._reader = csv.reader(self._pull(), delimiter=other, strict=True)
                return parts
        return cells


def csv_chunks(handle: Any, url: str, columns: Sequence[str], start: int, sizes: Iterator[int]) -> Iterator[Chunk]:
    """The named columns from place `start` on."""
    with text_of(handle) as text:
        records = DelimitedRecords(text, delimiter_of(url))
        places = [records.header.index(name) for name in columns]
        row = sum(_is_row(record) for _, record in zip(range(start), records, strict=False))
        for rows in sizes:
            pieces: list[pa.RecordBatch] = []
            stop = start
            while stop - start < rows and sum(piece.nbytes for piece in pieces) < CHUNK_BYTES:
                block = list(_block(records, min(rows - (stop - start), _PIECE_ROWS)))
                stop += len(block)
                kept = [record for record in block if _is_row(record)]
                if kept:
                    pieces.append(_cells(kept, row, len(records.header), places, columns))
                    row += len(kept)
                if not block:
                    break
            if pieces:
                yield Chunk(start, stop, pa.concat_batches(pieces) if len(pieces) > 1 else pieces[0])
            if stop == start:
                return
            start = stop


def _block(records: DelimitedRecords, rows: int) -> Iterator[DelimitedRecord]:
    size = 0
    while rows and size < _PIECE_CHARACTERS:
        record = next(records, None)
        if record is None:
            return
        rows, size = rows - 1, size + record.characters
        yield record


def _is_row(record: DelimitedRecord) -> bool:
    return bool(record.cells) or record.reason is not None


def _cells(
    block: Sequence[DelimitedRecord], row: int, width: int, places: Sequence[int], columns: Sequence[str]
) -> pa.RecordBatch:
    reasons = [_reason(record, width) for record in block]
    try:
        arrays = _texts(block, reasons, places)
    except UnicodeEncodeError:
        reasons = [why or _no_text(one, places, columns) for one, why in zip(block, reasons, strict=True)]
        arrays = _texts(block, reasons, places)
    arrays += [pa.array(reasons, pa.string()), pa.array(range(row, row + len(block)), pa.int64())]
    return pa.RecordBatch.from_arrays(arrays, [*columns, REJECT_COLUMN, LINE_COLUMN])


def _reason(record: DelimitedRecord, width: int) -> str | None:
    if record.reason is not None or len(record.cells) == width:
        return record.reason
    return f"has {len(record.cells)} cells, the header has {width}"


def _texts(block: Sequence[DelimitedRecord], reasons: Sequence[str | None], places: Sequence[int]) -> list[pa.Array]:
    """The cells of good rows at these places. Raises UnicodeEncodeError where one is not UTF-8."""
    good = [record.cells if reason is None else None for record, reason in zip(block, reasons, strict=True)]
    return [pa.array([None if cells is None else cells[at] for cells in good], pa.large_string()) for at in places]


def _no_text(record: DelimitedRecord, places: Sequence[int], columns: Sequence[str]) -> str | None:
    for place, column in zip(places, columns, strict=True):
        try:
            record.cells[place].encode()
        except UnicodeEncodeError:
            return f"{column}: is not UTF-8"
    return None
