"""`foreseen models handover`: fills the new model's key space beside the old one, compares, then switches.

    rows       of files and of what proxies serve most
    fill       the candidate computes them into its own space, on idle cores
    compare    with the old answers: far's entries, or the running process
    switch     the record is renamed into place; the supervisor replaces the process

The old space stays as it is, so that a rollback finds it warm.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from msgspec import Struct, structs

from foreseen.compare.comparison import Comparison
from foreseen.errors import SetupError
from foreseen.models.change.artifacts import NamedArtifact
from foreseen.models.change.candidate import candidate
from foreseen.models.change.compare import CompareOptions, batches
from foreseen.models.change.side import digest_at
from foreseen.modelspec.artifact import read_record
from foreseen.operate.started import settings_at
from foreseen.settings import WarmSettings
from foreseen.types import Key, Prediction, Row, Scope
from foreseen.warm.plan import Plan
from foreseen.warm.read.files import files_of
from foreseen.warm.run.resolve import plan_of
from foreseen.warm.run.warmer import Warmer

PIECE_ROWS = 2048
CANDIDATE_SECONDS = 10.0
"""How long a candidate that is away is waited for: nothing starts it again."""

PreparedRow = tuple[Row, bytes]
"""A row with its parameters."""


class RowCounts(Struct):
    """Rows of a handover by outcome."""

    equal: int = 0
    changed: int = 0
    failed: int = 0


class HandoverRows(Struct, frozen=True, kw_only=True):
    """Which rows are handed over."""

    files: tuple[str, ...] = ()
    hottest: Sequence[tuple[Scope, Row, bytes]] = ()
    """What proxies serve most, the hottest first."""
    tenant: str | None = None
    """The tenant for whom the entries are written."""


class SpaceFill:
    """Fills the candidate's space and compares it with the old one."""

    def __init__(self, old: Plan, new: Plan, comparison: Comparison, report: Callable[[RowCounts], None]) -> None:
        """`report` is called with the rows that were handed over since its last call."""
        self._old, self._new, self._comparison, self._report = old, new, comparison, report
        self._open: dict[Scope, tuple[Warmer, Warmer]] = {}

    def close(self) -> None:
        for pair in self._open.values():
            for warmer in pair:
                warmer.close()

    def add(self, scope: Scope, rows: Sequence[PreparedRow]) -> None:
        """Rows of one scope with their parameters. Raises SetupError where the candidate, the model or Redis is away
        for too long."""
        old, new = self._warmers(scope)
        known, fresh = old.ready_rows(rows), new.ready_rows(rows)
        warmed = new.warm_ready(fresh)
        answers = old.answers(known)
        counts, seen = RowCounts(), set()
        for before, after in zip(known.warmed.keys, fresh.warmed.keys, strict=True):
            if before in seen:
                continue
            seen.add(before)
            self._count(before, answers.get(Key(before)), warmed.predictions.get(after), counts)
        self._report(counts)

    def _count(self, key: bytes, old: Prediction | None, new: Prediction | None, counts: RowCounts) -> None:
        comparison = self._comparison
        if new is None and old is not None:
            comparison.failed_new += 1
            counts.failed += 1
        elif old is None or new is None:
            comparison.failed_old += 1
            counts.failed += 1
        else:
            found = comparison.add(key, old, new, old.seconds, new.seconds)
            changed = comparison.changed(found)
            counts.changed += changed
            counts.equal += not changed

    def of_files(self, rows: HandoverRows) -> None:
        """The rows of files, in pieces. Raises SetupError."""
        scope = self._old.scope
        old, _ = self._warmers(scope)
        old.open()
        for batch in batches(files_of(rows.files), [self._old]):
            ready = old.ready(batch)
            assert ready is not None
            if ready.waiters:
                self.add(scope, list(ready.waiters.values()))
            if ready.warmed.reasons:
                self._comparison.failed_old += len(ready.warmed.reasons)
                self._report(RowCounts(failed=len(ready.warmed.reasons)))

    def of_hottest(self, rows: HandoverRows) -> None:
        """What proxies serve most, each row in the space of its own tenant."""
        for scope, group in _by_scope(rows.hottest):
            for at in range(0, len(group), PIECE_ROWS):
                self.add(scope, group[at : at + PIECE_ROWS])

    def _warmers(self, scope: Scope) -> tuple[Warmer, Warmer]:
        if scope not in self._open:
            old, new = (structs.replace(plan, scope=scope) for plan in (self._old, self._new))
            self._open[scope] = Warmer(old), Warmer(new)
        return self._open[scope]


class FilledSpace(Struct, frozen=True):
    """A filled key space, and the result of the comparison."""

    comparison: Comparison
    old: str
    """The label of the artifact in force."""


def filled(
    chosen: NamedArtifact,
    rows: HandoverRows,
    options: CompareOptions,
    settings: WarmSettings,
    report: Callable[[RowCounts], None],
) -> FilledSpace:
    """Fill the candidate's space, with a process that runs as long as that takes. Raises SetupError."""
    manifest, now = chosen.manifest, read_record(settings.data, chosen.manifest.name)
    if chosen.record.artifact.digest == now.artifact.digest:
        raise SetupError(f"{chosen.label} is in force already: there is nothing to hand over")
    if chosen.record.artifact.preparation != now.artifact.preparation:
        raise SetupError(
            f"{chosen.label} prepares inputs differently (model.toml or tokenizer) from the artifact in force, so its "
            f"rows differ; put it in force with: foreseen models build {manifest.name}"
        )
    old = plan_of(settings)[0]
    with candidate(chosen, settings.data, settings.models, idle=settings.stand_back) as address:
        digest = digest_at(address, manifest.name)
        if digest == old.digest:
            raise SetupError(f"{chosen.label} runs already: there is nothing to hand over")
        new = structs.replace(old, digest=digest, model=address, patience_seconds=CANDIDATE_SECONDS)
        comparison = options.comparison(manifest)
        with closing(SpaceFill(old, new, comparison, report)) as fill:
            if rows.hottest:
                fill.of_hottest(rows)
            if rows.files:
                fill.of_files(rows)
    return FilledSpace(comparison, NamedArtifact(manifest, now).label)


def settings_of(
    name: str, data: Path, models: Path | None, options: CompareOptions, rows: HandoverRows, **more: object
) -> WarmSettings:  # fmt: skip
    """How the system under `data` fills its cache, by what `foreseen up` was started with."""
    given = {"models": models} if models is not None else {}
    return settings_at(
        data, WarmSettings, model=name, map=options.columns, tenant=rows.tenant, **given, **more
    )  # fmt: skip


def _by_scope(rows: Sequence[tuple[Scope, Row, bytes]]) -> Iterator[tuple[Scope, list[PreparedRow]]]:
    ordered = sorted(rows, key=lambda row: row[0])  # stable: the hottest of a scope stay first
    for scope, group in itertools.groupby(ordered, key=lambda row: row[0]):
        yield scope, [(row, parameters) for _, row, parameters in group]
