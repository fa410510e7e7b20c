"""Jobs of the queue → results in it, by the same pipeline that answers online requests, in the background lane.

Rows of many jobs leave in one flight. A job is taken off the queue only when its end is stored. Who was aboard when a
worker died is known by the record of the job: after one such death it runs among few, after two alone, and what has
died alone MOST_ALONE times is poison (one death may be anybody's `kill`; what the model's process dies of, its
quarantine finds sooner). What is not the job's fault puts it back for a while.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog

from foreseen.errors import (
    BadRequest,
    DigestMoved,
    EntryError,
    ForeseenError,
    InputRejected,
    ModelChanged,
    ModelFailed,
    ModelUnavailable,
    QueueUnavailable,
    TooLarge,
)
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.jobs.tickets import JobPurges
from foreseen.proxy.predict.pipeline import Pipeline
from foreseen.queue.queue import Queue
from foreseen.queue.queue_types import ClaimedJob, Company, Delivered, JobEnd, PutBack
from foreseen.queue.records import Failure, Head, Part, Records, Result, Rows, part_of, rows_of, steps_of
from foreseen.tasks import end
from foreseen.types import Question, RequestOptions, Space

MOST_ALONE = 3
FEW = 16
"""How many suspects run together: the companions of whoever ends the worker then are few that must run alone."""
SLICE_ROWS = 256
"""Rows of one job that are asked at a time: its progress shows, and others have their turn."""
ATTEMPT_SECONDS = 60.0
BEAT_SECONDS = 1.0
SILENT_SECONDS = 15.0
"""A worker of another machine that is silent for so long is taken for dead. One of this machine shows it at once."""
AGAIN_SECONDS = 0.1
FIRST_BACKOFF_SECONDS, MOST_BACKOFF_SECONDS = 0.5, 30.0
MOST_ATTEMPTS = 5
"""Of what is nobody's passing trouble: a model that answers with nonsense, a bug of ours."""
FLUSH_JOBS, FLUSH_BYTES = 128, 4 * 2**20
BATCH_JOBS = 128
"""Messages that are read at a time."""
CLAIM_JOBS = 1000
MOST_BYTES = 64 * 2**20
"""Of the rows aboard."""

log = structlog.get_logger()


