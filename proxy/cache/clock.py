"""A clock that follows the wall clock without its jumps: Unix seconds that never go back and never leap.

Ages, lifetimes and `Age` are differences of two readings. Setting the wall clock an hour forward must not expire the
cache, and setting it back must not make entries immortal. So time passes as on the monotonic clock, and a difference
from the wall clock is corrected slowly (slewing).
"""

from __future__ import annotations

import time
from collections.abc import Callable

SLEW = 0.05
"""How much faster or slower the clock runs than real time during a correction: an hour takes 20 hours."""
STEP_SECONDS = 0.5
"""A smaller difference is what time daemons correct every day: it is followed at once, but never back."""


class SteadyClock:
    """Called, it gives Unix seconds."""

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._at = monotonic()
        self._now = wall()

    def __call__(self) -> float:
        at = self._monotonic()
        passed = at - self._at
        ahead = self._wall() - (self._now + passed)
        if not -STEP_SECONDS <= ahead <= STEP_SECONDS:
            ahead = max(-SLEW * passed, min(SLEW * passed, ahead))
        self._at, now = at, self._now + passed + ahead
        if now > self._now:
            self._now = now
        return self._now
