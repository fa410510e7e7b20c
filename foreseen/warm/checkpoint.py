"""A run's checkpoint: a small file from which the same command resumes after a kill.

It is replaced atomically after every chunk, once the chunk's entries and results are stored. A resumed run repeats what
followed the checkpoint, which changes nothing: entries are found by key, results by name. The file of rejects is
truncated to its length at the checkpoint.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from foreseen.errors import SetupError


class Progress(Struct):
    """`file` is the index of the current file, `place` how many of its rows are done. With several workers, `done` has
    the (file, first row) of every finished chunk."""

    file: int = 0
    place: int = 0
    done: list[tuple[int, int]] = []
    hit: int = 0
    computed: int = 0
    imported: int = 0
    failed: int = 0
    equal: int = 0
    rejects_bytes: int = 0
    seconds: float = 0.0

    def add(self, counts: Sequence[int]) -> None:
        """Add counts of rows, in the order of `plan.RESULTS`."""
        hit, computed, imported, failed = counts
        self.hit += hit
        self.computed += computed
        self.imported += imported
        self.failed += failed

    @property
    def rows(self) -> int:
        return self.hit + self.computed + self.imported + self.failed


class Checkpoint:
    """One run's checkpoint, locked by one process at a time."""

    def __init__(self, folder: Path, run: str) -> None:
        """Raises SetupError where the folder cannot be written or another process holds it."""
        self._path = folder / f"{run}.json"
        self.rejects = folder / f"{run}.rejects.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / f"{run}.lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SetupError("the same command is running already; wait for it, or stop it") from None
        except OSError as error:
            raise SetupError(f"{folder}: {error.strerror}; give --checkpoint a folder that can be written") from None

    def read(self) -> Progress:
        """The progress to go on from; a fresh start if there is none."""
        try:
            progress = msgspec.json.decode(self._path.read_bytes(), type=Progress)
        except (FileNotFoundError, msgspec.DecodeError):
            progress = Progress()
        with self.rejects.open("ab") as file:
            file.truncate(progress.rejects_bytes)
        return progress

    def append(self, progress: Progress, rejects: list[dict[str, Any]]) -> None:
        if rejects:
            lines = b"".join(msgspec.json.encode(reject) + b"\n" for reject in rejects)
            with self.rejects.open("ab") as file:
                file.write(lines)
            progress.rejects_bytes += len(lines)

    def write(self, progress: Progress) -> None:
        beside = self._path.with_suffix(".new")
        with beside.open("wb") as file:
            file.write(msgspec.json.encode(progress))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)

    def first(self) -> str:
        """The first reject, as text."""
        with self.rejects.open("rb") as file:
            reject = msgspec.json.decode(file.readline())
        return f"row {reject['row']} of {reject['file']}: {reject['reason']}"

    def done(self) -> None:
        """The run has ended: the same command starts a new one."""
        self._path.unlink(missing_ok=True)
        if not self.rejects.stat().st_size:
            self.rejects.unlink()

    def close(self) -> None:
        self._lock.close()


def run_name(*fields: Any) -> str:
    """A name derived from command and files, so the same command on the same files has it again."""
    return hashlib.sha256(msgspec.json.encode(fields)).hexdigest()[:16]
