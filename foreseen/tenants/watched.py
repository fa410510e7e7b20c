"""Files that are read again when they change: by what their paths lead to now, so that a swapped link counts, too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import structlog

from foreseen.errors import SetupError

LOOK_SECONDS = 0.25
"""A change is in force after two looks."""
Taken = TypeVar("Taken")

log = structlog.get_logger()

Identity = tuple[int, int, int, int, int]
"""What tells one version of a file from another: device, inode, size, and its two times in nanoseconds."""


def identity_of(path: Path) -> Identity | None:
    """Of the file that a path leads to; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class WatchedFiles:
    """Some files that belong together, such as a certificate and its key."""

    def __init__(self, paths: Sequence[Path], name: str) -> None:
        """`name` is what the log calls them."""
        self._paths = tuple(paths)
        self._name = name
        self._taken = self._seen = self._now()

    def changed(self) -> bool:
        """Whether to read them again: they differ from what was taken last, and two looks have found them the same, so
        that nothing is read that is being written."""
        now = self._now()
        if now == self._taken:
            self._seen = now
            return False
        if now != self._seen:
            self._seen = now
            return False
        self._taken = now
        return True

    def read_anew(self, read: Callable[[], Taken]) -> Taken | None:
        """One look at the files: what `read` makes of changed ones. None where they are as before, or where it raises
        SetupError, which is logged: what was taken before stays in force."""
        if not self.changed():
            return None
        try:
            return read()
        except SetupError as error:
            log.error("changed files not usable; the former ones stay in force", what=self._name, why=str(error))
            return None

    async def follow(self, look: Callable[[], None]) -> None:
        """Call `look` four times a second, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            look()

    def _now(self) -> tuple[Identity | None, ...]:
        return tuple(identity_of(path) for path in self._paths)
