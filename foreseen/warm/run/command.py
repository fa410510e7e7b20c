"""`foreseen warm`: warms the cache chunk by chunk. The same command resumes from the checkpoint after each chunk.

    files → chunks → Worker (a Warmer or a proxy, and results) → rejects → checkpoint

The next chunk is read and keyed while the one before it is warmed. With --ray the chunks go to other processes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from typing import Any, Protocol, TypeVar

from msgspec import Struct, structs

from foreseen.errors import SetupError
from foreseen.modelspec.manifest import Manifest
from foreseen.settings import WarmSettings
from foreseen.stores.redis_urls import access_of
from foreseen.tenants.tenant import PUBLIC
from foreseen.warm.checkpoint import Checkpoint, Progress, run_name
from foreseen.warm.plan import Plan
from foreseen.warm.read.files import File, check_columns, files_of
from foreseen.warm.read.reader import Chunk, chunks
from foreseen.warm.run.checks import check, share_of
from foreseen.warm.run.dry_run import Forecast, forecast
from foreseen.warm.run.generation import SpaceGenerations
from foreseen.warm.run.progress_reporter import ProgressReporter
from foreseen.warm.run.resolve import check_digests, check_types, plan_of, state_of, wanted_columns
from foreseen.warm.run.verify import Sample
from foreseen.warm.run.warm_worker import Done, WarmTarget, WarmWorker, proxy_target_of
from foreseen.warm.run.warmer import ReadyBatch, Warmer
from foreseen.warm.sched_idle import only_when_idle
from foreseen.warm.write.importer import OUTPUT_PREFIX
from foreseen.warm.write.results import where

SWITCH_SECONDS = 0.0001
"""A busy thread keeps the interpreter for 5 ms by default; the one that feeds Redis would stand idle as long."""

COMPUTED_ROWS = 8192
"""Rows between two checkpoints where the model computes, at most: seconds of work, and enough to sort by length."""

FIRST_ROWS = 512
"""The first chunk of a run is small, so that its rate is known within the first second."""

_T = TypeVar("_T")


class RunObserver(Protocol):
    """Observes a run's progress."""

    def started(self, rows: int | None, done: Progress) -> None: ...
    def moved(self, done: Progress) -> None: ...


class Inside(Protocol):
    """Observes rows that are done within the chunk under way, from any thread."""

    def inside(self, rows: int) -> None: ...


class Summary(Struct):
    """The results of all rows, over all attempts of this run."""

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
    resumed: int = 0
    """Rows that attempts before this one had done."""
    equal: int = 0
    """Rows that are equal to an earlier row of the run, as far as one worker has seen both."""
    results: str | None = None
    """Where the predictions lie."""


