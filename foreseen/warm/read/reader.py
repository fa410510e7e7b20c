"""A file → Arrow batches of so many rows, from any row on, in bounded memory.

A place in a file is a number of rows (JSONL: lines). Parquet skips whole row groups; the others are read up to it.
Columns that no input or output needs are not read.
"""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from foreseen.errors import BadInput, BadRequest
from foreseen.modelspec.manifest import ClientInput, Dim, Manifest, ModelOutput
from foreseen.modelspec.parameters import counting
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.strict_json import load_json
from foreseen.protocol.tensors import array_of_json
from foreseen.protocol.wire import parse_request
from foreseen.types import Array
from foreseen.warm.plan import LINE_COLUMN, PARAMETERS_COLUMN, REJECT_COLUMN
from foreseen.warm.read.files import File, arrow_reader, delimiter_of, npz_header, opened, text_of

CHUNK_BYTES = 64 * 2**20
"""A chunk is cut before it holds more than this."""
_MAX_CELL = 2**30


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


def chunks(
    file: File, manifest: Manifest, wanted: Mapping[str, str], start: int, rows: int
) -> Generator[Chunk, None, None]:
    """The file from place `start` on. `wanted` are the columns that are read, as far as it has them, and what each is.

    Raises SetupError where the file turns out to be broken.
    """
    csv.field_size_limit(_MAX_CELL)
    with opened(file.url) as handle:
        if file.format == "jsonl":
            yield from _jsonl(handle, manifest, wanted, start, rows)
            return
        columns = [name for name in file.columns or () if name in wanted]
        match file.format:
            case "parquet":
                pieces = _parquet(handle, columns, start, rows)
            case "arrow":
                pieces = _arrow(handle, columns, start)
            case "npz":
                pieces = _npz(handle, columns, start, rows)
            case _:
                pieces = _csv(handle, file, columns, start, rows)
        yield from _cut(pieces, start, rows)


def _cut(pieces: Iterator[pa.RecordBatch], start: int, rows: int) -> Iterator[Chunk]:
    """Batches of any size as chunks of `rows` rows, or fewer where they are large."""
    held: list[pa.RecordBatch] = []
    count = 0
    for piece in pieces:
        while piece.num_rows:
            each = max(1, piece.nbytes // piece.num_rows)
            room = max(1, min(rows - count, CHUNK_BYTES // each - count))
            part, piece = piece.slice(0, room), piece.slice(room)
            held.append(part)
            count += part.num_rows
            if piece.num_rows or count >= rows:
                yield Chunk(start, start + count, _joined(held))
                start, held, count = start + count, [], 0
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
    for batch in file.iter_batches(min(rows, 16384), row_groups=groups, columns=columns) if groups else ():
        cut = min(left, batch.num_rows)
        left -= cut
        if cut < batch.num_rows:
            yield batch.slice(cut)


def _arrow(handle: Any, columns: list[str], start: int) -> Iterator[pa.RecordBatch]:
    reader = arrow_reader(handle)
    whole = isinstance(reader, pa.RecordBatchFileReader)
    for batch in (reader.get_batch(i) for i in range(reader.num_record_batches)) if whole else reader:
        cut = min(start, batch.num_rows)
        start -= cut
        if cut < batch.num_rows:
            yield batch.slice(cut).select(columns)


def _npz(handle: Any, columns: list[str], start: int, rows: int) -> Iterator[pa.RecordBatch]:
    """Each array is streamed out of the archive: the file is never in memory as a whole."""
    with zipfile.ZipFile(handle) as archive:
        members = {name: archive.open(f"{name}.npy") for name in columns}
        heads = {name: npz_header(member) for name, member in members.items()}
        total = min((shape[0] for shape, _ in heads.values()), default=0)
        for name, member in members.items():
            _skip(member, start * _row_bytes(*heads[name]))
        for at in range(start, total, rows):
            count = min(rows, total - at)
            arrays = []
            for name, member in members.items():
                shape, dtype = heads[name]
                raw = member.read(count * _row_bytes(shape, dtype))
                if len(raw) != count * _row_bytes(shape, dtype):
                    raise EOFError(f"{name} ends early")
                arrays.append(_arrow_of(np.frombuffer(raw, dtype).reshape(count, *shape[1:])))
            yield pa.RecordBatch.from_arrays(arrays, columns)


def _row_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize


def _skip(member: Any, count: int) -> None:
    while count > 0:
        got = len(member.read(min(count, 1 << 20)))
        if not got:
            return
        count -= got


def _arrow_of(array: Array) -> pa.Array:
    """An array with its batch axis as a column: scalars, or flat lists of fixed size."""
    if array.dtype.kind in "SU":
        return pa.array(array.tolist())
    size = int(np.prod(array.shape[1:], dtype=np.int64))
    flat = pa.array(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))).reshape(-1))
    return flat if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, size)


