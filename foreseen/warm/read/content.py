"""Detects the compression and format of a file by its first bytes, and the encoding of text that is not UTF-8.

Compression is decided by content, not by name: pandas writes `df.parquet.gzip`, which is Parquet with GZIP pages
inside, and HTTP clients store `data.csv.gz` decompressed.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
from typing import Any

import orjson
import pyarrow as pa

MAGIC_BYTES = 10
_COMPRESSIONS = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x50\x2a\x4d\x18", "zstd"),  # a skippable frame, with which pzstd begins
    (b"\x04\x22\x4d\x18", "lz4"),
)
_ENCODINGS = (  # UTF-32 first: its little-endian mark begins like UTF-16's
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_BINARIES = (
    (b"PAR1", "Parquet"),
    (b"ARROW1", "Arrow"),
    (b"PK\x03\x04", "a ZIP archive (an Excel workbook or NPZ)"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"Obj\x01", "Avro"),
    (b"ORC", "ORC"),
)
JSON_MARKS = (codecs.BOM_UTF8, b"\x1e")
"""A byte order mark begins a file, and each part of one made by `cat`; RFC 7464 puts 0x1E before each text."""
NUL_SHARE = 0.25
"""English text in UTF-16 is half NUL bytes, text in UTF-8 has none."""


def decompressed(raw: Any) -> Any:
    """An open binary file as its plain bytes. Reads from `raw`, which stays the caller's to close."""
    head = raw.read(MAGIC_BYTES)
    raw.seek(0)
    match compression_of(head):
        case "gzip":
            return gzip.GzipFile(fileobj=raw)
        case "bz2":
            return bz2.BZ2File(raw)
        case "xz":
            return lzma.LZMAFile(raw)
        case None:
            return raw
        case codec:
            return pa.CompressedInputStream(pa.PythonFile(raw, "r"), codec)


def compression_of(head: bytes) -> str | None:
    if head[:3] == b"BZh" and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):  # a first block, or the end of an empty one
        return "bz2"
    return next((name for magic, name in _COMPRESSIONS if head.startswith(magic)), None)


def binary_format(head: bytes) -> str | None:
    """`parquet` or `arrow` for a file whose name says nothing."""
    return {b"PAR1": "parquet", b"ARRO": "arrow"}.get(head[:4])


def check_text(head: bytes) -> None:
    """Raises ValueError where the first bytes are not those of UTF-8 text."""
    for mark, encoding in _ENCODINGS:
        if head.startswith(mark):
            raise ValueError(f"is {encoding}; save it as UTF-8")
    for magic, kind in _BINARIES:
        if head.startswith(magic):
            raise ValueError(f"is {kind} by its first bytes; rename it accordingly")
    if head.count(0) > NUL_SHARE * len(head):
        raise ValueError("is UTF-16 without a byte order mark, or not text; save it as UTF-8")


def check_json_lines(head: bytes) -> None:
    """Raises ValueError where the file is one JSON document instead of one object a line."""
    first = next((line for line in head.split(b"\n") if line.strip()), b"").strip()
    for mark in JSON_MARKS:
        first = first.removeprefix(mark)
    if first[:1] == b"[":
        raise ValueError("is a JSON array; write one object per line: jq -c '.[]'")
    if first[:1] == b"{" and first[-2:] == b"}," and _is_json(first[:-1]):
        raise ValueError("has a comma behind the object of each line; remove these: sed 's/,$//'")
    if first[:1] == b"{" and first[-1:] in b"{[,:" and not _is_json(first):
        raise ValueError("is one JSON document over several lines; write one object per line: jq -c .")


def _is_json(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True