@dataclass(eq=False)
class RunningJob:
    """A job that this worker has, from its delivery until its end is stored."""

    message: bytes
    job: bytes
    rows: int
    bytes: int
    done: int = 0
    lost: bool = False
    parts: list[Part] = field(default_factory=list)


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
    ) -> None:
        self.name = name
        self._queue = queue
        self._records = records
        self._pipeline = pipeline
        self._served = served
        self._purges = purges
        self._most_rows = most_rows
        self._is_gone = is_gone
        self._aboard: dict[bytes, RunningJob] = {}
        self._waiting: dict[bytes, Delivered] = {}
        self._suspects: dict[bytes, tuple[Company, Delivered]] = {}
        self._ended: list[tuple[RunningJob, JobEnd | PutBack]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._to_store = asyncio.Event()
        self._stopping = False

    def __repr__(self) -> str:
        return f"<Worker {self.name} {len(self._aboard)} jobs aboard, {len(self._suspects)} suspects wait>"

    async def run(self) -> None:
        """Work until `stop`; then what is aboard is finished and stored. Raises what ends one of its parts: without
        it the others would go on and nothing would ever be finished."""
        parts = (self._keep_taking, self._keep_beating, self._keep_storing, self._keep_claiming)
        taking, *helpers = (asyncio.create_task(one()) for one in parts)
        try:
            done, _ = await asyncio.wait((taking, *helpers), return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                one.result()
            await self._queue.leave(self.name)
        except QueueUnavailable:
            log.warning("queue not reachable; what waited for this worker is claimed by another")
        finally:
            await end(taking, *helpers)

    def stop(self) -> None:
        self._stopping = True
        self._changed.set()

    # Taking jobs.

    async def _keep_taking(self) -> None:
        again = True
        while not (self._stopping and not self._aboard):
            self._changed.clear()
            try:
                if again:
                    await self._queue.open()
                    self._receive(await self._queue.mine(self.name))
                again = False
                if self._stopping:
                    await self._changed.wait()
                elif self._suspects and not self._aboard:
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
        """Messages that are this worker's now; they wait here until there is room aboard."""
        for one in delivered:
            if one.job not in self._aboard and one.job not in self._suspects:
                self._waiting[one.job] = one
        self._changed.set()

    def _rows(self) -> int:
        return sum(one.rows for one in self._aboard.values())

    async def _take(self) -> None:
        """Take who waits aboard, as far as there is room for their rows and bytes; one in any case."""
        rows, size = self._rows(), sum(one.bytes for one in self._aboard.values())
        batch: list[Delivered] = []
        for one in self._waiting.values():
            rows, size = rows + min(one.rows, SLICE_ROWS), size + one.bytes
            if batch and (rows > self._most_rows or size > MOST_BYTES):
                break
            batch.append(one)
        for handed in await self._queue.begin(self.name, [(one.message, one.job) for one in batch], MOST_ALONE):
            self._place(handed, self._waiting.pop(handed.job))

    async def _take_suspects(self) -> None:
        """Some who must be among few, or one who must be alone, until their ends are stored."""
        few = [one for company, one in self._suspects.values() if company == "few"][:FEW]
        company: Company = "few" if few else "alone"
        batch = few or [next(one for _, one in self._suspects.values())]
        pairs = [(one.message, one.job) for one in batch]
        for handed in await self._queue.begin(self.name, pairs, MOST_ALONE, company):
            self._place(handed, self._suspects.pop(handed.job)[1])
        while self._aboard:
            self._changed.clear()
            await self._changed.wait()

    def _place(self, handed: ClaimedJob, delivered: Delivered) -> None:
        one = RunningJob(handed.message, handed.job, min(delivered.rows, SLICE_ROWS), delivered.bytes)
        match handed.verdict:
            case "few" | "alone":
                self._suspects[handed.job] = handed.verdict, delivered
            case "run":
                self._aboard[handed.job] = one
                self._spawn(self._carry(one, handed))
            case "poison":
                self._aboard[handed.job] = one
                said = f"a worker has died {MOST_ALONE} times with this job alone aboard"
                self._fail(one, handed, InputRejected(said), dead=True)
            case "gone":
                pass

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)

    # Carrying them.

    async def _carry(self, one: RunningJob, handed: ClaimedJob) -> None:
        """One job, from its records to its end."""
        try:
            head = self._records.open_of(Head, one.job, handed.head)
            rows = self._records.open_of(Rows, one.job, handed.rows)
            await self._answer(one, head, rows.frames)
            self._end(one, self._succeeded(one, rows.places))
        except EntryError as error:
            log.error("a job in the state store is not what was put there", reason=error.reason)
            self._fail(one, handed, ForeseenError("the job's record is not what was put there"), dead=True)
        except ForeseenError as error:
            self._judge(one, handed, error)
        except Exception as error:
            log.error("internal error", job=one.job.hex()[:12], error=type(error).__name__, exc_info=error)
            self._judge(one, handed, ForeseenError("internal error"))

    async def _answer(self, one: RunningJob, head: Head, frames: Sequence[bytes]) -> None:
        """Ask for all rows, slice by slice."""
        served = self._served.get(head.model)
        if served is None:
            raise ModelUnavailable(f"model {head.model!r} is not served here")
        served.space()  # raises ModelUnavailable until the model has said who it is
        if head.preparation != served.preparation:
            raise ModelChanged("the model prepares its inputs in another way by now; ask again")
        for at in range(0, len(frames), SLICE_ROWS):
            one.parts.append(await self._asked(served, head, frames[at : at + SLICE_ROWS]))
            one.done = head.rows * min(at + SLICE_ROWS, len(frames)) // len(frames)  # of equal rows one is asked
            if one.lost:
                raise QueueUnavailable("the job is somebody else's by now, or was cancelled")

    async def _asked(self, served: ServedModel, head: Head, frames: Sequence[bytes]) -> Part:
        """The answers to some rows in the space that is in force now; once more where the digest moved."""
        rows = rows_of(frames, served.manifest.model)
        for _ in range(2):
            space = served.space()
            generation = self._purges.of(space.model, space.digest)
            if generation is None:
                raise QueueUnavailable("the state store has not been read yet")
            space = Space(head.scope, space.model, space.digest, generation)
            deadline = asyncio.get_running_loop().time() + ATTEMPT_SECONDS
            options = RequestOptions(deadline, "background", steps_of(head) - {"near"})
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

    def _judge(self, one: RunningJob, handed: ClaimedJob, error: ForeseenError) -> None:
        """What an error means for a job: its end or another try, alone where others aboard may be the cause."""
        tries, company = handed.attempts, len(self._aboard) > 1
        match error:
            case InputRejected():
                self._fail(one, handed, error, dead=True)
            case BadRequest() | TooLarge() if company and tries == 0:
                self._end(one, PutBack(one.message, one.job, tried=True, suspect=True))
            case BadRequest() | TooLarge() | ModelChanged():
                self._fail(one, handed, error, dead=False)
            case _ if error.status in (500, 502) and tries + 1 >= MOST_ATTEMPTS:
                self._fail(one, handed, error, dead=True)
            case ModelFailed() if company:
                self._end(one, PutBack(one.message, one.job, _backoff(tries, error), tried=True, suspect=True))
            case _:
                self._end(one, PutBack(one.message, one.job, _backoff(tries, error), tried=True))

    def _fail(self, one: RunningJob, handed: ClaimedJob, error: ForeseenError, *, dead: bool) -> None:
        record = self._records.seal(Failure(one.job, error.status, error.code, str(error)))
        letter = b""
        if dead:
            model = "unknown"
            try:
                model = self._records.open_of(Head, one.job, handed.head).model
            except EntryError as unreadable:
                log.debug("a dead letter without a head", reason=unreadable.reason)
            told = {"model": model, "code": error.code, "error": str(error), "at": time.time()}
            letter = msgspec.json.encode(told)
            log.error("dead letter", job=one.job.hex(), model=model, code=error.code)
        self._end(one, JobEnd(one.message, one.job, "failed", record, letter=letter))

    # Storing what became of them.

    def _end(self, one: RunningJob, what: JobEnd | PutBack) -> None:
        self._ended.append((one, what))
        self._to_store.set()

    async def _keep_storing(self) -> None:
        while True:
            await self._to_store.wait()
            self._to_store.clear()
            while self._ended:
                batch = self._next_batch()
                await self._store([what for _, what in batch])
                for one, _ in batch:
                    self._aboard.pop(one.job, None)
                self._changed.set()

    def _next_batch(self) -> list[tuple[RunningJob, JobEnd | PutBack]]:
        size, count = 0, 0
        for _, what in self._ended[:FLUSH_JOBS]:
            size += len(what.record) if isinstance(what, JobEnd) else 0
            count += 1
            if size > FLUSH_BYTES:
                break
        batch, self._ended = self._ended[:count], self._ended[count:]
        return batch

    async def _store(self, batch: Sequence[JobEnd | PutBack]) -> None:
        """Until it is stored: nothing that was computed is thrown away because the store was restarted."""
        ended = [one for one in batch if isinstance(one, JobEnd)]
        back = [one for one in batch if isinstance(one, PutBack)]
        while True:
            try:
                if ended:
                    await self._queue.finish(self.name, ended)
                    ended = []
                if back:
                    await self._queue.put_back(self.name, back)
            except QueueUnavailable:
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                return

    # Living, and noticing who does not.

    async def _keep_beating(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            beats = [(one.message, one.job, one.done) for one in self._aboard.values()]
            beats += [(one.message, one.job, 0) for _, one in self._suspects.values()]
            try:
                for lost in await self._queue.beat(self.name, beats):
                    self._suspects.pop(lost, None)
                    if lost in self._aboard:
                        self._aboard[lost].lost = True
                await self._queue.tick()
            except QueueUnavailable as error:
                log.debug("no beat", why=str(error))

    async def _keep_claiming(self) -> None:
        while True:
            try:
                gone = [name for name in await self._queue.workers() if name != self.name and self._is_gone(name)]
                for name in gone:
                    self._receive(await self._queue.claim(self.name, name, 0.0, CLAIM_JOBS))
                self._receive(await self._queue.claim(self.name, "", SILENT_SECONDS, CLAIM_JOBS))
            except QueueUnavailable as error:
                log.debug("no claim", why=str(error))
            await asyncio.sleep(BEAT_SECONDS * random.uniform(0.5, 1.0))  # noqa: S311 - so that two seldom meet


def _backoff(attempts: int, error: ForeseenError) -> float:
    """How long a job waits before its next attempt, in seconds: longer each time, never longer than the most."""
    least = max(FIRST_BACKOFF_SECONDS * 2.0 ** min(attempts, 10), float(error.retry_after or 0))
    return float(min(MOST_BACKOFF_SECONDS, least)) * random.uniform(0.8, 1.0)  # noqa: S311 - so that not all come back at once
