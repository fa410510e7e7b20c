"""Inspects an open batch file: columns, and number of rows and model digest if the file records them."""

from __future__ import annotations

import io
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from foreseen.warm.read.content import check_json_lines, check_text
from foreseen.warm.read.delimited import DelimitedRecords, delimiter_of, text_of
from foreseen.warm.read.npz import npz_names

DIGEST_METADATA = b"foreseen.digest"


def arrow_reader(file: Any) -> Any:
    """A random access file, or else a stream of record batches."""
    try:
        return pa.ipc.open_file(file)
    except pa.ArrowInvalid:
        file.seek(0)
        return pa.ipc.open_stream(file)


class Look(Struct):
    """The contents of a file as inspected. `sampled` are the rows of the first part of a text file."""

    columns: tuple[str, ...] | None
    rows: int | None
    digest: str | None = None
    sampled: int = 0
    schema: pa.Schema | None = None
    members: tuple[str, ...] = ()


def _look_jsonl(file: Any, url: str, head: bytes) -> Look:
    check_text(head)
    check_json_lines(head)
    lines = [line for line in head.split(b"\n") if line.strip()]
    if not lines and not file.read(len(head) + 1)[len(head) :]:
        return Look(None, 0)
    documents = [_json(line) for line in lines]
    members = dict.fromkeys(name for one in documents if isinstance(one, dict) for name in one)
    own = () if "inputs" in members else tuple(members)
    return Look(None, None, sampled=sum(map(_rows_of, documents)), members=own)


def _json(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return None


def _rows_of(document: Any) -> int:
    """Rows of one line: a V2 request may hold several."""
    try:
        return int(document["inputs"][0]["shape"][0])
    except (KeyError, IndexError, TypeError, ValueError):
        return 1


def _look_csv(file: Any, url: str, head: bytes) -> Look:
    check_text(head)
    with text_of(file) as text:
        records = DelimitedRecords(text, delimiter_of(url))
        first = next((record for record in records if record.cells or record.reason is not None), None)
    with text_of(io.BytesIO(head)) as text:
        sampled = sum(bool(record.cells) for record in DelimitedRecords(text, delimiter_of(url)))
    return Look(tuple(records.header), 0 if first is None else None, None, sampled)


def _look_parquet(file: Any, url: str, head: bytes) -> Look:
    parquet = pq.ParquetFile(file)
    schema = parquet.schema_arrow
    return Look(tuple(schema.names), parquet.metadata.num_rows, _recorded(schema), schema=schema)


def _look_arrow(file: Any, url: str, head: bytes) -> Look:
    reader = arrow_reader(file)
    rows = None
    if isinstance(reader, pa.RecordBatchFileReader):
        rows = sum(reader.get_batch(i).num_rows for i in range(min(reader.num_record_batches, 1)))
        rows = None if rows or reader.num_record_batches > 1 else 0
    return Look(tuple(reader.schema.names), rows, _recorded(reader.schema), schema=reader.schema)


def _look_npz(file: Any, url: str, head: bytes) -> Look:
    names, rows = npz_names(file)
    return Look(tuple(names), rows)


LOOKS = {
    "jsonl": _look_jsonl,
    "csv": _look_csv,
    "parquet": _look_parquet,
    "arrow": _look_arrow,
    "npz": _look_npz,
}


def _recorded(schema: pa.Schema) -> str | None:
    value = (schema.metadata or {}).get(DIGEST_METADATA)
    return value.decode("ascii", "replace") if value else None
