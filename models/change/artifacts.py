"""What an operator calls a model (`minilm`, `minilm:fp32`, a digest, a URL) → the artifact or server that it names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

from msgspec import Struct

from foreseen.errors import SetupError
from foreseen.models.progress import BuildProgress
from foreseen.modelspec.artifact import Record, kept_records, preparation_digest, read_record
from foreseen.modelspec.manifest import Manifest, Precision, find, names

LEAST_DIGITS = 6
"""Of a digest, where it is cut short."""
_DIGEST = re.compile(rf"[0-9a-f]{{{LEAST_DIGITS},64}}")
_MODEL_PATH = re.compile(r"(.*)/v2/models/([^/]+)/?")


class NamedServer(Struct, frozen=True):
    """A V2 server at `address`. `model` is None if the URL names no model."""

    address: str
    model: str | None

    @property
    def label(self) -> str:
        return self.address if self.model is None else f"{self.model} at {self.address}"


class NamedArtifact(Struct, frozen=True):
    """A built artifact of a model."""

    manifest: Manifest
    record: Record

    @property
    def label(self) -> str:
        artifact = self.record.artifact
        return f"{artifact.model}:{artifact.precision}:{artifact.digest[:8]}"


def server_of(text: str) -> NamedServer | None:
    """A server, where the text is a URL: its base, perhaps with `/v2/models/NAME`. Raises SetupError."""
    if not text.startswith(("http://", "https://", "unix:")):
        return None
    if text.startswith("unix:"):
        return NamedServer(text, None)
    parts = urlsplit(text)
    if not parts.hostname:
        raise SetupError(f"{text}: give http://HOST:PORT, perhaps with /v2/models/NAME")
    found = _MODEL_PATH.fullmatch(text)
    return NamedServer(text.rstrip("/"), None) if found is None else NamedServer(found[1], found[2])


def named_model(text: str, folders: tuple[Path, ...]) -> str | None:
    """The model that the text names, if it does: `NAME` or `NAME:…`."""
    name = text.partition(":")[0]
    return name if name in names(folders) else None


def artifact_of(
    text: str, name: str | None, data: Path, folders: tuple[Path, ...], say: BuildProgress
) -> NamedArtifact:  # fmt: skip
    """The artifact that the text names: a model's artifact in force, or one by precision or digest; of the model `name`
    if the text names no model. A missing precision is built. Raises SetupError."""
    own = named_model(text, folders)
    model = own or name
    which = text.partition(":")[2] if own else text
    if model is None:
        if _DIGEST.fullmatch(which):
            return _by_digest(which, names(folders), data, folders)
        raise SetupError(f"{text!r} names no model: give NAME, NAME:PRECISION, a digest or a URL")
    manifest = find(model, folders)
    if not which:
        return NamedArtifact(manifest, read_record(data, model))
    if which in get_args(Precision):
        return NamedArtifact(manifest, _of_precision(manifest, which, data, say))
    return _by_digest(which, [model], data, folders)


def known_records(data: Path, name: str) -> list[Record]:
    """All records of a model, the one in force first."""
    try:
        first = [read_record(data, name)]
    except SetupError:
        first = []
    return [*first, *(one for one in kept_records(data, name) if one not in first)]


def _of_precision(manifest: Manifest, precision: str, data: Path, say: BuildProgress) -> Record:
    from foreseen.models.build.build import build_candidate
    from foreseen.models.build.publish import intact

    for record in known_records(data, manifest.name):
        artifact = record.artifact
        current = artifact.preparation == preparation_digest(manifest, artifact.assets)
        if artifact.precision == precision and current and intact(data, artifact):
            return record
    return build_candidate(manifest, data, say, precision)  # type: ignore[arg-type]


def _by_digest(digest: str, models: Sequence[str], data: Path, folders: tuple[Path, ...]) -> NamedArtifact:
    if not _DIGEST.fullmatch(digest):
        raise SetupError(f"{digest!r} is neither a precision nor a digest of at least {LEAST_DIGITS} hex digits")
    found = [
        (name, record)
        for name in models
        for record in known_records(data, name)
        if record.artifact.digest.startswith(digest)
    ]
    if len(found) != 1:
        how = "no artifact" if not found else "several artifacts"
        raise SetupError(f"{how} under {data} with the digest {digest}…; `models list` shows what is in force")
    return NamedArtifact(find(found[0][0], folders), found[0][1])
