"""Which offsets of a partition are finished → the one to commit: the first that is not.

A commit never passes a message that is still under way, so a message is lost by no crash. Messages may finish in any
order.
"""

from __future__ import annotations

from collections import deque


class PartitionOffsets:
    """The messages of one partition that this process has taken, in the order in which they came."""

    def __init__(self) -> None:
        self._open: deque[int] = deque()
        self._finished: set[int] = set()
        self._next: int | None = None
        self._committed: int | None = None

    def __len__(self) -> int:
        """Messages taken and not finished, or finished behind one that is not."""
        return len(self._open)

    def begin(self, offset: int) -> None:
        """A message was taken. Offsets grow, with gaps."""
        self._open.append(offset)

    def finish(self, offset: int) -> None:
        """Its reply, or its dead letter, is with the broker."""
        self._finished.add(offset)
        while self._open and self._open[0] in self._finished:
            first = self._open.popleft()
            self._finished.discard(first)
            self._next = first + 1

    def to_commit(self) -> int | None:
        """The offset to commit: that of the next message to read; None where nothing has changed since `committed`."""
        return None if self._next == self._committed else self._next

    def committed(self, offset: int) -> None:
        """The broker has it."""
        self._committed = offset
