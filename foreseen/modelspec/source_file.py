"""A model's own source file on this machine ↔ the sha256 in its manifest: whether it was replaced since."""

from __future__ import annotations

import hashlib
from pathlib import Path

from foreseen.modelspec.manifest import Manifest, Source


def local_file(source: Source) -> Path | None:
    """The file that `source.url` names, where that is a path of this machine and the file exists."""
    if source.url is None or ("://" in source.url and not source.url.startswith("file://")):
        return None
    path = Path(source.url.removeprefix("file://"))
    return path if path.is_file() else None


def changed_file(manifest: Manifest) -> str | None:
    """What to say and do where the file is another than the manifest says; None where it is the same or not here."""
    source = manifest.source
    path = local_file(source) if source is not None else None
    if source is None or source.sha256 is None or path is None:
        return None
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found == source.sha256:
        return None
    add = f"foreseen models add {path} --name {manifest.name} --replace --models {path.parent.parent}"
    return f"{path} was changed: its sha256 is {found[:12]}…, model.toml says {source.sha256[:12]}…; run: {add}"
