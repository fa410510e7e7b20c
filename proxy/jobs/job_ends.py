"""Ends of jobs: decides between result, failure, retry and dead letter, and stores that in the queue.

An error that is not the job's fault puts it back for a while. A job on which the model or workers keep failing becomes
a dead letter. Ends are stored in batches, and retried until the queue has them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import structlog

from foreseen.errors import (
    BadRequest,
    EntryError,
    ForeseenError,
    InputRejected,
    ModelChanged,
    ModelFailed,
    QueueUnavailable,
    TooLarge,
)
from foreseen.queue.queue import Queue
from foreseen.queue.queue_types import ClaimedJob, JobEnd, PutBack
from foreseen.queue.records import Failure, Head, Part, Records

AGAIN_SECONDS = 0.1
FIRST_BACKOFF_SECONDS, MOST_BACKOFF_SECONDS = 0.5, 30.0
MOST_ATTEMPTS = 5
"""Attempts of a job that meets a persistent error: invalid answers of the model, a bug of Foreseen."""
FLUSH_JOBS, FLUSH_BYTES = 128, 4 * 2**20

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


class JobEnds:
    """The ends of one worker's jobs, until they are stored."""

    def __init__(
        self, worker: str, queue: Queue, records: Records, on_stored: Callable[[Sequence[RunningJob]], None]
    ) -> None:
        """`on_stored` is called with the jobs whose ends the queue has."""
        self._worker = worker
        self._queue = queue
        self._records = records
        self._on_stored = on_stored
        self._ended: list[tuple[RunningJob, JobEnd | PutBack]] = []
        self._to_store = asyncio.Event()

    def judge(self, one: RunningJob, handed: ClaimedJob, error: ForeseenError, *, company: bool) -> None:
        """End a job with an error or retry it; isolated from other jobs if one of its `company` may be the cause."""
        tries = handed.attempts
        match error:
            case InputRejected():
                self.fail(one, handed, error, dead=True)
            case BadRequest() | TooLarge() if company and tries == 0:
                self.add(one, PutBack(one.message, one.job, tried=True, suspect=True))
            case BadRequest() | TooLarge() | ModelChanged():
                self.fail(one, handed, error, dead=False)
            case _ if error.status in (500, 502) and tries + 1 >= MOST_ATTEMPTS:
                self.fail(one, handed, error, dead=True)
            case ModelFailed() if company:
                self.add(one, PutBack(one.message, one.job, _backoff(tries, error), tried=True, suspect=True))
            case _:
                self.add(one, PutBack(one.message, one.job, _backoff(tries, error), tried=True))

    def fail(self, one: RunningJob, handed: ClaimedJob, error: ForeseenError, *, dead: bool) -> None:
        record = self._records.seal(Failure(one.job, error.status, error.code, str(error)))
        letter = b""
        if dead:
            model = "unknown"
            try:
                model = self._records.open_of(Head, one.job, handed.head).model
            except EntryError as unreadable:
                log.debug("dead letter without a head", reason=unreadable.reason)
            document = {"model": model, "code": error.code, "error": str(error), "at": time.time()}
            letter = msgspec.json.encode(document)
            log.error("dead letter", job=one.job.hex(), model=model, code=error.code)
        self.add(one, JobEnd(one.message, one.job, "failed", record, letter=letter))

    def add(self, one: RunningJob, what: JobEnd | PutBack) -> None:
        self._ended.append((one, what))
        self._to_store.set()

    async def keep_storing(self) -> None:
        while True:
            await self._to_store.wait()
            self._to_store.clear()
            while self._ended:
                batch = self._next_batch()
                await self._store([what for _, what in batch])
                self._on_stored([one for one, _ in batch])

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
        """Retry until stored: no computed result is lost because the store restarts."""
        ended = [one for one in batch if isinstance(one, JobEnd)]
        back = [one for one in batch if isinstance(one, PutBack)]
        while True:
            try:
                if ended:
                    await self._queue.finish(self._worker, ended)
                    ended = []
                if back:
                    await self._queue.put_back(self._worker, back)
            except QueueUnavailable:
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                return


def _backoff(attempts: int, error: ForeseenError) -> float:
    """How long a job waits before its next attempt, in seconds: longer each time, never longer than the most."""
    least = max(FIRST_BACKOFF_SECONDS * 2.0 ** min(attempts, 10), float(error.retry_after or 0))
    return float(min(MOST_BACKOFF_SECONDS, least)) * random.uniform(0.8, 1.0)  # noqa: S311 - so that not all come back at once
