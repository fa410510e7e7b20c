"""Publishes an artifact atomically.

Everything is made in `DATA/models/.building-<random>/` and renamed. The record names the artifact in force. It is
written last, so a build that fails at any point leaves the old artifact in force.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from foreseen.errors import SetupError
from foreseen.models.progress import BuildProgress
from foreseen.modelspec.artifact import (
    Artifact,
    artifact_digest,
    artifact_file,
    model_folder,
    preparation_digest,
    read_file,
)
from foreseen.modelspec.manifest import Manifest, Precision

GRAPH_NAME = "model.onnx"
WORKSHOP_PREFIX = ".building-"


@contextmanager
def workshop(data: Path, say: BuildProgress) -> Iterator[Path]:
    """A temporary folder to build in. One build at a time per data directory; it removes those of killed builds."""
    root = data / "models"
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with say.step("wait for another build to finish"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        for left in root.glob(f"{WORKSHOP_PREFIX}*"):
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(dir=root, prefix=WORKSHOP_PREFIX) as folder:
            yield Path(folder)


def describe(manifest: Manifest, precision: Precision, graph: Path, assets: Sequence[Path]) -> Artifact:
    """The artifact that these files are."""
    files = tuple(artifact_file(path) for path in assets)
    preparation = preparation_digest(manifest, files)
    described = artifact_file(graph)
    digest = artifact_digest(precision, preparation, described)
    return Artifact(manifest.name, precision, digest, preparation, described, files)


def publish(data: Path, artifact: Artifact, made: Path) -> None:
    """Move the folder `made`, which holds exactly the artifact's files, to the path of the artifact's digest."""
    place = model_folder(data, artifact.model) / artifact.digest
    if intact(data, artifact):
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    for path in made.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if place.exists():  # damaged: moved into the temporary folder, which is removed
        place.rename(made.with_name(f"{made.name}-damaged"))
    made.rename(place)


def intact(data: Path, artifact: Artifact) -> bool:
    """Whether all files of an artifact are there, with their digests."""
    try:
        for file in (artifact.graph, *artifact.assets):
            read_file(data, artifact, file)
    except SetupError:
        return False
    return True
