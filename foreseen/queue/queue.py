"""The queue of jobs: Redis Streams in the state store.

If the store fails, every method raises QueueUnavailable and retries nothing: a request gets 503, and a worker continues
when the store is back.

`scripts/` writes to the store, `queue_types.py` reads what was written, `queue_calls.py` bounds the calls.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec
import structlog
from redis import exceptions as gone
from redis.asyncio import Redis

from foreseen.errors import KeyReused, QueueFull
from foreseen.queue.blobs import Blobs
from foreseen.queue.job_changes import NextChange, job_changes
from foreseen.queue.outbox import HOOKS, Outbox
from foreseen.queue.queue_calls import BUDGET_SECONDS, NoWorkers, QueueCalls
from foreseen.queue.queue_types import (
    PLAIN,
    Bounds,
    ClaimedJob,
    Company,
    Delivered,
    Extras,
    IssuedTicket,
    JobEnd,
    JobView,
    PutBack,
    delivered_of,
    fields_of,
    seen_of,
)
from foreseen.queue.records import JOB_BYTES, NONCE_BYTES
from foreseen.queue.scripts import BASE, GROUP
from foreseen.queue.warm_progress import REPORT, ROWS, RUNS, WarmRun, warming_of
from foreseen.stores.command_batching import Grouped
from foreseen.stores.master_locator import client_at
from foreseen.stores.redis_urls import BY_ADDRESS, Access
from foreseen.types import QueueStatus

BLOCK_SECONDS = 0.5
ALIVE_SECONDS = 15.0
QUEUE, OPEN, DEAD, COUNTS = (f"{BASE}.{name}" for name in ("queue", "open", "dead", "counts"))

log = structlog.get_logger()


class Queue:
    """The queue of one process. It acknowledges submissions and cancellations once `replicas` replicas have them."""

    def __init__(self, client: Redis, bounds: Bounds, replicas: int = 0) -> None:
        self.bounds = bounds
        self.outbox = Outbox(client)
        self._calls = QueueCalls(client, replicas)
        self.blobs = Blobs(self._calls, bounds)
        self._fetched = Grouped(client, BUDGET_SECONDS)
        self._client = client
        self._life = (_ms(bounds.job_seconds), _ms(bounds.result_seconds))

    async def submit(
        self,
        same: bytes,
        job: bytes,
        nonce: bytes,
        head: bytes,
        rows: bytes,
        ticket: bytes,
        count: int,
        size: int,
        extras: Extras = PLAIN,
    ) -> IssuedTicket:
        """Store a job and its first ticket, or one more ticket of a job with the same question. `size` bytes are
        reserved for the job. Where the idempotency key was used before, the ticket issued then is returned.

        Raises QueueFull, KeyReused, QueueUnavailable.
        """
        bounds = self.bounds
        reply = await self._calls.run(
            "submit", same, job, nonce, head, rows, ticket, count, size, bounds.jobs, bounds.bytes, *self._life,
            extras.hook, extras.batch, extras.once, extras.fingerprint, extras.caller, bounds.weight,
        )  # fmt: skip
        return self._given(reply)

    async def batch(
        self, job: bytes, nonce: bytes, head: bytes, ticket: bytes, count: int, extras: Extras = PLAIN
    ) -> IssuedTicket:
        """Open a batch of `count` items, which name it when they are submitted. Raises as `submit`."""
        reply = await self._calls.run(
            "batch", job, nonce, head, ticket, count, self.bounds.bytes, *self._life,
            extras.hook, extras.once, extras.fingerprint, extras.caller, self.bounds.weight,
        )  # fmt: skip
        return self._given(reply)

    async def close_batch(self, job: bytes, record: bytes, bad: int) -> bool:
        """Close a batch: all its items are submitted, except `bad` invalid ones. It ends when its jobs have ended."""
        return bool(await self._calls.run("close", job, record, bad))

    async def cancel_all(self, tickets: Sequence[tuple[bytes, bytes]]) -> None:
        """Cancel tickets whose jobs have not ended."""
        for job, nonce in tickets:
            await self._calls.run("cancel", job, nonce, self._life[1])

    async def forget_once(self, once: bytes) -> None:
        """Forget an idempotency key."""
        await self._calls.ask("DEL", f"{BASE}.once:".encode() + once)

    async def now(self) -> float:
        """The store's clock, in Unix seconds."""
        return await self._calls.now()

    def _given(self, reply: list[bytes]) -> IssuedTicket:
        match reply[1]:
            case b"jobs":
                raise QueueFull(f"the queue is full: {self.bounds.jobs} jobs wait")
            case b"bytes":
                raise QueueFull(f"the queue is full: {self.bounds.bytes} bytes of jobs and results are kept")
            case b"share":
                share = f"{self.bounds.share:.0%} of the queue at most"
                raise QueueFull(f"the queue has no more room for this caller, whose share is {share}")
            case b"reused":
                raise KeyReused("Idempotency-Key: belongs to a request with another body")
        return IssuedTicket(reply[0], reply[1].decode(), reply[2], reply[3])  # type: ignore[arg-type]

    async def see(self, job: bytes, nonce: bytes, *, record: bool = False) -> JobView | None:
        """The state of a ticket's job, with the record of its end if asked for; None where there is no such ticket."""
        way = self._fetched if record else self._calls.grouped  # a record may be large
        return seen_of(await self._calls.guarded(way.ask("HMGET", _at(job), *fields_of(nonce, record=record))))

    async def see_all(self, tickets: Sequence[tuple[bytes, bytes]]) -> list[JobView | None]:
        """The same for several tickets, with the records, in one pipeline."""
        pipe = self._client.pipeline(transaction=False)
        for job, nonce in tickets:
            pipe.hmget(_at(job), fields_of(nonce, record=True))
        return [seen_of(got) for got in await self._calls.call(pipe.execute())]

    async def used(self, once: bytes) -> tuple[bytes, bytes, bytes] | None:
        """The fingerprint, job and nonce stored under an idempotency key; None where it is new."""
        held: bytes | None = await self._calls.ask("GET", f"{BASE}.once:".encode() + once)
        if held is None:
            return None
        print_bytes = len(held) - JOB_BYTES - NONCE_BYTES
        return held[:print_bytes], held[print_bytes:-NONCE_BYTES], held[-NONCE_BYTES:]

    async def cancel(self, job: bytes, nonce: bytes) -> bool:
        """Cancel a ticket of a job that has not ended; whether there is such a ticket."""
        return bool(await self._calls.run("cancel", job, nonce, self._life[1]))

    def news(self) -> AbstractAsyncContextManager[NextChange]:
        """The jobs that change: see `job_changes`."""
        return job_changes(self._client, self._calls)

    # For workers.

    async def open(self) -> None:
        """Create the stream's consumer group where there is none."""
        with contextlib.suppress(gone.ResponseError):  # it exists
            await self._calls.call(self._client.xgroup_create(QUEUE, GROUP, id="0", mkstream=True))

    async def next(self, worker: str, count: int) -> list[Delivered]:
        """The next messages; where there are none, wait `BLOCK_SECONDS`."""
        block = int(BLOCK_SECONDS * 1000)
        return await self._read(self._client.xreadgroup(GROUP, worker, {QUEUE: ">"}, count=count, block=block))

    async def mine(self, worker: str) -> list[Delivered]:
        """Messages delivered to this worker and not ended: a reply of `next` may have been lost."""
        return await self._read(self._client.xreadgroup(GROUP, worker, {QUEUE: "0"}, count=10_000))

    async def begin(
        self, worker: str, messages: Iterable[tuple[bytes, bytes]], most_alone: int, company: Company = "many"
    ) -> list[ClaimedJob]:
        """Start jobs: the verdict on each, with its records."""
        flat = [part for pair in messages for part in pair]
        call = self._calls.scripts["begin"](
            keys=[BASE], args=[worker, company, most_alone, *flat]
        )  # its reply holds rows
        jobs = await self._calls.call(call)
        return [ClaimedJob(verdict.decode(), *rest) for verdict, *rest in jobs]

    async def beat(self, worker: str, running: Iterable[tuple[bytes, bytes, int]]) -> list[bytes]:
        """Heartbeat of running jobs (message, job, rows done); returns those that another worker has taken over."""
        flat = [part for one in running for part in one]
        return list(await self._calls.run("beat", worker, *flat)) if flat else []

    async def finish(self, worker: str, ended: Sequence[JobEnd]) -> int:
        """End jobs; how many of them this call ended."""
        keep, dead = self._life[1], _ms(self.bounds.dead_seconds)
        flat: list[Any] = []
        for one in ended:
            fresh = int(min(one.fresh_until, 9e9) * 1000)
            flat += (one.message, one.job, one.state, one.record, fresh, len(one.record) + 1024, one.letter)
        return int(await self._calls.run("finish", worker, keep, dead, *flat))

    async def put_back(self, worker: str, jobs: Sequence[PutBack]) -> None:
        flat: list[Any] = []
        for one in jobs:
            flat += (one.message, one.job, _ms(one.delay_seconds), int(one.tried), int(one.suspect))
        await self._calls.run("back", worker, *flat)

    async def tick(self) -> int:
        """Delete expired jobs and queue delayed ones that are due; how many were due."""
        return int(await self._calls.run("tick", *self._life))

    async def workers(self) -> list[str]:
        """The registered workers."""
        consumers = await self._calls.call(self._client.xinfo_consumers(QUEUE, GROUP))
        return [one["name"].decode() for one in consumers]

    async def claim(self, worker: str, gone_worker: str, silent_seconds: float, most: int) -> list[Delivered]:
        """Take over the messages of a worker that has certainly ended, or ("") of any worker silent for so long."""
        claimed = await self._calls.run("claim", worker, gone_worker, _ms(silent_seconds), most)
        return [delivered_of(message, dict(zip(fields[::2], fields[1::2], strict=True))) for message, fields in claimed]

    async def leave(self, worker: str) -> None:
        """Unregister a worker that runs no job: jobs delivered to it go to other workers."""
        await self._calls.run("leave", worker)

    # For operators and metrics.

    async def standing(self) -> QueueStatus:
        """The state of the queue. Raises QueueUnavailable."""
        pipe = self._client.pipeline(transaction=False)
        pipe.hgetall(COUNTS)
        pipe.zrange(OPEN, 0, 0, withscores=True)
        pipe.hlen(DEAD)
        pipe.zcard(HOOKS)
        pipe.hgetall(RUNS)
        pipe.hgetall(ROWS)
        pipe.time()
        counts, oldest, dead, webhooks, runs, rows, clock = await self._calls.call(pipe.execute())
        now = clock[0] + clock[1] / 1e6
        age = max(0.0, now - oldest[0][1] / 1000) if oldest else 0.0
        counted = {name.decode(): int(value) for name, value in counts.items()}
        return QueueStatus(counted, age, dead, webhooks, await self._alive(), warming_of(runs, rows, now))

    async def warms(self, name: str, run: WarmRun, before: list[int], *, over: bool) -> None:
        """Report the progress of a batch run; `before` is what it has reported already, as far as it knows."""
        report, known = (msgspec.json.encode(one) for one in (run, before))
        await self._calls.call(self._client.eval(REPORT, 2, RUNS, ROWS, name, report, int(over), known))

    async def _alive(self) -> int:
        """Live workers: each reads or sends a heartbeat about every second."""
        try:
            consumers = await self._calls.call(self._client.xinfo_consumers(QUEUE, GROUP))
        except (gone.ResponseError, NoWorkers):  # there was none yet
            return 0
        return sum(one["idle"] < ALIVE_SECONDS * 1000 for one in consumers)

    async def dead_letters(self) -> dict[bytes, bytes]:
        letters: dict[bytes, bytes] = await self._calls.call(self._client.hgetall(DEAD))
        return letters

    async def retry(self, job: bytes) -> bool:
        """Put a dead letter back into the queue, as if it had never run."""
        return bool(await self._calls.run("retry", job))

    async def drop(self, job: bytes) -> bool:
        """Remove a dead letter from the list; its tickets still report how the job ended."""
        return bool(await self._calls.call(self._client.hdel(DEAD, job)))

    async def close(self) -> None:
        await self._client.aclose()

    async def _read(self, call: Awaitable[Any]) -> list[Delivered]:
        entries_by_stream = await self._calls.call(call)
        return [delivered_of(message, fields or {}) for _, entries in entries_by_stream for message, fields in entries]


def connect_queue(url: str, bounds: Bounds, access: Access = BY_ADDRESS, replicas: int = 0) -> Queue:
    """A queue by its store's address. Opens no connection yet. Raises SetupError for a malformed address."""
    return Queue(client_at(url, BASE, BUDGET_SECONDS, access), bounds, replicas)


def _at(job: bytes) -> bytes:
    return f"{BASE}.job:".encode() + job


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
