"""File names, globs, folders and URLs → files that can be read, each with its format, columns and recorded digest.

Every file is opened once before anything is done, so that a missing, empty, truncated or forbidden one stops the run
before it has begun. URLs are fsspec's; s3:// and gs:// need s3fs and gcsfs.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from msgspec import Struct

from foreseen.errors import SetupError

Format = Literal["jsonl", "csv", "parquet", "arrow", "npz"]
DIGEST_METADATA = b"foreseen.digest"
DIGEST_COLUMN = "foreseen.digest"
_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".npz": "npz",
}
_COMPRESSED = (".gz", ".xz", ".bz2", ".zst")
_BLOCK_BYTES = 1 << 20


class File(Struct, frozen=True):
    """One file to read. `columns` is None for JSONL, `rows` is None where only reading would tell."""

    url: str
    format: Format
    bytes: int
    columns: tuple[str, ...] | None
    rows: int | None
    digest: str | None
    """The model digest that the file's metadata records."""


def files_of(named: Sequence[str]) -> list[File]:
    """All files that names, globs, folders and URLs stand for, in order. Raises SetupError."""
    found: list[File] = []
    for name in named:
        found += [_inspected(url, fs) for url, fs in _expanded(name)]
    if not found:
        raise SetupError("no files; name at least one")
    return found


@contextmanager
def opened(url: str) -> Iterator[Any]:
    """A file's bytes, decompressed. What goes wrong while it is read is one line that names it."""
    try:
        with fsspec.open(url, "rb", compression=_compression(url), block_size=_BLOCK_BYTES) as file:
            yield file
    except (OSError, EOFError, pa.ArrowException, zipfile.BadZipFile, ValueError, csv.Error) as error:
        raise SetupError(f"{url}: {_said(error)}") from None


def format_of(url: str) -> Format | None:
    name = url.rsplit("/", 1)[-1].lower()
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    return next((kind for suffix, kind in _FORMATS.items() if name.endswith(suffix)), None)


@contextmanager
def text_of(file: Any) -> Iterator[io.TextIOWrapper]:
    """Bytes as lines of text; what is not UTF-8 survives as surrogates and is refused by the row."""
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    try:
        yield text
    finally:
        text.detach()  # the file is closed by who opened it


def delimiter_of(url: str) -> str:
    return "\t" if ".tsv" in url.lower() else ","


def arrow_reader(file: Any) -> Any:
    """A random access file, or else a stream of record batches."""
    try:
        return pa.ipc.open_file(file)
    except pa.ArrowInvalid:
        file.seek(0)
        return pa.ipc.open_stream(file)


def npz_header(member: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an .npy, leaving `member` at its data."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(member)
    if fortran or dtype.hasobject or not shape:
        raise ValueError("holds an array that is in column order, holds objects or has no rows; save it as C order")
    return shape, dtype


def _expanded(name: str) -> list[tuple[str, Any]]:
    try:
        fs, path = url_to_fs(name)
        if any(sign in path for sign in "*?["):
            paths = sorted(fs.glob(path))
        elif fs.isdir(path):
            paths = sorted(fs.find(path))
        else:
            return [(name, fs)]
    except (OSError, ValueError, ImportError) as error:
        raise SetupError(f"{name}: {_said(error)}") from None
    kept = [p for p in paths if format_of(p) and not p.rsplit("/", 1)[-1].startswith(("_", "."))]
    if not kept:
        raise SetupError(f"{name}: no file there is JSONL, CSV, Parquet, Arrow or NPZ by its name")
    return [(p if "file" in _protocols(fs) else str(fs.unstrip_protocol(p)), fs) for p in kept]


def _inspected(url: str, fs: Any) -> File:
    kind = format_of(url)
    if kind is None:
        raise SetupError(f"{url}: its name does not say what it is; call it .jsonl, .csv, .parquet, .arrow or .npz")
    with opened(url) as file:
        size = int(fs.size(fs._strip_protocol(url)) or 0)  # noqa: SLF001 - fsspec's own way from URL to path
        if size == 0:
            raise SetupError(f"{url}: is empty; remove it, or make it again")
        columns, rows, digest = _LOOKS[kind](file, url)
    if rows == 0:
        raise SetupError(f"{url}: holds no rows; remove it, or make it again")
    return File(url, kind, size, columns, rows, digest)


_Look = tuple[tuple[str, ...] | None, int | None, str | None]


def _look_jsonl(file: Any, url: str) -> _Look:
    return None, None if file.read(1).strip() else 0, None


def _look_csv(file: Any, url: str) -> _Look:
    with text_of(file) as text:
        lines = csv.reader(text, delimiter=delimiter_of(url))
        header = next(lines, [])
        return tuple(header), None if next(lines, None) is not None else 0, None


def _look_parquet(file: Any, url: str) -> _Look:
    parquet = pq.ParquetFile(file)
    return tuple(parquet.schema_arrow.names), parquet.metadata.num_rows, _recorded(parquet.schema_arrow)


def _look_arrow(file: Any, url: str) -> _Look:
    reader = arrow_reader(file)
    rows = None
    if isinstance(reader, pa.RecordBatchFileReader):
        rows = sum(reader.get_batch(i).num_rows for i in range(min(reader.num_record_batches, 1)))
        rows = None if rows or reader.num_record_batches > 1 else 0
    return tuple(reader.schema.names), rows, _recorded(reader.schema)


def _look_npz(file: Any, url: str) -> _Look:
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        counts = set()
        for name in names:
            with archive.open(name) as member:
                counts.add(npz_header(member)[0][0])
        if len(counts) > 1:
            raise ValueError("its arrays have different numbers of rows")
        return tuple(name.removesuffix(".npy") for name in names), counts.pop() if counts else 0, None


_LOOKS = {
    "jsonl": _look_jsonl,
    "csv": _look_csv,
    "parquet": _look_parquet,
    "arrow": _look_arrow,
    "npz": _look_npz,
}


def _recorded(schema: pa.Schema) -> str | None:
    value = (schema.metadata or {}).get(DIGEST_METADATA)
    return value.decode("ascii", "replace") if value else None


def _compression(url: str) -> str | None:
    return "infer" if url.lower().endswith(_COMPRESSED) else None


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _said(error: Exception) -> str:
    """An error as half a line that says what to do."""
    match error:
        case FileNotFoundError():
            return "there is no such file"
        case PermissionError():
            return "permission denied; make it readable for this user (chmod, or the store's policy)"
        case ImportError():
            return f"{error}"
        case pa.ArrowInvalid() | pa.ArrowException() | zipfile.BadZipFile() | EOFError():
            return (
                f"is cut short or not what its name says ({' '.join(str(error).split())[:120]}); make or copy it again"
            )
        case OSError():
            return error.strerror or " ".join(str(error).split())[:160]
        case _:
            return " ".join(str(error).split())[:160]
