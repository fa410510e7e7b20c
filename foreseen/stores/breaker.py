"""Failures → whether to try at all. Pure: the clock is the caller's.

A circuit breaker: it opens after `threshold` consecutive failures. While it is open no request tries the server; a
background task probes it every `probe_seconds`.
"""

from __future__ import annotations


class Breaker:
    def __init__(self, threshold: int = 3, probe_seconds: float = 0.5) -> None:
        self.threshold = threshold
        self.probe_seconds = probe_seconds
        self._failures = 0

    @property
    def open(self) -> bool:
        return self._failures >= self.threshold

    def failed(self) -> bool:
        """Count a failure; True when this one opened it."""
        self._failures += 1
        return self._failures == self.threshold

    def succeeded(self) -> None:
        self._failures = 0

    def __repr__(self) -> str:
        return f"<Breaker {'open' if self.open else 'closed'} failures={self._failures}>"
