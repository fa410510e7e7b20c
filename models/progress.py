"""The progress of a build: a live display on a terminal, one line per finished step elsewhere.

Everything goes to stderr: stdout is for `--json` and the `ready` line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import structlog
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from foreseen.logs import Format, configure

log = structlog.get_logger()

Advance = Callable[[], None]
"""Call it once per finished part of a step."""


class BuildProgress(Protocol):
    """The display that a build reports to."""

    def step(self, what: str, parts: int | None = None) -> AbstractContextManager[Advance]: ...


class SilentProgress:
    """No output: for tests and programs."""

    @contextmanager
    def step(self, what: str, parts: int | None = None) -> Iterator[Advance]:
        del what, parts
        yield _nothing


class LineProgress:
    """One line per finished step with its seconds: for pipes, logs and CI."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def step(self, what: str, parts: int | None = None) -> Iterator[Advance]:
        del parts
        began = time.monotonic()
        yield _nothing
        line = f"{what}: {time.monotonic() - began:.1f} s"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class LogProgress:
    """The same as log lines, for a system whose stderr is collected."""

    @contextmanager
    def step(self, what: str, parts: int | None = None) -> Iterator[Advance]:
        del parts
        began = time.monotonic()
        yield _nothing
        log.info("build", step=what, seconds=round(time.monotonic() - began, 1))


class LiveProgress:
    """A spinner, a bar where the number of parts is known, and the time each step has taken."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    @contextmanager
    def step(self, what: str, parts: int | None = None) -> Iterator[Advance]:
        task = self._progress.add_task(what, total=parts)
        yield lambda: self._progress.advance(task)
        self._progress.update(task, total=parts or 1, completed=parts or 1)


@contextmanager
def shown(form: Format | None = None) -> Iterator[BuildProgress]:
    """The display that fits stderr: live, lines or log."""
    if form == "json":
        configure("info", "build", form)
        yield LogProgress()
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield LineProgress(console)
        return
    columns = (SpinnerColumn(finished_text="✓"), TextColumn("{task.description}", markup=False), BarColumn(20))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        yield LiveProgress(progress)


def _nothing() -> None:
    pass