def _csv(handle: Any, file: File, columns: list[str], start: int, rows: int) -> Iterator[pa.RecordBatch]:
    """All cells as text: what they mean the signature says, and a text that looks like a number stays a text."""
    with text_of(handle) as text:
        lines = csv.reader(text, delimiter=delimiter_of(file.url), strict=True)
        header = next(lines)
        places = [header.index(name) for name in columns]
        for _ in islice(lines, start):
            pass
        while block := list(islice(lines, min(rows, 16384))):
            yield _cells(block, len(header), places, columns)


def _cells(block: Sequence[list[str]], width: int, places: Sequence[int], columns: Sequence[str]) -> pa.RecordBatch:
    wrong = {i: f"has {len(line)} cells, the header has {width}" for i, line in enumerate(block) if len(line) != width}
    cells = [[line[p] if i not in wrong else None for i, line in enumerate(block)] for p in places]
    arrays = [_texts(column) for column in cells]
    arrays.append(pa.array([wrong.get(i) for i in range(len(block))], pa.string()))
    return pa.RecordBatch.from_arrays(arrays, [*columns, REJECT_COLUMN])


def _texts(cells: Sequence[str | None]) -> pa.Array:
    try:
        return pa.array(cells, pa.large_string())
    except (
        UnicodeEncodeError
    ):  # somewhere it is not UTF-8: as bytes it gets as far as prepare, which says so by the row
        raw = [None if cell is None else cell.encode("utf-8", "surrogateescape") for cell in cells]
        return pa.array(raw, pa.large_binary())


def _jsonl(handle: Any, manifest: Manifest, wanted: Mapping[str, str], start: int, rows: int) -> Iterator[Chunk]:
    lines = islice(iter(handle.readline, b""), start, None)
    while block := list(_within(lines, rows)):
        read = [_Line(at, line, manifest, wanted) for at, line in enumerate(block, start) if line.strip()]
        if read:
            yield Chunk(start, start + len(block), _table(read, manifest, wanted))
        start += len(block)


def _within(lines: Iterator[bytes], rows: int) -> Iterator[bytes]:
    size = 0
    for line in islice(lines, rows):
        yield line
        size += len(line)
        if size > CHUNK_BYTES:
            return


