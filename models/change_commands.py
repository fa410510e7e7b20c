"""`models compare|handover`: what a change of a model would change, and the change itself."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec
from cyclopts import Parameter

from foreseen.compare import plot as plots
from foreseen.compare import table
from foreseen.compare.comparison import TOLERANCE, Comparison
from foreseen.compare.report import ChangeBudget, ComparisonReport
from foreseen.errors import SetupError
from foreseen.models import progress
from foreseen.modelspec.artifact import Record
from foreseen.settings import Common
from foreseen.units import share_of

if TYPE_CHECKING:
    from foreseen.models.change.compare import CompareOptions

Files = Annotated[
    tuple[str, ...], Parameter(name="--file", help="File of rows (Parquet, CSV, JSONL, …), as for `warm`.", negative="")
]
Columns = Annotated[
    tuple[str, ...], Parameter(name="--map", help="COLUMN=INPUT, if the names differ; may be repeated.", negative="")
]
Labels = Annotated[
    tuple[str, ...],
    Parameter(
        name="--label-output",
        help="An output whose last axis holds class scores, if the manifest has no labels; may be repeated.",
        negative="",
    ),
]
MaxChanged = Annotated[
    str | None,
    Parameter(
        help="Share of rows (1%) that may change: in the top label or --min-cosine, otherwise beyond --tolerance."
    ),
]
MinCosine = Annotated[
    float | None, Parameter(help="A row has changed if the cosine of its old and new answer is below this.")
]
Tolerance = Annotated[
    float, Parameter(help="Largest difference of numbers, absolute and relative, that counts as equal.")
]
Plot = Annotated[Path | None, Parameter(help="Draw the comparison into this SVG file.")]
Json = Annotated[bool, Parameter(help="Print only JSON.", negative="")]
DEFAULTS = Common()


class ShownAs(NamedTuple):
    """How a report is shown."""

    plot: Path | None
    json: bool


def compare(
    old: str,
    new: str,
    *,
    file: Files = (),
    map: Columns = (),  # noqa: A002 - the flag's name
    label_output: Labels = (),
    rows: Annotated[int | None, Parameter(help="Maximum number of rows to compare.")] = None,
    tolerance: Tolerance = TOLERANCE,
    max_changed: MaxChanged = None,
    min_cosine: MinCosine = None,
    plot: Plot = None,
    json: Json = False,
    common: Common = DEFAULTS,
) -> None:
    """Compare two models' answers to the rows of a file. Status 1 means that --max-changed or --min-cosine is exceeded.

    Parameters
    ----------
    old
        The current model: NAME (the artifact in force), NAME:PRECISION, NAME:DIGEST, or the URL of a V2 server.
    new
        The new model, in the same forms, or only a precision or a digest of the same model.
    """
    from foreseen.models.change.compare import CompareOptions
    from foreseen.models.change.compare import compare as run

    needs_batch_files("compare")
    if not file:
        raise SetupError("give the rows: --file rows.parquet")
    budget = budget_of(max_changed, min_cosine)
    options = CompareOptions(columns=map, labels=label_output, tolerance=tolerance, min_cosine=min_cosine, rows=rows)
    with progress.shown(common.log_format) as say:
        comparison, old_label, new_label = run(old, new, file, options, common, say)
    report, reasons = shown(comparison, budget, plot, (old_label, new_label), json=json)
    if reasons:
        if not json:
            print(f"outside of the budget: {'; '.join(reasons)}")
        sys.exit(1)
    if not json and budget != ChangeBudget():
        print(f"inside the budget{reservation(report, budget)}")


def needs_batch_files(command: str) -> None:
    """Raises SetupError where only what builds models is installed: rows come from files, entries go to Redis."""
    missing = [library for library in ("pyarrow", "redis") if find_spec(library) is None]
    if missing:
        raise SetupError(f"foreseen models {command}: needs {missing[0]}: pip install 'foreseen[up]'")


def handover(
    name: str,
    *,
    to: Annotated[str | None, Parameter(help="A precision (built if missing) or an artifact's digest.")] = None,
    rollback: Annotated[
        bool, Parameter(help="Restore the artifact that was in force before the last handover.", negative="")
    ] = False,
    file: Files = (),
    map: Columns = (),  # noqa: A002 - the flag's name
    tenant: Annotated[str | None, Parameter(help="The tenant for whom the rows' entries are written.")] = None,
    label_output: Labels = (),
    tolerance: Tolerance = TOLERANCE,
    max_changed: MaxChanged = None,
    min_cosine: MinCosine = None,
    rows_per_second: Annotated[float | None, Parameter(help="Maximum rows per second of each model process.")] = None,
    stand_back: Annotated[
        bool, Parameter(help="The candidate computes only on idle cores (Linux's SCHED_IDLE).")
    ] = True,
    plot: Plot = None,
    json: Json = False,
    yes: Annotated[
        bool, Parameter(help="Switch without confirmation if the change is within the budget.", negative="")
    ] = False,
    common: Common = DEFAULTS,
) -> None:
    """Change a running model: fill the new key space, compare, switch. Ends with status 1, and nothing has changed,
    outside of --max-changed or --min-cosine.

    Parameters
    ----------
    name
        The model, as `foreseen up` runs it.
    """
    from foreseen.models.change.compare import CompareOptions
    from foreseen.models.change.switch import one_at_a_time, require_supervisor

    needs_batch_files("handover")
    if rollback == (to is not None):
        raise SetupError("give --to PRECISION, --to DIGEST or --rollback")
    budget = budget_of(max_changed, min_cosine)
    if not (rollback or file):
        raise SetupError("give the rows: --file rows.parquet")
    if not (rollback or yes or sys.stdin.isatty()):
        raise SetupError("there is no terminal to ask whether to switch: give --yes")
    options = CompareOptions(columns=map, labels=label_output, tolerance=tolerance, min_cosine=min_cosine)
    pace = {"rows_per_second": rows_per_second, "stand_back": stand_back}
    output = ShownAs(plot, json)
    require_supervisor(common.data)
    with progress.shown(common.log_format) as say, one_at_a_time(common.data, name):
        if to is None:
            _switched_back(name, common, say)
        else:
            _handed_over(name, to, (file, tenant), options, pace, budget, output, common, say, ask=not yes)


def _handed_over(
    name: str,
    to: str,
    rows: tuple[tuple[str, ...], str | None],
    options: CompareOptions,
    pace: dict[str, Any],
    budget: ChangeBudget,
    output: ShownAs,
    common: Common,
    say: progress.BuildProgress,
    *,
    ask: bool,
) -> None:
    """Fill, compare, ask for confirmation unless `--yes`, switch."""
    from foreseen.models.change import handover as change
    from foreseen.models.change.artifacts import artifact_of
    from foreseen.models.change.counted_rows import count_rows

    chosen = artifact_of(to, name, common.data, common.model_folders, say)
    wanted = change.HandoverRows(files=rows[0], tenant=rows[1])
    settings = change.settings_of(name, common.data, common.models, options, wanted, **pace)
    with say.step(f"fill the space of {chosen.label}"):
        filled = change.filled(chosen, wanted, options, settings, lambda one: count_rows(common.data, name, one))
    labels = filled.old, chosen.label
    report, reasons = shown(filled.comparison, budget, output.plot, labels, json=output.json)
    if reasons:
        _print(f"outside of the budget, nothing has changed: {'; '.join(reasons)}", quiet=output.json)
        sys.exit(1)
    if ask and input(f"switch {name} to {chosen.label}? [y/N] ").strip().lower() not in ("y", "yes"):
        _print("nothing has changed", quiet=output.json)
        return
    _switch(name, chosen.record, common, say)
    _print(f"{chosen.label} is in force{reservation(report, budget)}; take it back with --rollback", quiet=output.json)


def _switched_back(name: str, common: Common, say: progress.BuildProgress) -> None:
    from foreseen.models.change.switch import former

    record = former(common.data, name)
    _switch(name, record, common, say)
    print(f"{name}:{record.artifact.precision}:{record.artifact.digest[:8]} is in force again")


def _switch(name: str, record: Record, common: Common, say: progress.BuildProgress) -> None:
    from foreseen.models.change.switch import switch

    with say.step(f"switch to {record.artifact.digest[:8]}"):
        switch(common.data, name, record)


def _print(text: str, *, quiet: bool) -> None:
    if not quiet:
        print(text)


def shown(
    comparison: Comparison, budget: ChangeBudget, plot: Path | None, labels: tuple[str, str], *, json: bool
) -> tuple[ComparisonReport, list[str]]:
    """Print the report, and draw it with `--plot`. Returns the report, and the reasons why it exceeds the budget."""
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
    """A remark if the confidence interval reaches beyond the budget, so that more rows are needed."""
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
