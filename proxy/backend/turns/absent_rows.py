"""Counts rows that wait for an absent model, from which an autoscaler starts the model's first replica.

A model at zero replicas has no metrics of its own. So the proxy counts the rows that it could not ask the model for:
their requests got 503 with Retry-After, or a stale answer. Each counts for a minute, or until the model is there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW_SECONDS = 60


class AbsentRows:
    """The rows of one model, by the second in which they were asked for."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: deque[tuple[int, int]] = deque(maxlen=WINDOW_SECONDS)

    def add(self, rows: int) -> None:
        """So many rows could not be asked for."""
        now = int(self._clock())
        if self._seconds and self._seconds[-1][0] == now:
            rows += self._seconds.pop()[1]
        self._seconds.append((now, rows))

    def clear(self) -> None:
        """The model is there."""
        self._seconds.clear()

    def __len__(self) -> int:
        """Rows of the last minute."""
        since = int(self._clock()) - WINDOW_SECONDS
        return sum(rows for second, rows in self._seconds if second > since)
