"""Files → a warmed cache: chunk after chunk, with a checkpoint behind each one, so that a kill costs nothing.

    files → chunks → Warmer (or a proxy) → results → rejects → checkpoint

The next chunk is read while the one before it is warmed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from typing import Any, Protocol, TypeVar

import numpy as np
from msgspec import Struct

from foreseen.datatypes import DATATYPES
from foreseen.errors import SetupError
from foreseen.manifest import Manifest
from foreseen.nouns import Prediction
from foreseen.settings import WarmSettings
from foreseen.tensors import array_of_raw
from foreseen.warm.checkpoint import Checkpoint, Progress, run_name
from foreseen.warm.dry import Forecast, forecast
from foreseen.warm.files import DIGEST_COLUMN, File, files_of
from foreseen.warm.importer import given_outputs
from foreseen.warm.plan import COMPUTED, FAILED, HIT, IMPORTED, Plan, Warmed
from foreseen.warm.reader import Chunk, chunks
from foreseen.warm.results import Database, ParquetFolder, Store
from foreseen.warm.through import Through
from foreseen.warm.warmer import Ready, Warmer
from foreseen.warm.who import check_digests, mapped, plan_of, wanted_columns

TOLERANCE = 1e-3
"""How far a verified output of a model that is not declared exact may be off, absolutely or relatively."""

SWITCH_SECONDS = 0.0001
"""A busy thread keeps the interpreter for 5 ms by default; the one that feeds Redis would stand idle as long."""

NICE = 10
"""An import is over in seconds; computing goes on for hours beside those who are waited for."""

COMPUTED_ROWS = 8192
"""Rows between two checkpoints where the model computes, at most: seconds of work, and enough to sort by length."""

_T = TypeVar("_T")


class Target(Protocol):
    """What warms a batch: a Warmer, or a proxy."""

    def warm(self, batch: Any, *, wanted: bool = False) -> Warmed: ...
    def close(self) -> None: ...


class Watcher(Protocol):
    """Who is told how far it is."""

    def started(self, rows: int | None, done: Progress) -> None: ...
    def moved(self, done: Progress) -> None: ...


class Summary(Struct):
    """What became of all rows, over all attempts of this run."""

    model: str
    mode: str
    files: int
    rows: int
    hit: int
    computed: int
    imported: int
    failed: int
    seconds: float
    rejects: str | None = None
    first_failure: str | None = None


class Job:
    """One command: its files, its plan, its target. Everything that can be wrong from the start is found here."""

    def __init__(self, named: Sequence[str], settings: WarmSettings) -> None:
        _check(settings)
        self.settings = settings
        self.files = files_of(named)
        self.target: Target
        if settings.url is not None:
            through = Through(settings.url, settings.model, settings.rows_per_second, settings.patience_seconds)
            names = [i.name for i in through.manifest.seen.inputs]
            self.target = through
            try:
                through.columns = mapped(settings.map, names, "--map", "input")
            except SetupError:
                through.close()
                raise
            self.plan = Plan(manifest=through.manifest, digest=through.digest, inputs=through.columns)
        else:
            self.plan, self.facts = plan_of(settings)
            self.target = Warmer(self.plan)
        try:
            self.wanted = {file.url: wanted_columns(file, self.plan) for file in self.files}
            if settings.out is not None or settings.sql is not None:  # a store keeps ids and whatever else there is
                for file in self.files:
                    self.wanted[file.url] = {**dict.fromkeys(file.columns or (), ""), **self.wanted[file.url]}
            if settings.outputs:
                check_digests(self.files, self.plan, settings.digest)
        except SetupError:
            self.target.close()
            raise
        self.run = run_name(
            [(f.url, f.bytes) for f in self.files],
            (settings.model, self.plan.digest, self.plan.generation, settings.url, str(settings.data), settings.redis),
            (settings.map, settings.outputs, str(settings.out), settings.sql, settings.sql_table, settings.chunk_rows),
        )

    @property
    def manifest(self) -> Manifest:
        return self.plan.manifest

    def dry(self) -> Forecast:
        """What a run would do; changes nothing."""
        if not isinstance(self.target, Warmer):
            raise SetupError("--dry-run looks into Redis itself; leave --url away")
        batches = (chunk.batch for file in self.files for chunk in self._chunks(file, 0))
        try:
            return forecast(batches, self.target, self.facts.running)
        finally:
            self.target.close()

    def go(self, watcher: Watcher) -> Summary:
        """Run, or go on where the same command stopped. Raises SetupError where it has to stop; run it again."""
        settings = self.settings
        with (
            closing(self.target),
            closing(Checkpoint(settings.checkpoint or settings.data / "warm", self.run)) as checkpoint,
        ):
            store = _store(settings, self.manifest, self.plan.digest, self.run)
            progress = checkpoint.read()
            if settings.verify is not None and progress.rows == 0:
                self._verify(share_of(settings.verify))
            watcher.started(self._rows(), progress)
            for index in range(progress.file, len(self.files)):
                place = progress.place if index == progress.file else 0
                for chunk, ready in _ahead(self._made_ready(self.files[index], place)):
                    self._chunk(index, chunk, ready, store, checkpoint, progress)
                    watcher.moved(progress)
            if store is not None:
                store.close()
            summary = self._summary(progress, checkpoint)
            checkpoint.done()
            return summary

    def _chunk(
        self,
        index: int,
        chunk: Chunk,
        ready: Ready | None,
        store: Store | None,
        checkpoint: Checkpoint,
        progress: Progress,
    ) -> None:
        """Warm one chunk, then its results, its rejects, its checkpoint, in this order."""
        started = time.monotonic()
        url = self.files[index].url
        self._check_rows(chunk, url)
        if isinstance(self.target, Warmer):
            warmed = self.target.warm(chunk.batch, wanted=store is not None, ready=ready)
        else:
            warmed = self.target.warm(chunk.batch, wanted=store is not None)
        if store is not None:
            store.write(index, chunk, warmed)
        failed = np.flatnonzero(warmed.codes == FAILED).tolist()
        rejects = [
            {"file": url, "row": chunk.line(i), "reason": warmed.reasons.get(i, "was not answered")} for i in failed
        ]
        checkpoint.append(progress, rejects)
        counts = np.bincount(warmed.codes, minlength=4).tolist()
        progress.hit += counts[HIT]
        progress.computed += counts[COMPUTED]
        progress.imported += counts[IMPORTED]
        progress.failed += counts[FAILED]
        progress.file, progress.place = index, chunk.stop
        progress.seconds += time.monotonic() - started
        checkpoint.write(progress)

    def _check_rows(self, chunk: Chunk, url: str) -> None:
        """A digest column is held against the model row by row, before anything of the chunk is written."""
        if not self.settings.outputs or DIGEST_COLUMN not in chunk.batch.schema.names:
            return
        strange = set(chunk.batch.column(DIGEST_COLUMN).unique().to_pylist()) - {self.plan.digest}
        if strange:
            other = str(strange.pop())
            raise SetupError(
                f"{url}: its rows {chunk.start} to {chunk.stop} hold predictions of model {other[:16]}…, in force is "
                f"{self.plan.digest[:16]}…; take them out, or predict them again"
            )

    def _verify(self, share: float) -> None:
        """Before anything is written: the model computes a sample itself. Raises SetupError on the first mismatch."""
        assert isinstance(self.target, Warmer)
        if not self.facts.running:
            raise SetupError(
                f"--verify asks the model, and {self.manifest.name!r} does not run; start it (foreseen up)"
            )
        dice = np.random.default_rng(int(self.run, 16))
        checked = 0
        for file in self.files:
            for chunk in _ahead(self._chunks(file, 0)):
                self._check_rows(chunk, file.url)
                places = np.flatnonzero(dice.random(chunk.batch.num_rows) < share).tolist()
                if checked == 0 and not places:
                    places = [0]
                bad: dict[int, str] = {}
                given = given_outputs(chunk.batch, self.plan, bad)
                said = self.target.predicted(chunk.batch, [place for place in places if place not in bad])
                for place, prediction in said.items():
                    name = _mismatch([np.asarray(column[place]) for column in given], prediction, self.manifest)
                    if name is not None:
                        raise SetupError(
                            f"row {chunk.line(place)} of {file.url}: {name} is not what the model computes; nothing "
                            "was imported; predict it again with the model in force"
                        )
                checked += len(said)

    def _chunks(self, file: File, place: int) -> Generator[Chunk, None, None]:
        return chunks(file, self.manifest, self.wanted[file.url], place, self.settings.chunk_rows)

    def _rows(self) -> int | None:
        known = [file.rows for file in self.files if file.rows is not None]
        return sum(known) if len(known) == len(self.files) else None

    def _made_ready(self, file: File, place: int) -> Generator[tuple[Chunk, Ready | None], None, None]:
        """Chunks with their keys, made while the model computes the ones before; so they are small where it does."""
        if not isinstance(self.target, Warmer):
            yield from ((chunk, None) for chunk in self._chunks(file, place))
            return
        self.target.open()
        computing = self.plan.mode == "compute"
        rows = min(self.settings.chunk_rows, COMPUTED_ROWS) if computing else self.settings.chunk_rows
        for chunk in chunks(file, self.manifest, self.wanted[file.url], place, rows):
            yield chunk, self.target.ready(chunk.batch)

    def _summary(self, progress: Progress, checkpoint: Checkpoint) -> Summary:
        return Summary(
            self.manifest.name,
            "url" if self.settings.url else self.plan.mode,
            len(self.files),
            progress.rows,
            progress.hit,
            progress.computed,
            progress.imported,
            progress.failed,
            round(progress.seconds, 3),
            str(checkpoint.rejects) if progress.failed else None,
            checkpoint.first() if progress.failed else None,
        )


def stand_back(settings: WarmSettings) -> None:
    """For a process that only warms: feed Redis without pause, and take no core from a proxy that answers."""
    sys.setswitchinterval(SWITCH_SECONDS)
    if not settings.outputs:
        os.nice(NICE)


def share_of(text: str) -> float:
    """`1%` or `0.01` as a share of one. Raises SetupError."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise SetupError(f"{text!r} is not a share: say 1% or 0.01")
    return share


