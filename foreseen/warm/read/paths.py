"""Paths of data sets: hidden files of their writers, and Hive's columns in folder names."""

from __future__ import annotations

import re
from urllib.parse import unquote

Partitions = tuple[tuple[str, str | None], ...]
"""Column and value; None for Hive's null."""

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_PARTITION = re.compile(r"([^=]+)=(.*)", re.DOTALL)


def base_name(url: str) -> str:
    return url.rstrip("/").rsplit("/", 1)[-1]


def hidden(path: str, named: str) -> bool:
    """Whether a part of the path begins with `_` or `.`, as Spark, Hive and pyarrow.dataset leave out: `_temporary`,
    `_delta_log`, `.hoodie`, `.ipynb_checkpoints`. Parts that the user named, in a folder or a glob, are not hidden."""
    base = named.rstrip("/") + "/"
    if path.startswith(base):
        path, own = path.removeprefix(base), set[str]()
    else:
        own = set(named.split("/"))
    return any(part.startswith(("_", ".")) for part in path.split("/") if part not in own)


def partitions_of(url: str, columns: tuple[str, ...]) -> Partitions:
    """The columns that the folders of a path name (`lang=en/part-0.parquet`) and that the file has not itself."""
    found: dict[str, str | None] = {}
    for part in url.split("/")[:-1]:
        match = _PARTITION.fullmatch(part)
        if match is not None:
            name, value = unquote(match[1]), unquote(match[2])
            found[name] = None if value == HIVE_NULL else value
    return tuple((name, value) for name, value in found.items() if name not in columns)
