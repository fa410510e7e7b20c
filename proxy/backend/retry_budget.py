"""A retry budget: how many requests may be sent a second time, as a share of those sent once.

A process that breaks connections is near overload; unlimited retries would double its load.
"""

from __future__ import annotations

SHARE = 0.1
BURST = 10.0
"""What may be saved up: those that were under way when a process died."""


class RetryBudget:
    """`sent` for every request, `spend` before every repetition."""

    def __init__(self, burst: float = BURST) -> None:
        self._burst = self._left = burst

    def sent(self) -> None:
        self._left = min(self._burst, self._left + SHARE)

    def spend(self) -> bool:
        """Whether one more repetition is within the budget; it is spent then."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
