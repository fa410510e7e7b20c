"""`DATA/models/<name>/` ↔ Artifact: a build writes it, a model process loads it, a proxy prepares inputs with it.

    DATA/models/<name>/record.json          which artifact is in force; replaced atomically, last
    DATA/models/<name>/records/…       the records of all artifacts that are there, by digest
    DATA/models/<name>/serving.json         the last metadata of the model's process; replaced atomically
    DATA/models/<name>/<digest>/…           the files of one artifact: the graph, the tokenizer; never changed

Two digests. The *artifact digest* is made of the files and of the manifest's answer-changing part, so the same inputs
give the same digest on every machine. The *model digest*, which is in every key, adds what else can change an answer's
bits: provider, processor family, runtime version and session options, left out where the manifest says `portable`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path
from typing import Any

import msgspec
from blake3 import blake3
from msgspec import Struct

from foreseen.errors import SetupError
from foreseen.modelspec.manifest import ClientInput, Manifest, ModelInput
from foreseen.modelspec.shapes import Shapes

RECORD_NAME = "record.json"
KEPT_RECORDS = "records"
SERVING_NAME = "serving.json"


class ArtifactFile(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    """A plain file name, no folders."""
    sha256: str
    bytes: int


class Artifact(Struct, frozen=True, forbid_unknown_fields=True):
    """One built model: `graph` is the ONNX file, `assets` what prepare needs (tokenizer.json)."""

    model: str
    precision: str
    digest: str
    """The artifact digest, hex."""
    preparation: str
    """Digest of the assets and of the manifest's part that changes answers, hex."""
    graph: ArtifactFile
    assets: tuple[ArtifactFile, ...] = ()


class Record(Struct, frozen=True):
    """What lies in `record.json`: the choice in force. The report lies beside it and is read by people only."""

    artifact: Artifact
    row_independent: bool = True
    """Whether the chosen artifact passed the invariance gate; a model that did not is not cached by the row."""
    shapes: Shapes = Shapes()
    """Of the batches that it is run in, as the build has chosen or the manifest says."""


class Serving(Struct, frozen=True):
    """The metadata of a model's process when it was last ready, for imports while it is down.

    The model digest depends on the machine that serves, so no other machine can compute it; it is valid as long as the
    artifact in force is the one that was served.
    """

    digest: str
    """The model digest, hex."""
    artifact: str
    """The artifact digest, hex."""
    preparation: str
    row_independent: bool = True


def fields_digest(*fields: bytes) -> str:
    """BLAKE3 over length-prefixed fields, hex."""
    hasher = blake3()
    for field in fields:
        hasher.update(len(field).to_bytes(8, "little"))
        hasher.update(field)
    return hasher.hexdigest()


_LATER_FIELDS: dict[str, object] = {"exif": False, "pair": None, "types": None, "prompt": None}
"""Fields of the manifest that came after digests were first made, and their defaults. At its default a field stands in
no digest, so that models which do not use it keep their entries."""


def _digested(part: Any) -> Any:
    """A part of the manifest without the later fields that are at their defaults."""
    if isinstance(part, dict):
        return {name: _digested(one) for name, one in part.items() if _LATER_FIELDS.get(name, part) != one}
    return [_digested(one) for one in part] if isinstance(part, list | tuple) else part


def preparation_digest(manifest: Manifest, assets: tuple[ArtifactFile, ...]) -> str:
    """Everything between what a client sends and what the graph gets."""
    seen, model = msgspec.to_builtins(manifest.seen), msgspec.to_builtins(manifest.model)
    for one in (*seen["inputs"], *model["inputs"]):
        del one["optional"]  # whether an input is optional changes no answer to requests that have it
    batching = manifest.batching
    parts = {"seen": seen, "model": model, "rows": manifest.rows, "single": batching.alone}
    if batching.shapes in ("fixed", "auto"):  # another choice is another build
        parts["shapes"] = (batching.shapes, batching.lengths, batching.fixed_rows)
    parts = _digested(parts)
    files = [part.encode() for asset in sorted(assets, key=lambda a: a.name) for part in (asset.name, asset.sha256)]
    return fields_digest(b"foreseen v1 preparation", msgspec.json.encode(parts, order="sorted"), *files)


def artifact_digest(precision: str, preparation: str, graph: ArtifactFile) -> str:
    return fields_digest(b"foreseen v1 artifact", precision.encode(), preparation.encode(), graph.sha256.encode())


