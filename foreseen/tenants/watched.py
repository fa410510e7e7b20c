"""Files that are read again when they change: by what their paths lead to now, so that a swapped link counts, too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
    """Some files that belong together."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
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

    def _now(self) -> tuple[Identity | None, ...]:
        return tuple(identity_of(path) for path in self._paths)
