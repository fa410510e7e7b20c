"""A run → what a person sees of it on stderr, and a machine on stdout."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from foreseen.warm.run.checkpoint import Progress as Done
from foreseen.warm.run.command import Summary
from foreseen.warm.run.dry_run import Forecast


class Bar:
    """A progress bar where somebody watches, nothing where nobody does."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def started(self, rows: int | None, done: Done) -> None:
        self._task = self._progress.add_task("warm", total=rows, completed=done.rows, counts="", speed="")

    def moved(self, done: Done) -> None:
        assert self._task is not None
        parts = [f"{done.hit:,} hits", f"{done.computed:,} computed", f"{done.failed:,} failed"]
        if done.imported:
            parts.insert(1, f"{done.imported:,} imported")
        speed = f"{done.rows / done.seconds:,.0f} rows/s" if done.seconds else ""
        self._progress.update(self._task, completed=done.rows, counts=", ".join(parts), speed=speed)


@contextlib.contextmanager
def bar(*, quiet: bool) -> Iterator[Bar]:
    """The bar on stderr, so that stdout stays the summary's."""
    console = Console(stderr=True, quiet=quiet or not sys.stderr.isatty())
    columns = (
        SpinnerColumn(),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[speed]}"),
        TextColumn("{task.fields[counts]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bar(progress)


def summary_table(summary: Summary) -> Table:
    table = Table(title=f"warm {summary.model} ({summary.mode})", title_justify="left")
    for name in ("files", "rows", "hit", "computed", "imported", "failed"):
        table.add_column(name, justify="right")
    table.add_column("seconds", justify="right")
    table.add_column("rows/s", justify="right")
    counts = [summary.files, summary.rows, summary.hit, summary.computed, summary.imported, summary.failed]
    speed = summary.rows / summary.seconds if summary.seconds else 0
    table.add_row(*(f"{count:,}" for count in counts), f"{summary.seconds:,.1f}", f"{speed:,.0f}")
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