def _check(settings: WarmSettings) -> None:
    """Flags that contradict each other."""
    if settings.url is not None and settings.outputs:
        raise SetupError("--outputs writes into Redis itself: leave --url away and run where secret and Redis are")
    if settings.outputs and (settings.out is not None or settings.sql is not None):
        raise SetupError("--outputs imports what is stored already: leave --out and --sql away")
    if settings.verify is not None and not settings.outputs:
        raise SetupError("--verify goes with --outputs: without them the model computes every row itself")
    share_of(settings.error_budget)
    if settings.verify is not None:
        share_of(settings.verify)
    if settings.chunk_rows < 1 or settings.batch_ms <= 0 or (settings.rows_per_second or 1) <= 0:
        raise SetupError("--chunk-rows, --batch-ms and --rows-per-second must be above 0")


def _store(settings: WarmSettings, manifest: Manifest, digest: str, run: str) -> Store | None:
    if settings.out is not None and settings.sql is not None:
        raise SetupError("give --out or --sql, not both")
    if settings.out is not None:
        return ParquetFolder(settings.out, manifest, digest, run)
    if settings.sql is not None:
        return Database(settings.sql, settings.sql_table, manifest, digest)
    return None


def _ahead(items: Generator[_T, None, None]) -> Iterator[_T]:
    """The same, each one read while the one before it is worked on."""
    end = object()
    ask: Callable[[], Any] = lambda: next(items, end)  # noqa: E731
    with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
        coming = reader.submit(ask)
        try:
            while (item := coming.result()) is not end:
                coming = reader.submit(ask)
                yield item
        finally:
            wait([coming])
            items.close()


def _mismatch(given: Sequence[np.ndarray[Any, Any]], said: Prediction, manifest: Manifest) -> str | None:
    """The output that differs: in any bit for models declared exact, by more than rounding for others."""
    for array, head, raw in zip(given, said.outputs, said.data, strict=True):
        datatype = DATATYPES[head.datatype]
        own = array_of_raw(raw, datatype, head.shape, head.name)
        if array.shape != own.shape:
            return head.name
        near = datatype.kind == "f" and not manifest.exact
        same = np.allclose(array, own, TOLERANCE, TOLERANCE) if near else np.array_equal(array, own)
        if not same:
            return head.name
    return None
