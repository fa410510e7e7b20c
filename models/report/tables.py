"""Reports, records and manifests → tables for people, and the one line of a choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from foreseen.models.report.study import Candidate, Report
from foreseen.modelspec.artifact import Record, Serving
from foreseen.modelspec.manifest import Manifest

MEGABYTE = 1e6


def show_report(out: Console, report: Report, chosen: str | None) -> None:
    """Figures, timings and reasons of every candidate; `chosen` is the precision in force."""
    out.print(
        f"{report.model}: {report.asked}; {report.processor}; onnxruntime {report.runtime}",
        highlight=False,
        soft_wrap=True,
    )
    table = Table("precision", "MB", "speed", "agrees", "cosine", "worst", "flips", "changes")
    for one in report.candidates:
        mark = " ←" if one.precision == chosen else ""
        table.add_row(one.precision + mark, *_cells(one), style=None if one.passed else "red")
    out.print(table)
    _show_timings(out, report.candidates)
    _show_shapes(out, report.candidates)
    for one in report.candidates:
        out.print(_facts(one), highlight=False, soft_wrap=True)
    if report.best is not None and chosen is not None and report.best != chosen:
        out.print(f"in force is {chosen}; a full build would take {report.best}", highlight=False)


def show_build(out: Console, record: Record, before: Record | None) -> None:
    """The choice, and whether it is another one than before."""
    show_choice(out, record)
    if before is None:
        return
    if before.artifact.digest == record.artifact.digest:
        out.print(f"unchanged: artifact {record.artifact.digest[:12]} was in force before", highlight=False)
    else:
        out.print(f"changed: artifact {before.artifact.digest[:12]} was in force before", highlight=False)


def show_choice(out: Console, record: Record) -> None:
    artifact = record.artifact
    cached = "cached by the row" if record.row_independent else "NOT cached by the row: batch-mates change its answers"
    size = artifact.graph.bytes / MEGABYTE
    line = f"{artifact.model}: {artifact.precision} in force, {size:.1f} MB, artifact {artifact.digest[:12]}, {cached}"
    out.print(line, highlight=False, soft_wrap=True)


def show_models(out: Console, built: Sequence[tuple[Manifest, Record | None, Serving | None]]) -> None:
    """`artifact` is what was built, `digest` what its process last served it as, which is in every key."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    names = max((len(manifest.name) for manifest, _, _ in built), default=5)
    for name, width in (("model", names), ("in force", 12), ("MB", 5), ("rows", 11), ("artifact", 12), ("digest", 12)):
        table.add_column(name, no_wrap=True, min_width=width)
    table.add_column("what", no_wrap=True, overflow="ellipsis")
    for manifest, record, serving in built:
        if record is None:
            table.add_row(manifest.name, "not built", "", "", "", "", manifest.title)
            continue
        artifact = record.artifact
        rows = "independent" if record.row_independent else "coupled"
        size = f"{artifact.graph.bytes / MEGABYTE:.1f}"
        digest = "–" if serving is None else serving.digest[:12]
        table.add_row(manifest.name, artifact.precision, size, rows, artifact.digest[:12], digest, manifest.title)
    out.print(table)


def listed(manifest: Manifest, record: Record | None, serving: Serving | None) -> dict[str, Any]:
    """One model of `models list --json`; `digest` is the model digest, null until its process was ready once."""
    base: dict[str, Any] = {"name": manifest.name, "title": manifest.title, "precisions": list(manifest.precisions)}
    if record is None:
        return base | {"built": None}
    digest = None if serving is None else serving.digest
    built = {"precision": record.artifact.precision, "artifact": record.artifact.digest, "digest": digest}
    return base | {"built": built | {"row_independent": record.row_independent}}


def _cells(one: Candidate) -> list[str]:
    figures = one.figures
    return [
        _number(one.bytes and one.bytes / MEGABYTE, ".1f"),
        _number(one.speedup, ".2f", "×"),
        _number(figures.agreement, ".2%"),
        _number(figures.cosine, ".4f"),
        _number(figures.least_cosine, ".4f"),
        _number(figures.flips, ".2%"),
        _number(figures.max_difference, ".2g"),
    ]


def _show_timings(out: Console, candidates: Sequence[Candidate]) -> None:
    """Two tables, both narrow enough for 80 columns: milliseconds of a batch, rows per second."""
    timed = [one for one in candidates if one.timings]
    for unit in ("ms", "rows/s") if timed else ():
        table = Table(unit, *[one.precision for one in timed])
        for index, cell in enumerate(timed[0].timings):
            name = f"{cell.rows} × {cell.tokens}" if cell.tokens else f"{cell.rows} rows"
            cells = [one.timings[index] for one in timed]
            table.add_row(
                name, *[f"{c.milliseconds:.2f}" if unit == "ms" else f"{c.rows_per_second:.0f}" for c in cells]
            )
        out.print(table)


def _show_shapes(out: Console, candidates: Sequence[Candidate]) -> None:
    """How batches of each kind of shapes do, where the manifest leaves the choice."""
    measured = [(one, shaped) for one in candidates for shaped in one.shaped]
    if not measured:
        return
    table = Table("shapes", "set", "changes", "rows/s", "")
    for one, shaped in measured:
        lengths = ", ".join(
            f"{rows}×{length}"
            for length, rows in zip(shaped.shapes.lengths or ("row",), shaped.shapes.rows, strict=False)
        )
        mark = "←" if shaped.shapes == one.shapes else shaped.why
        name = f"{one.precision} {shaped.shapes.kind}"
        table.add_row(name, lengths, _number(shaped.difference, ".2g"), _number(shaped.rows_per_second, ".0f"), mark)
    out.print(table)


def _facts(one: Candidate) -> str:
    """Details outside the tables: nodes per provider, accuracy, the reason."""
    nodes = ", ".join(f"{count} nodes on {name}" for name, count in one.nodes.items())
    accuracy = f"{one.accuracy:.2%} of the labels right" if one.accuracy is not None else ""
    return f"  {one.precision}: " + "; ".join(part for part in (one.why, accuracy, nodes) if part)


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "–" if value is None else f"{value:{form}}{unit}"
