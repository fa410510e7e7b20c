"""What was answered → one line of the log per request: all that were not hits, and a share of the hits.

Never an input, nor a path or name that is not a served model's. Lines are bounded in number, so that a flood of wrong
requests does not become a flood of lines; the next line says how many were left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

log = structlog.get_logger()

LINES_PER_SECOND = 200
"""More would cost more than the answers: a line takes about 20 µs."""


class AccessLog:
    """Of one worker. `hits` is the share of hits that are logged; 0 logs none and costs nothing."""

    def __init__(self, hits: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._hits = hits
        self._clock = clock
        self._due = 0.0
        self._second = 0
        self._lines = 0
        self._skipped = 0

    def write(
        self,
        model: str,
        protocol: str,
        status: int,
        result: str,
        rows: int,
        seconds: float,
        *,
        code: str | None = None,
        traceparent: str | None = None,
    ) -> None:
        """Log a request, or not. One that carries a sampled trace (W3C trace flags) always is, so that a trace ends
        here as somebody who follows it expects."""
        if result == "hit" and not (self._is_due() or _sampled(traceparent)):
            return
        second = int(self._clock())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines > LINES_PER_SECOND:
            self._skipped += 1
            return
        more: dict[str, object] = {} if code is None else {"code": code}
        if traceparent is not None:
            more["traceparent"] = traceparent
        if result == "hit" and self._hits < 1:
            more["share"] = self._hits
        if self._skipped:
            more["skipped"], self._skipped = self._skipped, 0
        log.info(
            "request",
            model=model,
            protocol=protocol,
            status=status,
            result=result,
            rows=rows,
            ms=round(seconds * 1000, 3),
            **more,
        )

    def _is_due(self) -> bool:
        """Whether this hit is one of the share: every hundredth of 0.01, spread evenly."""
        if not self._hits:
            return False
        self._due += self._hits
        if self._due < 1:
            return False
        self._due -= 1
        return True


def _sampled(traceparent: str | None) -> bool:
    return traceparent is not None and bool(int(traceparent[-2:], 16) & 1)
