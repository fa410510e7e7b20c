"""Resolves file names, globs, folders and URLs to readable files, with format, columns and recorded digest.

Every file is opened once before the run starts, so that a missing, truncated or forbidden one is reported first.
URLs are fsspec's; s3:// and gs:// need s3fs and gcsfs.
"""

from __future__ import annotations

import csv
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from lzma import LZMAError
from typing import Any, Literal

import fsspec
import pyarrow as pa
from fsspec.core import url_to_fs
from msgspec import Struct

from foreseen.errors import SetupError
from foreseen.warm.read.content import MAGIC_BYTES, binary_format, decompressed
from foreseen.warm.read.looks import LOOKS
from foreseen.warm.read.npz import check_npz
from foreseen.warm.read.paths import Partitions, base_name, hidden, partitions_of

Format = Literal["jsonl", "csv", "parquet", "arrow", "npz"]
DIGEST_COLUMN = "foreseen.digest"
_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".ldjson": "jsonl",
    ".jl": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".parquet": "parquet",
    ".parq": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ftr": "arrow",
    ".ipc": "arrow",
    ".npz": "npz",
}
_COMPRESSED = (".gz", ".gzip", ".xz", ".bz2", ".zst", ".zstd", ".lz4", ".snappy")
"""Endings that say nothing of the format. Whether the bytes are compressed, and how, the bytes themselves say."""
_BLOCK_BYTES = 1 << 20
_SAMPLE_BYTES = 1 << 18


class File(Struct, frozen=True):
    """One file to read. `columns` is None for JSONL, `rows` is None where only reading the file would show them."""

    url: str
    format: Format
    bytes: int
    columns: tuple[str, ...] | None
    rows: int | None
    digest: str | None
    """The model digest that the file's metadata records."""
    estimate: int | None = None
    """About how many rows, by the first part of the file, where `rows` is not known."""
    partitions: Partitions = ()
    """Columns of the file's path (`lang=en/`) that the file itself has not; `columns` names them, too."""
    schema: pa.Schema | None = None
    """Of Parquet and Arrow."""
    members: tuple[str, ...] = ()
    """Members of the first objects of a JSONL file."""


def files_of(named: Sequence[str]) -> list[File]:
    """The files of names, globs, folders and URLs, in order. Raises SetupError."""
    found = [_inspected(url, fs) for name in named for url, fs in _expanded(name)]
    if not found:
        raise SetupError("no files; name at least one")
    if all(file.rows == 0 for file in found):
        raise SetupError(f"{found[0].url}: holds no rows; remove it, or make it again")
    return found


@contextmanager
def opened(url: str) -> Iterator[Any]:
    """A file's bytes, decompressed. Errors while it is read become one line that names the file."""
    with _streams(url) as (_, file):
        yield file


@contextmanager
def _streams(url: str) -> Iterator[tuple[Any, Any]]:
    """A file's raw bytes, and the same decompressed."""
    try:
        with fsspec.open(url, "rb", block_size=_BLOCK_BYTES) as raw:
            yield raw, decompressed(raw)
    except (OSError, EOFError, pa.ArrowException, zipfile.BadZipFile, ValueError, csv.Error, *_BROKEN) as error:
        raise SetupError(f"{url}: {_said(error)}") from None


_BROKEN = (LZMAError, zlib.error)
"""Further errors that a damaged file raises."""


def format_of(url: str) -> Format | None:
    name = base_name(url).lower()
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    return next((kind for suffix, kind in _FORMATS.items() if name.endswith(suffix)), None)


def check_columns(file: File, names: Sequence[str]) -> None:
    """Raises SetupError if a column to be read occurs twice, or does not have one value per row."""
    for name in names:
        count = (file.columns or ()).count(name)
        if count > 1:
            raise SetupError(f"{file.url}: has {count} columns called {name!r}; rename all but one of them")
    if file.format == "npz":
        own = {name for name, _ in file.partitions}
        with opened(file.url) as handle:
            check_npz(handle, [name for name in names if name not in own])


def _expanded(name: str) -> list[tuple[str, Any]]:
    """The files that one name stands for. A name that exists is that file or folder, also with `[1]` in it."""
    try:
        fs, path = url_to_fs(name)
        if fs.isdir(path):
            paths = _below(fs, path, path)
        elif any(sign in path for sign in "*?[") and not fs.exists(path):
            paths = _matched(fs, path)
        else:
            return [(name, fs)]
    except (OSError, ValueError, ImportError) as error:
        raise SetupError(f"{name}: {_said(error)}") from None
    if not paths:
        raise SetupError(f"{name}: no file there is JSONL, CSV, Parquet, Arrow or NPZ by its name")
    return [(p if "file" in _protocols(fs) else str(fs.unstrip_protocol(p)), fs) for p in paths]


