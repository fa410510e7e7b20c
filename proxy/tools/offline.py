"""Computes frames and keys of a request file with the proxy's own code, for `foreseen key` and `explain`.

The key's space needs the model digest. Only the model's process knows it (it names provider, processor family and
runtime), so it is read over the socket unless it is given.
"""

from __future__ import annotations

import asyncio
import gzip
import sys
import zlib
from pathlib import Path

from msgspec import Struct

from foreseen.errors import BadRequest, ModelUnavailable, SetupError, StateUnavailable
from foreseen.keys.explain import Frame, differences, read_frame
from foreseen.keys.key import Framer, key_of, space_key
from foreseen.keys.secret import read_secret
from foreseen.modelspec.artifact import read_file, read_record
from foreseen.modelspec.manifest import Manifest, find
from foreseen.modelspec.prepare import Preparer
from foreseen.paths import model_socket, state_socket
from foreseen.proxy.backend.model import ModelProcess
from foreseen.proxy.predict.dialects.decode import decode_v1, decode_v2
from foreseen.settings import KeySettings
from foreseen.stores.state import generation_of, read_generations
from foreseen.tenants.keyring import scope_named
from foreseen.types import Key, Scope, Space


class KeyedRow(Struct, frozen=True):
    """One row of a request file: its frame, and its key where the digest is known."""

    space: Space
    frame: Frame
    key: Key


def keyed(file: Path, settings: KeySettings) -> list[KeyedRow]:
    """The rows of a request file, `-` for stdin. Raises SetupError or BadRequest."""
    manifest = find(settings.model, settings.model_folders)
    body = _decoded(sys.stdin.buffer.read() if str(file) == "-" else _read(file))
    if settings.protocol == "v1":
        asked = decode_v1(body, manifest)
    else:
        asked = decode_v2(body, settings.header_length, manifest)
    rows = _preparer(manifest, settings.data).rows(asked.inputs)
    digest = settings.digest or _digest(manifest, settings.data)
    scope = scope_named(settings.tenant, settings.keys_file)
    space = Space(scope, manifest.name, digest, _generation(scope, manifest.name, digest, settings.data))
    own = space_key(read_secret(settings.secret_file or settings.data / "secret"), space)
    frames = Framer(manifest.model).frames(rows, asked.parameters)
    return [KeyedRow(space, read_frame(frame), key_of(own, frame)) for frame in frames]


def compared(one: KeyedRow, other: KeyedRow) -> list[str]:
    """The fields in which two rows' entries differ; empty where they share one."""
    found = [
        f"{field}: {left[:16]} ≠ {right[:16]}"
        for field, left, right in (
            ("model", one.space.model, other.space.model),
            ("digest", one.space.digest, other.space.digest),
        )
        if left != right
    ]
    return found + differences(one.frame, other.frame)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise SetupError(f"{file}: {error.strerror}") from None


def _decoded(body: bytes) -> bytes:
    """A captured body may still be compressed."""
    try:
        return gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
    except (OSError, EOFError, zlib.error):
        raise BadRequest("the file starts like gzip but cannot be decompressed") from None


def _preparer(manifest: Manifest, data: Path) -> Preparer:
    if not any(spec.tokenizer for spec in manifest.seen.inputs):
        return Preparer(manifest, {})
    artifact = read_record(data, manifest.name).artifact
    return Preparer(manifest, {file.name: read_file(data, artifact, file) for file in artifact.assets})


def _generation(scope: Scope, model: str, digest: str, data: Path) -> int:
    """The generation that purges have left; 0 where no state store runs under this data directory."""
    path = state_socket(data)
    if not path.exists():
        return 0
    try:
        return generation_of(read_generations(f"unix://{path}"), scope, model, digest)
    except StateUnavailable:
        return 0


def _digest(manifest: Manifest, data: Path) -> str:
    async def ask() -> str:
        address = f"unix:{model_socket(data, manifest.name)}"
        process = ModelProcess(manifest, address, rows_per_request=1, requests=1)
        try:
            return (await process.facts()).digest
        finally:
            await process.close()

    try:
        return asyncio.run(ask())
    except ModelUnavailable:
        raise SetupError(
            f"model {manifest.name!r} does not run under {data}, so its digest is not known; "
            "start it (foreseen up), or give --digest (GET /v2/models/NAME shows it)"
        ) from None
