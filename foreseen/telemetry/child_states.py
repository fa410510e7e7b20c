"""A file of fixed size with the states of the supervisor's children, which the proxies' `/metrics` reports.

The file is made, in full, before any child is started, and then overwritten in place: a full disk, which ends children,
does not keep their ends from being reported.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

FILE_BYTES = 64 * 1024


class ChildState(Struct, frozen=True):
    """A child by its name (proxy:0, worker:0, model:NAME, far, state), and how often it has ended by itself."""

    name: str
    running: bool
    ends: int


class ChildrenFile:
    """The supervisor's side."""

    def __init__(self, path: Path) -> None:
        """Make the file. Raises OSError."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._written = b""
        self.write(())

    def write(self, children: Sequence[ChildState]) -> None:
        """Write the present states of the children; none if they do not fit into the file."""
        body = msgspec.json.encode(children)
        if len(body) > FILE_BYTES:
            body = b"[]"
        if body != self._written:
            os.pwrite(self._descriptor, body.ljust(FILE_BYTES), 0)
            self._written = body

    def close(self) -> None:
        os.close(self._descriptor)


def read_children(path: Path) -> list[ChildState]:
    """The states that the supervisor wrote last; none where there is no file, or while it writes."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[ChildState])
    except (OSError, msgspec.MsgspecError):
        return []
