"""Distributes the chunks of a run over many machines with Ray Data: `map_batches` with actors.

    files → one reading task a file → chunks as Arrow IPC → actors, each with a Worker of its own → what became of them

Chunks finish in any order, so the checkpoint holds the place of each. An actor returns its error as a line of text:
Ray's report of a remote exception is a page long.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
from msgspec import Struct, structs

from foreseen.errors import SetupError
from foreseen.settings import WarmSettings
from foreseen.warm.plan import Plan
from foreseen.warm.read.files import File
from foreseen.warm.read.reader import Chunk, chunks
from foreseen.warm.run.warm_worker import Done, WarmWorker, target_of
from foreseen.warm.sched_idle import only_when_idle

READER_CPUS, ACTOR_CPUS = 0.25, 0.5
"""Both mostly wait: for the disk, for the model, for Redis. Different, so that Ray does not make one of the two."""
BLOCK_BYTES = 1 << 20
"""A block of Ray's is full with this much, so that a chunk travels alone; by default 128 MiB would wait for company."""
IDLE_SECONDS = 600
"""Ray gives up where nothing moves for so long; an actor has given up on a model or a Redis long before."""

_CHUNK = pa.schema(
    [
        ("file", pa.int64()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("batch", pa.large_binary()),
        ("error", pa.string()),
    ]
)


class RayRun(Struct, frozen=True, kw_only=True):
    """The arguments of readers and actors, sent to other machines. `done`: (file, start) of chunks to leave out."""

    settings: WarmSettings
    plan: Plan
    run: str
    files: tuple[File, ...]
    wanted: dict[str, dict[str, str]]
    chunk_rows: int
    done: frozenset[tuple[int, int]]

    def shared(self, workers: int) -> RayRun:
        """The same for other processes: absolute paths, and for each its share of the rate."""
        paths = ("data", "models", "secret_file", "admin_token_file", "out")
        folders = {name: getattr(self.settings, name) for name in paths}
        absolute = {name: path.absolute() for name, path in folders.items() if path is not None}
        rate = self.plan.rows_per_second / workers if self.plan.rows_per_second else None
        settings = replace(self.settings, **absolute, rows_per_second=rate)
        locations = {"data": settings.data, "secret_file": settings.secret_file}
        plan = structs.replace(self.plan, **locations, rows_per_second=rate)
        placed = {file.url: file.url if "://" in file.url else str(Path(file.url).absolute()) for file in self.files}
        files = tuple(structs.replace(file, url=placed[file.url]) for file in self.files)
        wanted = {placed[url]: columns for url, columns in self.wanted.items()}
        return structs.replace(self, settings=settings, plan=plan, files=files, wanted=wanted)


def read(table: pa.Table, order: RayRun) -> Iterator[pa.Table]:
    """File numbers → chunks, one table each, without those that are done."""
    for index in table.column("file").to_pylist():
        file = order.files[index]
        try:
            for chunk in chunks(file, order.plan.manifest, order.wanted[file.url], 0, order.chunk_rows):
                if (index, chunk.start) not in order.done:
                    yield _row(index, chunk.start, chunk.stop, _packed(chunk.batch), None)
        except SetupError as error:
            yield _row(index, 0, 0, b"", str(error))


class RayActor:
    """One WarmWorker in a process of Ray's choice."""

    def __init__(self, order: RayRun) -> None:
        if order.settings.stand_back and not order.settings.outputs:
            only_when_idle()
        self._order = order
        self._worker: WarmWorker | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        """Chunks → the result of each: a packed `Done`, or the error that stops the run."""
        done, errors = zip(*(self._one(row) for row in table.to_pylist()), strict=True)
        return pa.table({"done": pa.array(done, pa.binary()), "error": pa.array(errors, pa.string())})

    def _one(self, row: dict[str, Any]) -> tuple[bytes, str | None]:
        if row["error"] is not None:
            return b"", row["error"]
        order, index = self._order, row["file"]
        try:
            if self._worker is None:
                target = target_of(order.settings, order.plan)
                self._worker = WarmWorker(order.settings, order.plan, order.run, target)
            chunk = Chunk(row["start"], row["stop"], _unpacked(row["batch"]))
            return msgspec.msgpack.encode(self._worker.do(index, order.files[index], chunk)), None
        except SetupError as error:
            return b"", str(error)


class Cluster:
    """The cluster that RAY_ADDRESS names or that runs here, else one of this machine's cores that ends with the run."""

    def __init__(self, workers: int | None) -> None:
        """Raises SetupError where Ray is not there."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no run is reported to Ray's makers
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        try:
            import ray
            import ray.data
        except ImportError:
            raise SetupError(
                "--ray needs Ray; install foreseen[ray] here and on every node, see docs/install.md"
            ) from None
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # a run's own words are on stdout, its errors one line
        self._ray = ray
        self._own = not ray.is_initialized()
        if self._own:
            try:
                with _silent_start():
                    ray.init(log_to_driver=False, logging_level="error")
            except (ConnectionError, RuntimeError, ValueError) as error:
                said = " ".join(str(error).split())[:200]
                raise SetupError(f"ray: {said}; correct RAY_ADDRESS, or unset it for this machine alone") from None
        self.workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))

    def done(self, order: RayRun) -> Iterator[Done]:
        """The results of all remaining chunks, as they finish. Raises SetupError."""
        data = self._ray.data
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        context.target_min_block_size, context.target_max_block_size = 1, BLOCK_BYTES
        context.execution_no_progress_timeout_s = IDLE_SECONDS
        actors = data.ActorPoolStrategy(min_size=1, max_size=self.workers, initial_size=self.workers)
        dataset = (
            data.from_items([{"file": i} for i in range(len(order.files))], override_num_blocks=len(order.files))
            .map_batches(read, fn_args=(order,), batch_size=1, batch_format="pyarrow", num_cpus=READER_CPUS)
            .map_batches(
                RayActor,
                fn_constructor_args=(order,),
                compute=actors,
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=ACTOR_CPUS,
            )
        )
        try:
            for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for row in table.to_pylist():
                    if row["error"] is not None:
                        raise SetupError(row["error"])
                    yield msgspec.msgpack.decode(row["done"], type=Done)
        except (self._ray.exceptions.RayError, TimeoutError) as error:
            said = str(error).strip().splitlines()[-1][:200]
            raise SetupError(f"ray: {said}; run the same command to go on") from None

    def close(self) -> None:
        if self._own:
            with suppress(self._ray.exceptions.RayError):
                self._ray.shutdown()


@contextmanager
def _silent_start() -> Iterator[None]:
    """Ray's native half says on stderr that it was asked to be quiet; its errors come as exceptions all the same."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _row(index: int, start: int, stop: int, batch: bytes, error: str | None) -> pa.Table:
    return pa.Table.from_pylist(
        [{"file": index, "start": start, "stop": stop, "batch": batch, "error": error}], schema=_CHUNK
    )


def _packed(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return bytes(sink.getvalue())


def _unpacked(raw: bytes) -> pa.RecordBatch:
    with pa.ipc.open_stream(raw) as stream:
        batch = stream.read_next_batch()
    assert isinstance(batch, pa.RecordBatch)
    return batch
