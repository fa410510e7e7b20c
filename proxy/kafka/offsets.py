"""Which offsets of a partition are finished → the one to commit: the first that is not.

A commit never passes a message that is still under way, so a message is lost by no crash. Messages may finish in any
order; what each has come to is given back in theirs.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class PartitionOffsets(Generic[T]):
    """The messages of one partition that this process has taken, in the order in which they came. `unfinished` and
    `bytes` are of those that are not finished."""

    __slots__ = ("_committed", "_finished", "_next", "_open", "bytes", "unfinished")

    def __init__(self) -> None:
        self._open: deque[int] = deque()
        self._finished: dict[int, T | None] = {}
        self._next: int | None = None
        self._committed: int | None = None
        self.unfinished = self.bytes = 0

    def __len__(self) -> int:
        """Messages taken and not finished, or finished behind one that is not."""
        return len(self._open)

    def begin(self, offset: int, size: int = 0) -> None:
        """A message was taken. Offsets grow, with gaps."""
        self._open.append(offset)
        self.unfinished += 1
        self.bytes += size

    def finish(self, offset: int, what: T | None = None, size: int = 0) -> list[T]:
        """It is done with; what was finished without a gap by that, in order."""
        self.unfinished -= 1
        self.bytes -= size
        self._finished[offset] = what
        free: list[T] = []
        while self._open and self._open[0] in self._finished:
            first = self._open.popleft()
            done = self._finished.pop(first)
            if done is not None:
                free.append(done)
            self._next = first + 1
        return free

    def to_commit(self) -> int | None:
        """The offset to commit: that of the next message to read; None where nothing has changed since `committed`."""
        return None if self._next == self._committed else self._next

    def committed(self, offset: int) -> None:
        """The broker has it."""
        self._committed = offset