class _Line:
    """One line: a V2 request of any number of rows, or one plain row object; or why it is neither."""

    def __init__(self, at: int, line: bytes, manifest: Manifest, wanted: Mapping[str, str]) -> None:
        self.at = at
        self.reject: str | None = None
        self.parameters = b""
        self.columns: dict[str, list[Any]] = {}
        self.rows = 1
        try:
            document = load_json(line)
            if not isinstance(document, dict):
                raise BadRequest("is neither a V2 request nor an object of inputs")
            if isinstance(document.get("inputs"), list) and all(isinstance(i, dict) for i in document["inputs"]):
                self._request(line, manifest)
            else:
                self.columns = {name: [document.get(name)] for name in wanted if name in document}
        except BadRequest as error:
            self.reject, self.columns, self.rows = str(error), {}, 1

    def _request(self, line: bytes, manifest: Manifest) -> None:
        request = parse_request(line, None)
        specs = {spec.name: spec for spec in manifest.seen.inputs}
        for tensor in request.inputs:
            spec = specs.get(tensor.name)
            if spec is None:
                raise BadInput(f"inputs.{tensor.name}: there is no such input; the model takes {', '.join(specs)}")
            if tensor.datatype != spec.datatype and not spec.cast:
                raise BadInput(f"inputs.{tensor.name}.datatype: is {tensor.datatype}, must be {spec.datatype}")
            if tensor.array.ndim != len(spec.shape):
                raise BadInput(f"inputs.{tensor.name}.shape: has {tensor.array.ndim} dimensions, not {len(spec.shape)}")
            self.columns[tensor.name] = list(tensor.array.tolist())
        sizes = {len(column) for column in self.columns.values()}
        if len(sizes) != 1:
            raise BadInput("inputs: the first dimension (rows) differs between inputs")
        self.rows = sizes.pop()
        self.parameters = counting(request.parameters, manifest)


def _table(lines: Sequence[_Line], manifest: Manifest, wanted: Mapping[str, str]) -> pa.RecordBatch:
    """Lines as typed columns. A value that is not what its input takes rejects its line; the others keep theirs."""
    known: dict[str, ClientInput | ModelOutput] = {s.name: s for s in manifest.model.outputs}
    known |= {s.name: s for s in manifest.seen.inputs}
    specs = known | {column: known[name] for column, name in wanted.items() if name in known}
    names = [n for n in wanted if any(n in line.columns for line in lines)] or list(
        dict.fromkeys(name for line in lines for name in line.columns)
    )
    rows: dict[str, list[Any]] = {name: [] for name in names}
    rejects: list[str | None] = []
    for line in lines:
        values = {name: line.columns.get(name, [None] * line.rows) for name in names}
        for i in range(line.rows):
            reject = line.reject
            for name in names:
                try:
                    rows[name].append(_typed(values[name][i], specs.get(name), name) if reject is None else None)
                except BadInput as error:
                    rows[name].append(None)
                    reject = str(error)
            rejects.append(reject)
    arrays = [_column(rows[name], specs.get(name)) for name in names]
    repeated = [(line.at, line.parameters) for line in lines for _ in range(line.rows)]
    arrays += [
        pa.array(rejects, pa.string()),
        pa.array([at for at, _ in repeated], pa.int64()),
        pa.array([parameters for _, parameters in repeated], pa.binary()),
    ]
    return pa.RecordBatch.from_arrays(arrays, [*names, REJECT_COLUMN, LINE_COLUMN, PARAMETERS_COLUMN])


def _typed(value: Any, spec: ClientInput | ModelOutput | None, name: str) -> Any:
    """A JSON value as its input's column holds it, checked as a request's is."""
    if value is None or spec is None:
        return value
    datatype, dims = DATATYPES[spec.datatype], spec.shape[1:]
    if datatype.kind == "s" and not dims:
        if not isinstance(value, str | bytes):
            raise BadInput(f"{name}: takes strings only")
        return value.encode() if isinstance(value, str) else value
    if all(isinstance(dim, int) for dim in dims):
        return array_of_json(value if dims else [value], datatype, _known(dims) or (1,), name).ravel().tolist()
    return value


def _known(dims: Sequence[Dim]) -> tuple[int, ...]:
    return tuple(int(dim) for dim in dims)


def _column(values: list[Any], spec: ClientInput | ModelOutput | None) -> pa.Array:
    if spec is None:
        return pa.array(values)
    datatype, dims = DATATYPES[spec.datatype], spec.shape[1:]
    element = pa.binary() if datatype.kind == "s" else pa.from_numpy_dtype(_plain(datatype.dtype))
    if all(isinstance(dim, int) for dim in dims):
        if not dims:
            single = [value[0] if isinstance(value, list) else value for value in values]
            return pa.array(single, element)
        return pa.array(values, pa.list_(element))
    return pa.array(values)


def _plain(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype if dtype.kind in "biuf" else np.dtype(np.float32)