def model_digest(artifact: Artifact, runtime: tuple[str, ...]) -> str:
    """`runtime` names provider, processor family, runtime version and session options; empty for portable models."""
    return fields_digest(b"foreseen v1 model", artifact.digest.encode(), *(part.encode() for part in runtime))


def refuse_optional(manifest: Manifest) -> None:
    """Raises SetupError where a model that runs here has optional inputs: an ONNX graph takes all of its inputs."""
    specs: list[ClientInput | ModelInput] = [*manifest.seen.inputs, *manifest.model.inputs]
    optional = [spec.name for spec in specs if spec.optional]
    if optional:
        raise SetupError(f"model {manifest.name!r}: input {optional[0]!r} is optional, which needs an upstream")


def model_folder(data: Path, name: str) -> Path:
    return data / "models" / name


def read_record(data: Path, name: str) -> Record:
    """The record in force. Raises SetupError that says how to build."""
    path = model_folder(data, name) / RECORD_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except FileNotFoundError:
        raise SetupError(f"model {name!r} is not built; run: foreseen models build {name} --data {data}") from None
    except msgspec.DecodeError as error:
        raise SetupError(f"{path}: {error}; run: foreseen models build {name} --data {data}") from None


def write_record(data: Path, record: Record) -> None:
    """Put a record in force: written beside, synced, renamed, so that a reader sees the old one or the new one."""
    keep_record(data, record)
    _replace(model_folder(data, record.artifact.model) / RECORD_NAME, record)


def keep_record(data: Path, record: Record) -> None:
    """Keep the record of an artifact that is there, in force or not."""
    _replace(model_folder(data, record.artifact.model) / KEPT_RECORDS / f"{record.artifact.digest}.json", record)


def kept_records(data: Path, name: str) -> list[Record]:
    """The records of all artifacts that are there, the latest first."""
    found = sorted(
        model_folder(data, name).joinpath(KEPT_RECORDS).glob("*.json"), key=lambda path: (-path.stat().st_mtime, path)
    )
    records = []
    for path in found:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            records.append(msgspec.json.decode(path.read_bytes(), type=Record))
    return records


def kept_record(data: Path, name: str, digest: str) -> Record:
    """The record of one artifact by its digest. Raises SetupError."""
    current = read_record(data, name)
    record = next((one for one in (current, *kept_records(data, name)) if one.artifact.digest == digest), None)
    if record is None:
        raise SetupError(f"model {name!r}: no artifact {digest[:12]} under {data}")
    return record


def read_serving(data: Path, name: str) -> Serving | None:
    """What the process last said; None where it never ran here or another artifact is in force by now."""
    try:
        serving = msgspec.json.decode((model_folder(data, name) / SERVING_NAME).read_bytes(), type=Serving)
        return serving if serving.artifact == read_record(data, name).artifact.digest else None
    except (OSError, msgspec.DecodeError, SetupError):
        return None


def write_serving(data: Path, name: str, serving: Serving) -> None:
    """Raises OSError, for instance where the folder is read-only."""
    if read_serving(data, name) != serving:
        _replace(model_folder(data, name) / SERVING_NAME, serving)


def _replace(path: Path, document: Struct) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    with beside.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def artifact_file(path: Path) -> ArtifactFile:
    """Describe a file that a build has just made."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return ArtifactFile(path.name, sha256, path.stat().st_size)


def read_file(data: Path, artifact: Artifact, file: ArtifactFile) -> bytes:
    """The bytes of an artifact's file, proved by their sha256.

    Opened without following links; a regular file with one link inside the artifact's folder or nothing, so that no
    record can make a server read outside of it.
    """
    if "/" in file.name or file.name in ("", ".", ".."):
        raise SetupError(f"model {artifact.model!r}: artifact file name {file.name!r} is not a plain name")
    path = model_folder(data, artifact.model) / artifact.digest / file.name
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}; rebuild with: foreseen models build {artifact.model}") from None
    with os.fdopen(handle, "rb") as opened:
        status = os.fstat(opened.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_size != file.bytes:
            raise SetupError(f"{path}: not the regular file that the build made; rebuild the model")
        content = opened.read(file.bytes + 1)
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise SetupError(f"{path}: its sha256 is not the recorded one; rebuild the model")
    return content
