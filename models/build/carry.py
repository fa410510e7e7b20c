"""A built model ↔ one tar file, so that a fleet serves one artifact: measured once, verified again on import.

record.json   what is in force
report.json   what was measured, where there is a report
<file>…       the artifact's files, plain names
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import msgspec

from foreseen.errors import SetupError
from foreseen.models.build.child import prove
from foreseen.models.build.fetch import plain_name
from foreseen.models.build.publish import publish, workshop
from foreseen.models.progress import BuildProgress
from foreseen.modelspec.artifact import (
    RECORD_NAME,
    Record,
    artifact_digest,
    artifact_file,
    model_folder,
    preparation_digest,
    read_file,
    read_record,
    write_record,
)
from foreseen.modelspec.manifest import Manifest

REPORT_NAME = "report.json"
LARGEST_JSON_BYTES = 1 << 20
LARGEST_FILE_BYTES = 2 << 30  # protobuf's own limit for one ONNX file


def export(data: Path, name: str, file: Path) -> Record:
    """Write the artifact in force with its report. The same artifact gives the same bytes."""
    record = read_record(data, name)
    members = {RECORD_NAME: msgspec.json.encode(record)}
    report = model_folder(data, name) / REPORT_NAME
    if report.is_file():
        members[REPORT_NAME] = report.read_bytes()
    artifact = record.artifact
    members |= {part.name: read_file(data, artifact, part) for part in (artifact.graph, *artifact.assets)}
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as archive:
        for member, content in members.items():
            info = tarfile.TarInfo(member)
            info.size, info.mode = len(content), 0o644
            archive.addfile(info, io.BytesIO(content))
    return record


def import_(data: Path, manifest: Manifest, file: Path, say: BuildProgress) -> Record:
    """Verify an imported artifact against this machine's manifest and put it in force. Raises SetupError."""
    try:
        with workshop(data, say) as folder, tarfile.open(file) as archive:
            return _taken(archive, data, manifest, folder, say)
    except (OSError, tarfile.TarError) as error:
        raise SetupError(f"{file}: cannot be read as a carried model: {error}") from None


def _taken(archive: tarfile.TarFile, data: Path, manifest: Manifest, folder: Path, say: BuildProgress) -> Record:
    try:
        record = msgspec.json.decode(_member(archive, RECORD_NAME, LARGEST_JSON_BYTES), type=Record)
    except msgspec.DecodeError as error:
        raise SetupError(f"{archive.name!s}: {RECORD_NAME}: {error}") from None
    artifact = record.artifact
    if artifact.model != manifest.name:
        raise SetupError(f"{archive.name!s}: holds {artifact.model!r}, not {manifest.name!r}")
    made = folder / "carried"
    made.mkdir()
    with say.step(f"unpack and prove {artifact.model}"):
        for part in (artifact.graph, *artifact.assets):
            path = made / plain_name(part.name)
            path.write_bytes(_member(archive, part.name, LARGEST_FILE_BYTES))
            if artifact_file(path) != part:
                raise SetupError(f"{archive.name!s}: {part.name} is not the recorded file")
    preparation = preparation_digest(manifest, artifact.assets)
    if (preparation, artifact_digest(artifact.precision, preparation, artifact.graph)) != (
        artifact.preparation,
        artifact.digest,
    ):
        raise SetupError(f"{archive.name!s}: was built from another manifest of {manifest.name!r}; answers differ")
    with say.step("load it in a child process"):
        prove(made / artifact.graph.name, manifest, made)
    publish(data, artifact, made)
    if REPORT_NAME in archive.getnames():
        (model_folder(data, manifest.name) / REPORT_NAME).write_bytes(_member(archive, REPORT_NAME, LARGEST_JSON_BYTES))
    write_record(data, record)
    return record


def _member(archive: tarfile.TarFile, name: str, most: int) -> bytes:
    """One regular file of the tar by its exact name; links and folders are not followed."""
    try:
        info = archive.getmember(name)
    except KeyError:
        raise SetupError(f"{archive.name!s}: holds no {name}") from None
    opened = archive.extractfile(info) if info.isreg() else None
    if opened is None or info.size > most:
        raise SetupError(f"{archive.name!s}: {name} is not a regular file of at most {most} bytes")
    return opened.read()
