"""How every process logs: structlog, one JSON object a line, or readable on a terminal; event first, values as fields.

Never an input, a tensor, a token, a secret or a full digest.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import TextIO, cast

import structlog

LINES_AT_ONCE = 10
"""Lines of one kind of event that are written at once; then one a second."""
_MOST_KINDS = 256


class Sparing:
    """Lets so many lines of each kind of event through, so that a flood of errors does not fill a disk with them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kinds: dict[str, tuple[float, float, int]] = {}

    def skipped(self, kind: str) -> dict[str, int] | None:
        """What a line says of those of its kind that were left out before it; None where it is to be left out, too."""
        now = self._clock()
        lines, at, left_out = self._kinds.pop(kind, (float(LINES_AT_ONCE), now, 0))
        lines = min(float(LINES_AT_ONCE), lines + now - at)
        written = lines >= 1
        self._kinds[kind] = (lines - written, now, 0 if written else left_out + 1)
        if len(self._kinds) > _MOST_KINDS:
            del self._kinds[next(iter(self._kinds))]
        if not written:
            return None
        return {"skipped": left_out} if left_out else {}


class _Lossy:
    """A file that loses what cannot be written: no request fails for want of room on the disk of its log."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._descriptor, text.encode(errors="backslashreplace"))

    def flush(self) -> None:
        """Nothing is held back."""


def configure(level: str, process: str) -> None:
    """Log to stderr. aiohttp's own loggers are quietened: each malformed request would log a traceback."""
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
    if sys.stderr.isatty():
        renderer = structlog.dev.ConsoleRenderer(pad_event_to=0)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _Lossy(sys.stderr.fileno()))),
    )
    structlog.contextvars.bind_contextvars(process=process)
    for noisy in ("aiohttp.access", "aiohttp.server", "aiohttp.web", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
