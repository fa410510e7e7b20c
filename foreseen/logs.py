"""Logging of every process to stderr: structlog, one JSON object a line, or readable text; values are fields.

What libraries log, warnings, tracebacks and the error message of a command that fails are written in the same format.
Never an input, a tensor, a token, a secret or a full digest.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from types import TracebackType
from typing import Literal, NamedTuple, TextIO, cast

import structlog

Format = Literal["json", "text"]

LINES_AT_ONCE = 10
"""Lines of one kind of event in a burst; then one a second."""
_MOST_KINDS = 256


class Sparing:
    """Lets so many lines of each kind of event through, so that a flood of errors does not fill a disk with them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kinds: dict[str, tuple[float, float, int]] = {}

    def skipped(self, kind: str) -> dict[str, int] | None:
        """Fields that report the lines of this kind left out before; None if this line is to be left out, too."""
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
    """A file that drops what cannot be written: no request fails because the disk of the log is full."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._descriptor, text.encode(errors="backslashreplace"))

    def flush(self) -> None:
        """No buffering."""


class _Forwarded(logging.Handler):
    """Writes a library's log records (Python's `logging`) as lines of structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        level = (
            record.levelname.lower() if record.levelname.lower() in ("debug", "info", "warning", "error") else "error"
        )
        with contextlib.suppress(Exception):  # a log line that cannot be made must not end what made it
            getattr(log, level)(record.getMessage(), logger=record.name, exc_info=record.exc_info or None)


def default_format() -> Format:
    """Text for a person at a terminal, JSON for a collector."""
    return "text" if sys.stderr.isatty() else "json"


_ENCODE = json.JSONEncoder(default=repr).encode


class _Direct(NamedTuple):
    """How `configure` has set structlog up, where its lines are JSON and informational ones are written."""

    processors: list[structlog.typing.Processor]
    file: _Lossy


_direct: _Direct | None = None


@lru_cache(maxsize=1)
def _second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def write_line(event: str, fields: dict[str, object]) -> None:
    """What `structlog.get_logger().info` writes, at a fifth of its price. For lines that every request may have."""
    direct = _direct
    if direct is None or structlog.get_config()["processors"] is not direct.processors or len(direct.processors) < 2:
        structlog.get_logger().info(event, **fields)
        return
    second, micros = divmod(time.time_ns() // 1000, 1_000_000)
    stamp = f"{_second(second)}.{micros:06d}Z"
    line = {**fields, "event": event, **structlog.contextvars.get_contextvars(), "level": "info", "timestamp": stamp}
    direct.file.write(_ENCODE(line) + "\n")


def configure(level: str, process: str, form: Format | None = None) -> None:
    """Log to stderr. aiohttp's own loggers are quietened: each malformed request would log a traceback."""
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
    if (form or default_format()) == "text":
        renderer = structlog.dev.ConsoleRenderer(pad_event_to=0, colors=sys.stderr.isatty())
    global _direct  # noqa: PLW0603 - of this process, as structlog's own
    file, least = _Lossy(sys.stderr.fileno()), logging.getLevelNamesMapping()[level.upper()]
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        renderer,
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", file)),
    )
    is_json = isinstance(renderer, structlog.processors.JSONRenderer)
    _direct = _Direct(processors, file) if is_json and least <= logging.INFO else None
    structlog.contextvars.bind_contextvars(process=process)
    for noisy in ("aiohttp.access", "aiohttp.server", "aiohttp.web", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    logging.basicConfig(handlers=[_Forwarded()], level=logging.WARNING, force=True)
    logging.captureWarnings(capture=True)
    sys.excepthook = _ended


def _ended(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Log the exception that ends a process."""
    structlog.get_logger().error("ended by an error", error=kind.__name__, exc_info=(kind, error, traceback))


def fail(text: str, form: Format | None, process: str) -> None:
    """Write an error or a warning of a command as one line on stderr: as a log line where `form` is JSON."""
    if form == "json":
        configure("info", process, form)
        structlog.get_logger().error(text)
    else:
        print(f"foreseen: {text}", file=sys.stderr)
