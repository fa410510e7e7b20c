"""`models compare|handover`: what a change of a model would change, and the change itself."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from cyclopts import Parameter

from foreseen.compare.comparison import TOLERANCE, Comparison
from foreseen.compare.report import ChangeBudget
from foreseen.errors import SetupError
from foreseen.models import progress
from foreseen.models.change_output import ShownAs, allowed, budget_of, reservation, say_to, shown
from foreseen.modelspec.artifact import Record
from foreseen.settings import Common

if TYPE_CHECKING:
    from foreseen.models.change.compare import CompareOptions
    from foreseen.models.change.hottest import HottestRows

Files = Annotated[
    tuple[str, ...], Parameter(name="--file", help="File of rows (Parquet, CSV, JSONL, …), as for `warm`.", negative="")
]
Hottest = Annotated[
    int, Parameter(help="Maximum number of the rows that proxies serve most (--keep-hot-inputs); 0: none.")
]
To = Annotated[
    str | None, Parameter(help="A precision (built if missing), an artifact's digest, or the address of --candidate.")
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


class GivenRows(NamedTuple):
    """Which rows a handover is told to take."""

    files: tuple[str, ...]
    tenant: str | None
    hottest: int


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
    to: To = None,
    rollback: Annotated[
        bool, Parameter(help="Restore the artifact that was in force before the last handover.", negative="")
    ] = False,
    hottest: Hottest = 0,
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
    from foreseen.models.change.server_handover import is_address
    from foreseen.models.change.switch import one_at_a_time, require_supervisor

    budget = budget_of(max_changed, min_cosine)
    _check_asked(to, yes=yes, rollback=rollback, rows=bool(file) or hottest > 0)
    options = CompareOptions(columns=map, labels=label_output, tolerance=tolerance, min_cosine=min_cosine)
    pace = {"rows_per_second": rows_per_second, "stand_back": stand_back}
    output = ShownAs(plot, json)
    if to is not None and is_address(to):
        if file:
            raise SetupError("--to URL: rows are those that proxies serve most: --hottest 100000, not --file")
        _handed_to_server(name, to, hottest, options, budget, output, common, ask=not yes)
        return
    needs_batch_files("handover")
    require_supervisor(common.data)
    with progress.shown(common.log_format) as say, one_at_a_time(common.data, name):
        if to is None:
            _switched_back(name, common, say)
        else:
            rows = GivenRows(file, tenant, hottest)
            _handed_over(name, to, rows, options, pace, budget, output, common, say, ask=not yes)


def _check_asked(to: str | None, *, yes: bool, rollback: bool, rows: bool) -> None:
    """Raises SetupError where flags are missing or exclude one another."""
    if rollback == (to is not None):
        raise SetupError("give --to PRECISION, --to DIGEST or --to URL, or --rollback")
    if not (rollback or rows):
        raise SetupError("give the rows: --file rows.parquet, or --hottest 100000 with --keep-hot-inputs")
    if not (rollback or yes or sys.stdin.isatty()):
        raise SetupError("there is no terminal to ask whether to switch: give --yes")


def _handed_over(
    name: str,
    to: str,
    rows: GivenRows,
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
    from foreseen.models.change.hottest import HottestRows

    chosen = artifact_of(to, name, common.data, common.model_folders, say)
    hot = _hottest(name, rows.hottest, common) if rows.hottest > 0 else HottestRows((), 0, 0)
    wanted = change.HandoverRows(files=rows.files, hottest=hot.rows, tenant=rows.tenant)
    settings = change.settings_of(name, common.data, common.models, options, wanted, **pace)
    with say.step(f"fill the space of {chosen.label}"):
        filled = change.filled(chosen, wanted, options, settings, lambda one: count_rows(common.data, name, one))
    labels = filled.old, chosen.label
    report = allowed(name, filled.comparison, labels, budget, output, ask=ask)
    if report is not None:
        _switch(name, chosen.record, common, say)
        what = f"{chosen.label} is in force{reservation(report, budget)}"
        say_to(f"{what}; take it back with --rollback", quiet=output.json)


def _handed_to_server(
    name: str,
    address: str,
    hottest: int,
    options: CompareOptions,
    budget: ChangeBudget,
    output: ShownAs,
    common: Common,
    *,
    ask: bool,
) -> None:
    """The same with the candidate of running proxies, which they switch to themselves."""
    from foreseen.models.change.counted_rows import count_rows
    from foreseen.models.change.server_handover import compared, switch

    with progress.shown(common.log_format) as say:
        comparison = Comparison(options.labels, options.tolerance, min_cosine=options.min_cosine)
        hot = _hottest(name, hottest, common)
        with say.step(f"fill the space of {address}"):
            compared(common.data, name, address, hot, comparison, lambda one: count_rows(common.data, name, one))
    report = allowed(name, comparison, ("the server in force", address), budget, output, ask=ask)
    if report is not None:
        switch(common.data, 1.0)
        what = f"{address} answers all callers within a second{reservation(report, budget)}"
        say_to(f"{what}; take it back with: foreseen canary --abort", quiet=output.json)


def _hottest(name: str, most: int, common: Common) -> HottestRows:
    """What proxies serve most. Raises SetupError where they have kept nothing."""
    from foreseen.models.change.hottest import hottest_rows

    hot = hottest_rows(common.data, name, most)
    if hot.asked < hot.workers:
        print(f"only {hot.asked} of {hot.workers} workers gave their hottest rows", file=sys.stderr)
    if not hot.rows:
        raise SetupError(f"the proxies have kept no rows of {name!r} yet; nothing has changed")
    return hot


def _switched_back(name: str, common: Common, say: progress.BuildProgress) -> None:
    from foreseen.models.change.switch import former

    record = former(common.data, name)
    _switch(name, record, common, say)
    print(f"{name}:{record.artifact.precision}:{record.artifact.digest[:8]} is in force again")


def _switch(name: str, record: Record, common: Common, say: progress.BuildProgress) -> None:
    from foreseen.models.change.switch import switch

    with say.step(f"switch to {record.artifact.digest[:8]}"):
        switch(common.data, name, record)
