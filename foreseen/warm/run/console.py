"""Shows a run: a progress bar for a person on stderr, a summary for programs on stdout."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table

from foreseen.warm.checkpoint import Progress as Done
from foreseen.warm.run.command import Summary
from foreseen.warm.run.dry_run import Forecast


class Bar:
    """A progress bar if stderr is a terminal, otherwise nothing. Rows count as soon as they are done, also within a
    chunk; their results are known at its end."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None
        self._rows: int | None = None
        self._before = self._done = self._inside = 0
        self._since = time.monotonic()
        self._lock = threading.Lock()

    def started(self, rows: int | None, done: Done) -> None:
        self._rows, self._before, self._done = rows, done.rows, done.rows
        self._since = time.monotonic()
        self._task = self._progress.add_task("warm", total=rows, completed=done.rows, counts="", pace="reading")

    def inside(self, rows: int) -> None:
        with self._lock:
            self._inside += rows
        self._show()

    def moved(self, done: Done) -> None:
        with self._lock:
            self._done, self._inside = done.rows, 0
        parts = [f"{done.hit:,} hits", f"{done.computed:,} computed", f"{done.failed:,} failed"]
        if done.imported:
            parts.insert(1, f"{done.imported:,} imported")
        self._show(", ".join(parts))

    def _show(self, counts: str | None = None) -> None:
        assert self._task is not None
        done = self._done + self._inside
        total = None if self._rows is None else max(self._rows, done)  # an estimate may be too low
        rate = (done - self._before) / max(time.monotonic() - self._since, 1e-3)
        fields = {"pace": pace(done, total, rate)} | ({} if counts is None else {"counts": counts})
        self._progress.update(self._task, total=total, completed=done, **fields)  # type: ignore[arg-type]


def pace(done: int, total: int | None, rate: float) -> str:
    """Rows, their rate and the remaining time, as text."""
    if rate <= 0:
        return "reading"
    said = (
        f"{done:,} of {total:,} rows, {rate:,.0f} rows/s" if total is not None else f"{done:,} rows, {rate:,.0f} rows/s"
    )
    return said if total is None else f"{said}, {_spell(math.ceil((total - done) / rate))} left"


def _spell(seconds: int) -> str:
    hours, minutes = divmod(seconds // 60, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds % 60:02} s" if minutes else f"{seconds} s"


@contextlib.contextmanager
def bar(*, quiet: bool) -> Iterator[Bar]:
    """The bar on stderr: stdout has the summary only."""
    console = Console(stderr=True, quiet=quiet or not sys.stderr.isatty())
    columns = (
        SpinnerColumn(),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[pace]}"),
        TextColumn("{task.fields[counts]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bar(progress)


def summary_table(summary: Summary) -> Table:
    table = Table(title=f"warm {summary.model} ({summary.mode})", title_justify="left")
    for name in ("files", "rows", "hit", "computed", "imported", "failed"):
        table.add_column(name, justify="right")
    table.add_column("seconds", justify="right")
    table.add_column("rows/s", justify="right")
    counts = [
        summary.files,
        summary.rows,
        summary.hit,
        summary.computed,
        summary.imported,
        summary.failed,
    ]
    speed = summary.rows / summary.seconds if summary.seconds else 0
    table.add_row(*(f"{count:,}" for count in counts), f"{summary.seconds:,.1f}", f"{speed:,.0f}")
    notes = []
    if summary.resumed:
        notes.append(f"resumed: {summary.resumed:,} rows were done before")
    if summary.equal:
        notes.append(f"equal to others: {summary.equal:,} rows, computed once")
    if summary.results is not None:
        notes.append(f"results: {summary.results}")
    if summary.rejects is not None:
        notes.append(f"rejected rows: {summary.rejects}")
    table.caption, table.caption_justify = "\n".join(notes) or None, "left"
    return table


def forecast_table(forecast: Forecast) -> Table:
    table = Table(title="dry run: nothing was changed", title_justify="left")
    about = "about " if forecast.estimated else ""
    rows = [
        ("rows", f"{forecast.rows:,}"),
        ("distinct", f"{about}{forecast.distinct:,}"),
        ("cached already", f"{about}{forecast.cached:,}"),
        ("cannot be read", f"{forecast.failed:,}"),
        ("memory in Redis", f"about {forecast.far_bytes / 2**20:,.1f} MiB more"),
        ("time", "not known" if forecast.seconds is None else f"about {forecast.seconds:,.0f} s"),
    ]
    table.add_column("what")
    table.add_column("how much", justify="right")
    for row in rows:
        table.add_row(*row)
    return table
