"""What `models compare|handover` show: the report, and whether it is inside of the budget."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import msgspec

from foreseen.compare import plot as plots
from foreseen.compare import table
from foreseen.compare.comparison import Comparison
from foreseen.compare.report import ChangeBudget, ComparisonReport
from foreseen.errors import SetupError
from foreseen.units import share_of


class ShownAs(NamedTuple):
    """How a report is shown."""

    plot: Path | None
    json: bool


def allowed(
    name: str,
    comparison: Comparison,
    labels: tuple[str, str],
    budget: ChangeBudget,
    output: ShownAs,
    *,
    ask: bool,
) -> ComparisonReport | None:
    """Show the report. Ends with status 1 outside of the budget; None where the answer is not to switch."""
    report, reasons = shown(comparison, budget, output.plot, labels, json=output.json)
    if reasons:
        say_to(f"outside of the budget, nothing has changed: {'; '.join(reasons)}", quiet=output.json)
        sys.exit(1)
    if ask and input(f"switch {name} to {labels[1]}? [y/N] ").strip().lower() not in ("y", "yes"):
        say_to("nothing has changed", quiet=output.json)
        return None
    return report


def say_to(text: str, *, quiet: bool) -> None:
    if not quiet:
        print(text)


def shown(
    comparison: Comparison, budget: ChangeBudget, plot: Path | None, labels: tuple[str, str], *, json: bool
) -> tuple[ComparisonReport, list[str]]:
    """Print the report, draw it where that is asked for; the report, and why it is outside of the budget."""
    report = comparison.report()
    reasons = budget.reasons(report)
    if plot is not None:
        try:
            plots.draw(comparison, plot, f"{labels[0]} → {labels[1]}, {report.rows:,} rows", *labels)
        except OSError as error:
            raise SetupError(f"--plot {plot}: {error.strerror}") from None
    if json:
        document = {"old": labels[0], "new": labels[1], "inside": not reasons, "reasons": reasons}
        print(msgspec.json.encode(document | msgspec.structs.asdict(report)).decode())
    else:
        print("\n".join(table.lines(report, *labels)))
    return report, reasons


def reservation(report: ComparisonReport, budget: ChangeBudget) -> str:
    """A remark where the interval reaches beyond the budget: more rows would say more."""
    if budget.most_changed is None or report.changed.high <= budget.most_changed:
        return ""
    return f", but the interval of the share reaches {report.changed.high:.4%}: compare more rows to be sure"


def budget_of(max_changed: str | None, min_cosine: float | None) -> ChangeBudget:
    """Raises SetupError."""
    try:
        share = None if max_changed is None else share_of(max_changed)
    except ValueError as error:
        raise SetupError(f"--max-changed: {error}") from None
    if min_cosine is not None and not -1 <= min_cosine <= 1:
        raise SetupError("--min-cosine: a cosine is between -1 and 1")
    return ChangeBudget(share, min_cosine)
