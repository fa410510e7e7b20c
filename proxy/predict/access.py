"""What was answered → one line of the log per request: all that were not hits, and a share of the hits.

A line says who asked: client address, path without its query, request id; and of an error its text, which names the
field. Never an input. Lines are bounded in number, so that a flood of wrong requests does not become a flood of lines;
the next line says how many were left out. Every request is counted under its caller, logged or not.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Container

import structlog

from foreseen.telemetry.callers import CallerCounts
from foreseen.web.caller import Caller

log = structlog.get_logger()

_NONE = "there is no such"
_QUOTED = re.compile(r"'.*'", re.DOTALL)
_FIELD = re.compile(r"(inputs|outputs|parameters)\.(.*)", re.DOTALL)

MAX_ERROR_CHARACTERS = 300
LINES_PER_SECOND = 200
"""More would cost more than the answers: a line takes about 20 µs."""


class AccessLog:
    """Of one worker. `models` are those whose names a path may show. `hits` is the share of hits that are logged; 0
    logs none."""

    def __init__(
        self,
        hits: float,
        clock: Callable[[], float] = time.monotonic,
        callers: CallerCounts | None = None,
        models: Container[str] = (),
    ) -> None:
        self._models = models
        self.asking: Caller | None = None
        """Who sent the request that is answered right now by a kept reply."""
        self._callers = CallerCounts(0) if callers is None else callers
        self._hits = hits
        self._clock = clock
        self._due = 0.0
        self._second = 0
        self._lines = 0
        self._skipped = 0

    def told(
        self,
        model: str,
        protocol: str,
        status: int,
        result: str,
        rows: int,
        seconds: float,
        *,
        code: str | None = None,
        error: str | None = None,
        traceparent: str | None = None,
        caller: Caller | None = None,
        computed: int = 0,
    ) -> None:
        """Log a request, or not. One that carries a sampled trace (W3C trace flags) always is, so that a trace ends
        here as somebody who follows it expects."""
        if caller is not None:
            self._callers.add(caller.address, rows, computed)
        if result == "hit" and not (self._is_due() or _sampled(traceparent)):
            return
        second = int(self._clock())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines > LINES_PER_SECOND:
            self._skipped += 1
            return
        more: dict[str, object] = {} if caller is None else caller.fields(self._models)
        if code is not None:
            more["code"] = code
        if error is not None:
            more["error"] = error[:MAX_ERROR_CHARACTERS]
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


def without_names(text: str, known: Collection[str]) -> str:
    """An error's text without names that the client made up: what is quoted, and a tensor or parameter that the model
    does not have. The caller's own reply has them."""
    text = _QUOTED.sub("'…'", text)
    field = _FIELD.match(text)
    if field is None:
        return text
    if _NONE not in text and any(re.match(rf"{re.escape(name)}[.:\[\s]", field[2]) for name in known):
        return text
    return f"{field[1]}.…: {text.rpartition(': ')[2]}"


def _sampled(traceparent: str | None) -> bool:
    return traceparent is not None and bool(int(traceparent[-2:], 16) & 1)