def _matched(fs: Any, pattern: str) -> list[str]:
    """The files that a glob names, and those in the folders that it names: Spark's `part.parquet` is a folder."""
    kept = [path for path in sorted(fs.glob(pattern)) if not hidden(path, pattern)]
    found = [one for path in kept for one in (_below(fs, path, path) if fs.isdir(path) else [path])]
    return _readable(fs, found)


def _below(fs: Any, folder: str, base: str) -> list[str]:
    """All files of a folder, except what its writers hide: uncommitted parts, logs, checkpoints."""
    return _readable(fs, [path for path in _files_below(fs, folder, ()) if not hidden(path, base)])


def _files_below(fs: Any, folder: str, above: tuple[str, ...]) -> list[str]:
    """All files of a folder, those behind links to folders too, which fsspec takes for files. A link to a folder that
    it lies in would lead round for ever and is left out."""
    found: list[str] = []
    local = "file" in _protocols(fs)
    here = (*above, os.path.realpath(folder)) if local else above
    for path in sorted(fs.find(folder)):
        if not (local and fs.isdir(path)):
            found.append(path)
        elif os.path.realpath(path) not in here and not here[-1].startswith(os.path.realpath(path) + "/"):
            found += _files_below(fs, path, here)
    return found


def _readable(fs: Any, paths: Sequence[str]) -> list[str]:
    """Files whose names, or else whose first bytes, say that they can be read. A `.json` beside files of another format
    describes them (Iceberg, Hugging Face datasets) and is left out."""
    known = {path: format_of(path) or _format_inside(fs, path) for path in paths}
    kept = [path for path, kind in known.items() if kind]
    data = [path for path in kept if not _is_json_by_name(path)]
    return data or kept


def _is_json_by_name(path: str) -> bool:
    name = base_name(path).lower()
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    return name.endswith(".json")


def _format_inside(fs: Any, path: str) -> str | None:
    """Parquet and Arrow files without an ending, as Athena and Impala write them."""
    if "." in base_name(path):
        return None
    with fs.open(path, "rb") as file:
        return binary_format(file.read(MAGIC_BYTES))


def _inspected(url: str, fs: Any) -> File:
    with _streams(url) as (raw, file):
        head = file.read(_SAMPLE_BYTES)
        read = raw.tell()
        size = int(fs.size(fs._strip_protocol(url)) or 0)  # noqa: SLF001 - fsspec's own way from URL to path
        kind = format_of(url) or _named(binary_format(head[:MAGIC_BYTES]))
        if kind is None:
            raise ValueError("its name does not show its format; call it .jsonl, .csv, .parquet, .arrow or .npz")
        if size == 0 and kind not in ("csv", "jsonl"):  # of a text file it is a part without rows
            raise ValueError("is empty; remove it, or write it again")
    with opened(url) as file:
        looked = LOOKS[kind](file, url, head)
    partitions = partitions_of(url, looked.columns or ())
    columns = None if looked.columns is None else (*looked.columns, *(name for name, _ in partitions))
    estimate = looked.sampled if read >= size or not read else looked.sampled * size // read
    rows = looked.rows
    return File(
        url,
        kind,
        size,
        columns,
        rows,
        looked.digest,
        rows or estimate or None,
        partitions,
        looked.schema,
        looked.members,
    )


def _named(kind: str | None) -> Format | None:
    return "parquet" if kind == "parquet" else "arrow" if kind == "arrow" else None


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _said(error: Exception) -> str:
    """An error as a phrase that says what to do."""
    match error:
        case FileNotFoundError():
            return "there is no such file"
        case PermissionError():
            return "permission denied; make it readable for this user (chmod, or the store's policy)"
        case ImportError():
            return f"{error}"
        case pa.ArrowException() | zipfile.BadZipFile() | EOFError() | LZMAError() | zlib.error():
            return (
                f"is cut short or not what its name says ({' '.join(str(error).split())[:120]}); make or copy it again"
            )
        case OSError():  # also zlib's and Arrow's own of a damaged stream, without an error number
            return error.strerror or " ".join(str(error).split())[:160]
        case _:
            return " ".join(str(error).split())[:160]
