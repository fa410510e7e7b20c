"""One built data directory that all tests share: minilm and fingerprint, made once and kept under `build/`."""

from __future__ import annotations

import fcntl
from pathlib import Path

from foreseen import models
from foreseen.errors import SetupError
from foreseen.models.build.build import build
from foreseen.models.build.publish import intact
from foreseen.models.progress import SilentProgress
from foreseen.modelspec.artifact import artifact_digest, preparation_digest, read_record
from foreseen.modelspec.manifest import Manifest, find

ROOT = Path(__file__).parent.parent
DATA = ROOT / "build" / "test-data"
PACKAGED = (Path(models.__file__).parent,)


def built_data(*names: str) -> Path:
    """The data directory with these models in force (both test models by default), built where missing or outdated."""
    DATA.mkdir(parents=True, exist_ok=True)
    with (DATA / ".test-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in names or ("fingerprint", "minilm"):
            manifest = find(name, PACKAGED)
            if not _in_force(manifest):
                build(manifest, DATA, quick=True, say=SilentProgress())
    return DATA


def _in_force(manifest: Manifest) -> bool:
    """Whether the record there was made of today's manifest and its files are whole."""
    try:
        artifact = read_record(DATA, manifest.name).artifact
    except SetupError:
        return False
    preparation = preparation_digest(manifest, artifact.assets)
    digest = artifact_digest(artifact.precision, preparation, artifact.graph)
    return artifact.digest == digest and intact(DATA, artifact)
