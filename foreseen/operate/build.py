"""Models that are missing or of an older manifest → built, in a process of their own; the command of such a process."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import structlog

from foreseen.errors import SetupError
from foreseen.logs import default_format
from foreseen.modelspec.artifact import preparation_digest, read_file, read_record
from foreseen.modelspec.manifest import Manifest
from foreseen.modelspec.source_file import changed_file
from foreseen.settings import UpSettings

log = structlog.get_logger()


async def build_model(manifest: Manifest, settings: UpSettings) -> None:
    """Build a model in a process of its own where it is missing or of an older manifest."""
    if changed := await asyncio.to_thread(changed_file, manifest):
        log.warning("model file changed; what was built before is served", model=manifest.name, why=changed)
    if _is_built(manifest, settings.data):
        return
    flags = ["--models", str(settings.models)] if settings.models else []
    flags.append(f"--log-format={settings.log_format or default_format()}")
    process = await asyncio.create_subprocess_exec(
        *foreseen_command(),
        "models",
        "build",
        manifest.name,
        "--data",
        str(settings.data),
        *flags,
        stdin=asyncio.subprocess.DEVNULL,
    )
    try:
        if await process.wait():
            raise SetupError(f"model {manifest.name!r} could not be built; its reason stands above")
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


def _is_built(manifest: Manifest, data: Path) -> bool:
    try:
        artifact = read_record(data, manifest.name).artifact
        for file in (artifact.graph, *artifact.assets):
            read_file(data, artifact, file)
    except SetupError:
        return False
    return artifact.preparation == preparation_digest(manifest, artifact.assets)


def foreseen_command() -> list[str]:
    """The command of a child. -P: Python would import a folder or file of the current directory before our own."""
    return [sys.executable, "-P", "-m", "foreseen.cli"]
