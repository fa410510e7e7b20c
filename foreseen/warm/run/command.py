"""Files → a warmed cache: chunk after chunk, with a checkpoint behind each one, so that a kill costs nothing.

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

from msgspec import Struct

from foreseen.errors import SetupError
from foreseen.modelspec.manifest import Manifest
from foreseen.settings import WarmSettings
from foreseen.stores.redis_urls import access_of
from foreseen.warm.read.files import File, files_of
from foreseen.warm.read.reader import Chunk, chunks
from foreseen.warm.run.checkpoint import Checkpoint, Progress, run_name
from foreseen.warm.run.checks import check, share_of
from foreseen.warm.run.dry_run import Forecast, forecast
from foreseen.warm.run.progress_reporter import Teller
from foreseen.warm.run.resolve import check_digests, plan_of, state_of, wanted_columns
from foreseen.warm.run.sched_idle import only_when_idle
from foreseen.warm.run.verify import Sample
from foreseen.warm.run.warm_worker import Done, Target, Worker, through_of
from foreseen.warm.run.warmer import Ready, Warmer

SWITCH_SECONDS = 0.0001
"""A busy thread keeps the interpreter for 5 ms by default; the one that feeds Redis would stand idle as long."""

COMPUTED_ROWS = 8192
"""Rows between two checkpoints where the model computes, at most: seconds of work, and enough to sort by length."""

_T = TypeVar("_T")


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
        check(settings)
        self.settings = settings
        self.files = files_of(named)
        self.target: Target
        if settings.url is not None:
            self.target, self.plan = through_of(settings)
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
            (
                settings.map,
                settings.outputs,
                str(settings.out),
                settings.sql,
                settings.sql_table,
                settings.chunk_rows,
                settings.ray,
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
        """What a run would do; changes nothing."""
        if not isinstance(self.target, Warmer):
            raise SetupError("--dry-run looks into Redis itself; leave --url away")
        batches = (chunk.batch for file in self.files for chunk in self.chunks(file, 0))
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
            closing(Worker(settings, self.plan, self.run, self.target)) as worker,
            closing(Teller(self._state(), self.run, self.manifest.name, access_of(settings))) as teller,
        ):
            progress = checkpoint.read()
            if settings.verify is not None and progress.rows == 0:
                self._verify(share_of(settings.verify))
            for one in (teller, watcher):
                one.started(self._rows(), progress)
            since = time.monotonic()
            for done in self._by_many(progress) if settings.ray else self._by_one(worker, progress):
                checkpoint.append(progress, done.rejects)
                progress.add(done.counts)
                progress.seconds, since = progress.seconds + time.monotonic() - since, time.monotonic()
                if settings.ray:
                    progress.done.append((done.file, done.start))
                else:
                    progress.file, progress.place = done.file, done.stop
                checkpoint.write(progress)
                for one in (teller, watcher):
                    one.moved(progress)
            summary = self._summary(progress, checkpoint)
            checkpoint.done()
            return summary

    def chunks(self, file: File, place: int) -> Generator[Chunk, None, None]:
        return chunks(file, self.manifest, self.wanted[file.url], place, self.chunk_rows)

    def _by_many(self, progress: Progress) -> Iterator[Done]:
        """The chunks that are left, by Ray's workers, each as soon as it is safe."""
        from foreseen.warm.run.on_ray import Cluster, Order

        order = Order(
            settings=self.settings,
            plan=self.plan,
            run=self.run,
            files=tuple(self.files),
            wanted=self.wanted,
            chunk_rows=self.chunk_rows,
            done=frozenset(progress.done),
        )
        with closing(Cluster(self.settings.ray_workers)) as cluster:
            yield from cluster.done(order.shared(cluster.workers))

    def _by_one(self, worker: Worker, progress: Progress) -> Iterator[Done]:
        """Chunk after chunk from where the run is, in this process."""
        for index in range(progress.file, len(self.files)):
            place = progress.place if index == progress.file else 0
            for chunk, ready in _ahead(self._made_ready(self.files[index], place)):
                yield worker.do(index, self.files[index], chunk, ready)

    def _verify(self, share: float) -> None:
        """Before anything is written. Raises SetupError on the first mismatch."""
        assert isinstance(self.target, Warmer)
        if not self.facts.running:
            raise SetupError(
                f"--verify asks the model, and {self.manifest.name!r} does not run; start it (foreseen up)"
            )
        sample = Sample(self.target, share, int(self.run, 16))
        for file in self.files:
            sample.hold(file.url, _ahead(self.chunks(file, 0)))

    def _state(self) -> str | None:
        """Where the progress is told; what goes through a proxy that one counts."""
        return state_of(self.settings) if self.settings.url is None else None

    def _rows(self) -> int | None:
        known = [file.rows for file in self.files if file.rows is not None]
        return sum(known) if len(known) == len(self.files) else None

    def _made_ready(self, file: File, place: int) -> Generator[tuple[Chunk, Ready | None], None, None]:
        """Chunks with their keys, made while the model computes the ones before."""
        if isinstance(self.target, Warmer):
            self.target.open()
        for chunk in self.chunks(file, place):
            yield chunk, self.target.ready(chunk.batch) if isinstance(self.target, Warmer) else None

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
    if (
        settings.stand_back and not settings.outputs
    ):  # an import is over in seconds; computing goes on for hours beside those who wait
        only_when_idle()


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
