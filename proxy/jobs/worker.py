"""The job worker: takes jobs from the queue, computes them in the background lane of the pipeline, stores results.

Rows of many jobs share one flight. A job leaves the queue only when its end is stored. Poison pills are isolated: the
job's record counts the worker deaths during which it ran. After one death it runs among few jobs, after two alone, and
after MOST_ALONE deaths alone it is a poison pill. One death proves nothing: an operator may have killed the worker. A
row that crashes the model process is found sooner, by quarantine. Errors that are not the job's fault put it back.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

import structlog

from foreseen.errors import (
    DigestMoved,
    EntryError,
    ForeseenError,
    InputRejected,
    ModelChanged,
    ModelUnavailable,
    QueueUnavailable,
)
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.jobs.job_ends import JobEnds, RunningJob
from foreseen.proxy.jobs.tickets import JobPurges
from foreseen.proxy.predict.pipeline import Pipeline
from foreseen.queue.frame_rows import rows_of
from foreseen.queue.queue import Queue
from foreseen.queue.queue_types import ClaimedJob, Company, Delivered, JobEnd
from foreseen.queue.records import Head, Part, Records, Result, Rows, part_of, steps_of
from foreseen.tasks import end
from foreseen.telemetry.spans import SpanSink, job_span
from foreseen.types import Question, RequestOptions, Space

MOST_ALONE = 3
FEW = 16
"""Suspected jobs that run together. If one of them ends the worker, so few others must run alone afterwards."""
SLICE_ROWS = 256
"""Rows of one job that are computed at a time: its progress is visible, and other jobs get their turn."""
ATTEMPT_SECONDS = 60.0
BEAT_SECONDS = 1.0
SILENT_SECONDS = 15.0
"""A worker of another machine that is silent for so long counts as dead. A dead one of this machine is seen at once."""
AGAIN_SECONDS = 0.1
BATCH_JOBS = 128
"""Messages that are read at a time."""
CLAIM_JOBS = 1000
MOST_BYTES = 64 * 2**20
"""Most bytes of the rows of running jobs."""

log = structlog.get_logger()


class JobWorker:
    """The consumer of one worker process."""

    def __init__(
        self,
        name: str,
        queue: Queue,
        records: Records,
        pipeline: Pipeline,
        served: Mapping[str, ServedModel],
        purges: JobPurges,
        *,
        most_rows: int,
        is_gone: Callable[[str], bool],
        spans: SpanSink | None = None,
    ) -> None:
        self.name = name
        self._sink = spans
        self._queue = queue
        self._records = records
        self._pipeline = pipeline
        self._served = served
        self._purges = purges
        self._most_rows = most_rows
        self._is_gone = is_gone
        self._running: dict[bytes, RunningJob] = {}
        self._waiting: dict[bytes, Delivered] = {}
        self._suspects: dict[bytes, tuple[Company, Delivered]] = {}
        self._ends = JobEnds(name, queue, records, self._stored)
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._stopping = False

    def __repr__(self) -> str:
        return f"<Worker {self.name} {len(self._running)} jobs running, {len(self._suspects)} suspects wait>"

    async def run(self) -> None:
        """Work until `stop`, then finish and store the running jobs. Raises the error that ends one of the tasks:
        without that task the others would go on and no job would ever be finished."""
        parts = (self._keep_taking, self._keep_beating, self._ends.keep_storing, self._keep_claiming)
        taking, *helpers = (asyncio.create_task(one()) for one in parts)
        try:
            done, _ = await asyncio.wait((taking, *helpers), return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                one.result()
            await self._queue.leave(self.name)
        except QueueUnavailable:
            log.warning("queue not reachable; another worker claims the jobs that waited for this one")
        finally:
            await end(taking, *helpers)

    def stop(self) -> None:
        self._stopping = True
        self._changed.set()

    # Taking jobs.

    async def _keep_taking(self) -> None:
        again = True
        while not (self._stopping and not self._running):
            self._changed.clear()
            try:
                if again:
                    await self._queue.open()
                    self._receive(await self._queue.mine(self.name))
                again = False
                if self._stopping:
                    await self._changed.wait()
                elif self._suspects and not self._running:
                    await self._take_suspects()
                elif self._suspects or self._rows() >= self._most_rows:
                    await self._changed.wait()
                elif self._waiting:
                    await self._take()
                else:
                    self._receive(await self._queue.next(self.name, BATCH_JOBS))
            except QueueUnavailable as error:
                if not again:
                    log.warning("queue not reachable", why=str(error))
                again = True
                await asyncio.sleep(AGAIN_SECONDS)

    def _receive(self, delivered: Iterable[Delivered]) -> None:
        """Queue messages delivered to this worker; they wait until there is room among the running jobs."""
        for one in delivered:
            if one.job not in self._running and one.job not in self._suspects:
                self._waiting[one.job] = one
        self._changed.set()

    def _rows(self) -> int:
        return sum(one.rows for one in self._running.values())

    async def _take(self) -> None:
        """Start waiting jobs, as far as there is room for their rows and bytes; one in any case."""
        rows, size = self._rows(), sum(one.bytes for one in self._running.values())
        batch: list[Delivered] = []
        for one in self._waiting.values():
            rows, size = rows + min(one.rows, SLICE_ROWS), size + one.bytes
            if batch and (rows > self._most_rows or size > MOST_BYTES):
                break
            batch.append(one)
        for handed in await self._queue.begin(self.name, [(one.message, one.job) for one in batch], MOST_ALONE):
            self._place(handed, self._waiting.pop(handed.job))

    async def _take_suspects(self) -> None:
        """Run the suspects that must be among few, or one that must be alone, until their ends are stored."""
        few = [one for company, one in self._suspects.values() if company == "few"][:FEW]
        company: Company = "few" if few else "alone"
        batch = few or [next(one for _, one in self._suspects.values())]
        pairs = [(one.message, one.job) for one in batch]
        for handed in await self._queue.begin(self.name, pairs, MOST_ALONE, company):
            self._place(handed, self._suspects.pop(handed.job)[1])
        while self._running:
            self._changed.clear()
            await self._changed.wait()

    def _place(self, handed: ClaimedJob, delivered: Delivered) -> None:
        one = RunningJob(handed.message, handed.job, min(delivered.rows, SLICE_ROWS), delivered.bytes)
        match handed.verdict:
            case "few" | "alone":
                self._suspects[handed.job] = handed.verdict, delivered
            case "run":
                self._running[handed.job] = one
                self._spawn(self._carry(one, handed))
            case "poison":
                self._running[handed.job] = one
                said = f"a worker has died {MOST_ALONE} times while it ran this job alone"
                self._ends.fail(one, handed, InputRejected(said), dead=True)
            case "gone":
                pass

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)

    # Running them.

    async def _carry(self, one: RunningJob, handed: ClaimedJob) -> None:
        """One job, from its records to its end."""
        try:
            head = self._records.open_of(Head, one.job, handed.head)
            rows = self._records.open_of(Rows, one.job, handed.rows)
            with job_span(head, self._sink) as traceparent:
                await self._answer(one, head, rows.frames, traceparent)
            self._ends.add(one, self._succeeded(one, rows.places))
        except EntryError as error:
            log.error("state store: a job's record does not verify", reason=error.reason)
            self._ends.fail(one, handed, ForeseenError("the job's record does not verify"), dead=True)
        except ForeseenError as error:
            self._ends.judge(one, handed, error, company=len(self._running) > 1)
        except Exception as error:
            log.error("internal error", job=one.job.hex()[:12], error=type(error).__name__, exc_info=error)
            company = len(self._running) > 1
            self._ends.judge(one, handed, ForeseenError("internal error"), company=company)

    async def _answer(self, one: RunningJob, head: Head, frames: Sequence[bytes], traceparent: str | None) -> None:
        """Compute all rows, slice by slice."""
        served = self._served.get(head.model)
        if served is None:
            raise ModelUnavailable(f"model {head.model!r} is not served here")
        served.space(head.scope)  # raises ModelUnavailable until the model's digest is known
        if head.preparation != served.preparation:
            raise ModelChanged("the model's preparation of inputs has changed; send the request again")
        for at in range(0, len(frames), SLICE_ROWS):
            one.parts.append(await self._asked(served, head, frames[at : at + SLICE_ROWS], traceparent))
            one.done = head.rows * min(at + SLICE_ROWS, len(frames)) // len(frames)  # of equal rows one is asked
            if one.lost:
                raise QueueUnavailable("another worker has the job by now, or it was cancelled")

    async def _asked(self, served: ServedModel, head: Head, frames: Sequence[bytes], traceparent: str | None) -> Part:
        """The answers to some rows in the space that is in force now; once more where the digest moved."""
        rows = rows_of(frames, served.manifest.model)
        for _ in range(2):
            space = served.space(head.scope)
            generation = self._purges.of(space.scope, space.model, space.digest)
            if generation is None:
                raise QueueUnavailable("the state store has not been read yet")
            space = Space(space.scope, space.model, space.digest, generation)
            deadline = asyncio.get_running_loop().time() + ATTEMPT_SECONDS
            options = RequestOptions(deadline, "background", steps_of(head) - {"near"}, traceparent, caller=head.tenant)
            question, keys = Question(space, rows, options, head.parameters), self._pipeline.keyed(space, frames)
            try:
                answers = await self._pipeline.answer(question, keys)
            except DigestMoved:
                await served.refresh()
            except ForeseenError:
                self._pipeline.count_background(space.model, ["error"] * len(rows))
                raise
            else:
                self._pipeline.count_background(space.model, (answer.source for answer in answers))
                return part_of(space.digest, generation, keys, answers)
        raise ModelUnavailable(f"model {head.model!r} is changing its version")

    def _succeeded(self, one: RunningJob, places: bytes) -> JobEnd:
        record = self._records.seal(Result(one.job, one.parts, places))
        fresh = min((row.expires_at for part in one.parts for row in part.rows), default=0.0)
        return JobEnd(one.message, one.job, "succeeded", record, fresh)

    def _stored(self, jobs: Sequence[RunningJob]) -> None:
        """The ends of these jobs are stored: make room for others."""
        for one in jobs:
            self._running.pop(one.job, None)
        self._changed.set()

    # Heartbeats, and claiming the jobs of dead workers.

    async def _keep_beating(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            beats = [(one.message, one.job, one.done) for one in self._running.values()]
            beats += [(one.message, one.job, 0) for _, one in self._suspects.values()]
            try:
                for lost in await self._queue.beat(self.name, beats):
                    self._suspects.pop(lost, None)
                    if lost in self._running:
                        self._running[lost].lost = True
                await self._queue.tick()
            except QueueUnavailable as error:
                log.debug("heartbeat not stored", why=str(error))

    async def _keep_claiming(self) -> None:
        while True:
            try:
                gone = [name for name in await self._queue.workers() if name != self.name and self._is_gone(name)]
                for name in gone:
                    self._receive(await self._queue.claim(self.name, name, 0.0, CLAIM_JOBS))
                self._receive(await self._queue.claim(self.name, "", SILENT_SECONDS, CLAIM_JOBS))
            except QueueUnavailable as error:
                log.debug("jobs of dead workers not claimed", why=str(error))
            await asyncio.sleep(BEAT_SECONDS * random.uniform(0.5, 1.0))  # noqa: S311 - so that two seldom meet
