"""A report as text for people."""

from __future__ import annotations

from foreseen.compare.report import ComparisonReport, ShareEstimate, Spread, WorstRow

_HEADS = ("least", "p1", "p5", "p50", "p95", "p99", "most")


def lines(report: ComparisonReport, old: str = "old", new: str = "new") -> list[str]:
    """`old` and `new` name the two sides."""
    found = [f"{old} → {new}: {report.rows:,} rows compared"]
    if not report.rows:
        return found + _failures(report)
    found.append(f"share of rows changed, with its interval at {report.confidence:.0%} confidence:")
    found.append(f"{_share('changed', report.changed)}  ({report.changed_by})")
    found.append(_share("bits", report.bits))
    if report.label is not None:
        found.append(_share("top label", report.label))
    found.append(_share(f"beyond {report.tolerance:g}", report.beyond_tolerance))
    found += _failures(report)
    spreads = [("cosine", report.cosine, 1.0), ("max difference", report.max_abs, 1.0)]
    spreads += [("ms a row, old", report.seconds_old, 1e3), ("ms a row, new", report.seconds_new, 1e3)]
    found.append(f"  {'':24}" + "".join(f"{head:>11}" for head in _HEADS))
    found += [_spread(name, spread, factor) for name, spread, factor in spreads if spread is not None]
    if (near := report.neighbours) is not None:
        found.append(
            f"  neighbours: {near.mean:.1%} of the {near.nearest} nearest are the same on average, "
            f"{near.least:.0%} at least (sample of {near.rows:,} rows)"
        )
    if report.worst:
        found.append("  most different rows, by key:")
        found += [f"    {row.key}{_why(row)}" for row in report.worst]
    return found


def _failures(report: ComparisonReport) -> list[str]:
    counts = [
        (report.not_comparable, "rows have other outputs, datatypes or shapes; they count as changed"),
        (report.failed_old, "rows got no answer from the old side; they are left out"),
        (report.failed_new, "rows got no answer from the new side alone; they are left out"),
    ]
    return [f"  {count:,} {what}" for count, what in counts if count]


def _share(name: str, share: ShareEstimate) -> str:
    return f"  {name:24}{share.share:>10.4%}  [{share.low:.4%}, {share.high:.4%}]  {share.count:,} of {share.rows:,}"


def _spread(name: str, spread: Spread, factor: float) -> str:
    values = (spread.least, spread.p01, spread.p05, spread.p50, spread.p95, spread.p99, spread.most)
    return f"  {name[:24]:24}" + "".join(f"{value * factor:>11.6g}" for value in values)


def _why(row: WorstRow) -> str:
    parts = [] if row.comparable else ["other outputs"]
    parts += ["other label"] if row.label_changed else []
    parts += [] if row.cosine is None else [f"cosine {row.cosine:.6f}"]
    parts += [] if row.max_abs is None else [f"max difference {row.max_abs:.6g}"]
    return "  " + ", ".join(parts) if parts else ""