class Job:
    """One command: its files, its plan, its target. It is checked here, before any row is read."""

    def __init__(self, named: Sequence[str], settings: WarmSettings) -> None:
        check(settings)
        self.settings = settings
        self.files = files_of(named)
        self.target: WarmTarget
        if settings.url is not None:
            self.target, self.plan = proxy_target_of(settings)
        else:
            self.plan, self.facts = plan_of(settings)
            self.target = Warmer(self.plan)
        try:
            self.wanted = {file.url: wanted_columns(file, self.plan) for file in self.files}
            if settings.out is not None or settings.sql is not None:  # a store keeps ids and whatever else there is
                for file in self.files:
                    self.wanted[file.url] = {
                        **dict.fromkeys(_kept_columns(file, self.plan), ""),
                        **self.wanted[file.url],
                    }
            for file in self.files:
                # `--out` and `--sql` keep all columns, so that all of them must have a name of their own.
                check_columns(file, list(self.wanted[file.url]) if file.columns is not None and file.rows != 0 else [])
            check_types(self.files, self.plan)
            if settings.outputs:
                check_digests(self.files, self.plan, settings.digest)
        except SetupError:
            self.target.close()
            raise
        try:
            self.generation = SpaceGenerations(self.plan).current()
        except SetupError:
            self.target.close()
            raise
        whose = (self.plan.scope, settings.tenant, settings.key_file and str(settings.key_file))
        tenant = () if whose == (PUBLIC, None, None) else whose  # runs of before keep their names
        self.run = run_name(
            [(f.url, f.bytes) for f in self.files],
            (settings.model, self.plan.digest, self.generation, settings.url, str(settings.data), settings.redis),
            (
                settings.map,
                settings.outputs,
                str(settings.out),
                settings.sql,
                settings.sql_table,
                settings.chunk_rows,
                settings.ray,
                *tenant,
            ),
        )

    @property
    def manifest(self) -> Manifest:
        return self.plan.manifest

    @property
    def chunk_rows(self) -> int:
        """Rows between two checkpoints. Chunks are small where the model computes."""
        computing = self.settings.url is None and self.plan.mode == "compute"
        return min(self.settings.chunk_rows, COMPUTED_ROWS) if computing else self.settings.chunk_rows

    def dry(self) -> Forecast:
        """Forecast the run; changes nothing."""
        if not isinstance(self.target, Warmer):
            raise SetupError("--dry-run reads Redis itself; omit --url")
        batches = (chunk.batch for file in self.files for chunk in self.chunks(file, 0))
        try:
            return forecast(batches, self.target, self.facts.running)
        finally:
            self.target.close()

    def go(self, watcher: RunObserver, inside: Inside | None = None) -> Summary:
        """Run, or resume from the checkpoint. Raises SetupError if it has to stop; the same command resumes then."""
        settings = self.settings
        if inside is not None:
            self.target.answered = inside.inside
        with (
            closing(self.target),
            closing(Checkpoint(settings.checkpoint or settings.data / "warm", self.run)) as checkpoint,
            closing(WarmWorker(settings, self.plan, self.run, self.target)) as worker,
            closing(ProgressReporter(self._state(), self.run, self.manifest.name, access_of(settings))) as reporter,
        ):
            progress = checkpoint.read()
            if settings.verify is not None and progress.rows == 0:
                self._verify(share_of(settings.verify))
            for one in (reporter, watcher):
                one.started(self._rows(), progress)
            since, resumed = time.monotonic(), progress.rows
            for done in self._by_many(progress) if settings.ray else self._by_one(worker, progress):
                checkpoint.append(progress, done.rejects)
                progress.add(done.counts)
                progress.equal += done.equal
                progress.seconds, since = progress.seconds + time.monotonic() - since, time.monotonic()
                if settings.ray:
                    progress.done.append((done.file, done.start))
                else:
                    progress.file, progress.place = done.file, done.stop
                checkpoint.write(progress)
                for one in (reporter, watcher):
                    one.moved(progress)
            summary = self._summary(progress, checkpoint, resumed)
            checkpoint.done()
            return summary

    def chunks(self, file: File, place: int, first_rows: int | None = None) -> Generator[Chunk, None, None]:
        return chunks(file, self.manifest, self.wanted[file.url], place, self.chunk_rows, first_rows)

    def _by_many(self, progress: Progress) -> Iterator[Done]:
        """The remaining chunks, by Ray's workers; each is counted once it is stored."""
        from foreseen.warm.run.on_ray import Cluster, RayRun

        order = RayRun(
            settings=self.settings,
            plan=structs.replace(self.plan, generation=self.generation),  # other machines may not reach the state store
            run=self.run,
            files=tuple(self.files),
            wanted=self.wanted,
            chunk_rows=self.chunk_rows,
            done=frozenset(progress.done),
        )
        with closing(Cluster(self.settings.ray_workers)) as cluster:
            yield from cluster.done(order.shared(cluster.workers))

    def _by_one(self, worker: WarmWorker, progress: Progress) -> Iterator[Done]:
        """The remaining chunks, one after the other, in this process."""
        for index in range(progress.file, len(self.files)):
            place = progress.place if index == progress.file else 0
            for chunk, ready in _ahead(self._made_ready(self.files[index], place)):
                yield worker.do(index, self.files[index], chunk, ready)

    def _verify(self, share: float) -> None:
        """Before anything is written. Raises SetupError on the first mismatch."""
        assert isinstance(self.target, Warmer)
        if not self.facts.running:
            raise SetupError(
                f"--verify needs the model, and {self.manifest.name!r} does not run; start it (foreseen up)"
            )
        sample = Sample(self.target, share, int(self.run, 16))
        for file in self.files:
            sample.hold(file.url, _ahead(self.chunks(file, 0)))

    def _state(self) -> str | None:
        """The state store to report progress to; None for a run through a proxy, which counts the rows itself."""
        return state_of(self.settings) if self.settings.url is None else None

    def _rows(self) -> int | None:
        """The number of rows in all files, estimated if only reading would count them; None if there is no estimate."""
        known = [file.rows if file.rows is not None else file.estimate for file in self.files]
        counted = [rows for rows in known if rows is not None]
        return sum(counted) if len(counted) == len(known) else None

    def _made_ready(self, file: File, place: int) -> Generator[tuple[Chunk, ReadyBatch | None], None, None]:
        """Chunks with their keys, prepared while the model computes the chunks before."""
        if isinstance(self.target, Warmer):
            self.target.open()
        first = FIRST_ROWS if place == 0 and file is self.files[0] else None
        for chunk in self.chunks(file, place, first):
            yield chunk, self.target.ready(chunk.batch) if isinstance(self.target, Warmer) else None

    def _summary(self, progress: Progress, checkpoint: Checkpoint, resumed: int) -> Summary:
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
            resumed,
            progress.equal,
            where(self.settings),
        )


def _kept_columns(file: File, plan: Plan) -> tuple[str, ...]:
    """All columns that a store can keep beside its own: spreadsheets leave some without a name, and results that are
    warmed again have some that this run writes itself."""
    columns = file.members if file.columns is None else file.columns
    own = {OUTPUT_PREFIX + output.name for output in plan.manifest.model.outputs}
    return tuple(name for name in columns if name and name not in own and not name.startswith("foreseen."))


def stand_back(settings: WarmSettings) -> None:
    """For a process that only warms: feed Redis without pause, and leave the cores to a proxy that answers."""
    sys.setswitchinterval(SWITCH_SECONDS)
    if (
        settings.stand_back and not settings.outputs
    ):  # an import is over in seconds; computing goes on for hours beside online requests
        only_when_idle()


def _ahead(items: Generator[_T, None, None]) -> Iterator[_T]:
    """The same chunks; each is read while the one before it is processed."""
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
