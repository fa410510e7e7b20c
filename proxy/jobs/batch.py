"""`POST /v2/predictions:batch`: one ticket for many requests in JSON Lines. Every line becomes a job of its own.

The batch record is opened, each line is submitted as a job that names the batch, and the record is closed with the list
of jobs. The batch ends when all its jobs have ended. A line that holds no rows or is invalid fails alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence

import orjson
from aiohttp import web

from foreseen.errors import (
    BadRequest,
    EntryError,
    ForeseenError,
    InProgress,
    PredictionGone,
    QueueUnavailable,
)
from foreseen.proxy.fastpath.responder import Responder
from foreseen.proxy.jobs.jsonl import BadLine, RequestLine, lines_of
from foreseen.proxy.jobs.ticket_options import Prefer, TicketOptionsReader, accepted
from foreseen.proxy.jobs.ticket_types import Fetched, TicketIssued, TicketOptions
from foreseen.proxy.jobs.tickets import BATCH, Jobs
from foreseen.proxy.predict.ask import RequestHead
from foreseen.queue.queue import Queue
from foreseen.queue.records import Batch, BatchLine, Failure, Head, Records, Ticket, new_job, new_nonce
from foreseen.tenants.tenant import Tenant
from foreseen.types import OutputOptions, Owner
from foreseen.web.authentication import tenant_of
from foreseen.web.http import SERVER, expect, json_reply, read_body

JSON_LINES = "application/jsonl"
SUBMITTING = 16
"""Lines of one batch that are prepared and stored at a time."""
SLICE_ITEMS = 128
"""Results that are read and rendered at a time."""
FILLING_SECONDS = 600.0
"""A batch that is not closed by then was left by a proxy that died: its idempotency key is new again."""


class Batches:
    """The routes of batches, on one proxy process."""

    def __init__(
        self,
        ticket_options: TicketOptionsReader,
        jobs: Jobs,
        queue: Queue,
        records: Records,
        edge: Responder,
        *,
        most_lines: int,
        body_seconds: float,
    ) -> None:
        self._ticket_options = ticket_options
        self._jobs = jobs
        self._queue = queue
        self._records = records
        self._edge = edge
        self._most_lines = most_lines
        self._body_seconds = body_seconds

    def add_to(self, app: web.Application) -> None:
        """Add the route."""
        app.router.add_route("POST", "/v2/predictions:batch", self.submit_batch, expect_handler=expect)

    async def submit_batch(self, request: web.Request) -> web.Response:
        """Submit JSON Lines, one request each, and get one ticket. Its result is JSON Lines in the same order.

        `Idempotency-Key` and `Foreseen-Webhook` are understood as on `/infer` with `Prefer: respond-async`.
        """
        body = await read_body(request, self._body_seconds)
        promised = await self.submitted(request, body, body)
        prefer = Prefer(request)
        if prefer.wait:
            await self._jobs.until(promised.id, tenant_of(request).owner, prefer.wait)
        document = {"id": promised.id, "state": promised.state, "items": promised.rows}
        return json_reply(document, 202, accepted(promised.id))

    async def submitted(self, request: web.Request, body: bytes, lines: bytes) -> TicketIssued:
        """The ticket of a batch of JSON Lines. `body` is the request's own, by which its idempotency key is known."""
        options, tenant = self._ticket_options.of(request, body), tenant_of(request)
        promised = await self._used(options, tenant.owner)
        if promised is not None:
            return promised
        asked = await self._jobs.heavy.run(lambda: lines_of(lines, self._most_lines), len(lines))
        self._jobs.pipeline.tenants.admit_job(tenant, len(asked))
        return await self._taken(asked, options, tenant)

    async def _used(self, options: TicketOptions, owner: Owner) -> TicketIssued | None:
        """The batch of an idempotency key, None if the key is new. Raises KeyReused, InProgress."""
        promised = await self._jobs.used(owner, options)
        if promised is None:
            return None
        seen = await self._queue.see(*self._jobs.read_id(promised.id, owner), record=True)
        if seen is None:
            return None
        if seen.record is None and seen.state == "running":
            if time.time() - seen.created_at < FILLING_SECONDS:
                raise InProgress("Idempotency-Key: the request is still being received", retry_after=1)
            await self._queue.forget_once(options.once)
            return None
        return promised

    async def _taken(
        self, lines: Sequence[RequestLine | BadLine], options: TicketOptions, tenant: Tenant
    ) -> TicketIssued:
        job, nonce, seal, owner = new_job(), new_nonce(), self._records.seal, tenant.owner
        head = seal(Head(job, b"", tenant.scope, BATCH, "", len(lines), []))
        ticket = seal(Ticket(nonce, owner, job, OutputOptions(), options.once))
        extras = self._jobs.extras(options, nonce, owner)
        given = await self._queue.batch(job, nonce, head, ticket, len(lines), extras)
        if given.nonce != nonce:  # the same request, at the same time
            raise InProgress("Idempotency-Key: the request is still being received", retry_after=1)
        try:
            items = await self._items(lines, self._of_items(job, options), tenant)
            await self._queue.close_batch(job, seal(Batch(job, items)), sum(item.failure is not None for item in items))
        except BaseException:
            await self._give_up(job, nonce, options)
            raise
        return TicketIssued(self._records.ticket_id(job, nonce, owner), "running", BATCH, len(lines))

    def _of_items(self, job: bytes, options: TicketOptions) -> TicketOptions:
        """The ticket options of a batch's items."""
        return TicketOptions(batch=job, at_once=False, caller=options.caller, traceparent=options.traceparent)

    async def _give_up(self, job: bytes, nonce: bytes, options: TicketOptions) -> None:
        """Cancel a batch whose 202 was not sent yet, with the jobs that it has submitted already."""
        try:
            await self._queue.cancel(job, nonce)
            if options.once:
                await self._queue.forget_once(options.once)
        except QueueUnavailable:
            return

    async def _items(
        self, lines: Sequence[RequestLine | BadLine], options: TicketOptions, tenant: Tenant
    ) -> list[BatchLine]:
        items: list[BatchLine] = [BatchLine(None, b"", b"")] * len(lines)
        numbered = iter(enumerate(lines))

        async def take() -> None:
            for number, line in numbered:
                items[number] = await self._item(line, options, tenant)

        async with asyncio.TaskGroup() as group:
            for _ in range(SUBMITTING):
                group.create_task(take())
        return items

    async def _item(self, line: RequestLine | BadLine, options: TicketOptions, tenant: Tenant) -> BatchLine:
        """One line as a job. Raises QueueUnavailable, which ends the whole batch: nothing is promised yet."""
        try:
            if isinstance(line, BadLine):
                raise line.error
            body = bytes(line.body)
            ask = self._edge.named(RequestHead(line.model, line.version, line.protocol, tenant), body)
            promised = await self._jobs.submit(self._edge.find(ask.model, line.version, tenant), ask, body, options)
            if promised is None:
                raise BadRequest("the line cannot be queued: it has no rows, or is part of a sequence")
        except QueueUnavailable:
            raise
        except ForeseenError as error:
            return BatchLine(line.custom_id, b"", b"", Failure(b"", error.status, error.code, str(error)))
        return BatchLine(line.custom_id, *self._jobs.read_id(promised.id, tenant.owner))

    async def result(self, request: web.Request, batch: Batch) -> web.StreamResponse:
        """Every item's result, a line each, in the order in which they were asked."""
        reply = web.StreamResponse(headers={"Server": SERVER, "Content-Type": JSON_LINES})
        await reply.prepare(request)
        owner = tenant_of(request).owner
        for items in _sliced(batch.items):
            await reply.write(b"".join(await self._result_lines(items, owner)))
        await reply.write_eof()
        return reply

    async def _result_lines(self, items: Sequence[BatchLine], owner: Owner) -> list[bytes]:
        jobs = [(item.job, item.nonce) for item in items if item.failure is None]
        seen = iter(await self._queue.see_all(jobs))
        rendered = []
        for item in items:
            try:
                if item.failure is not None:
                    raise _Said(item.failure)
                one = next(seen)
                if one is None:
                    raise PredictionGone("the prediction has expired")
                fetched = await self._jobs.fetched(item.job, item.nonce, owner, one)
                assert isinstance(fetched, Fetched), "no item of a batch is a batch"
                rendered.append(_line(item.custom_id, fetched.body, None))
            except QueueUnavailable:
                raise
            except ForeseenError as error:
                rendered.append(_line(item.custom_id, None, error))
        return rendered

    async def cancel(self, ticket: str, owner: Owner) -> None:
        """Cancel the items of a batch that was cancelled."""
        job, nonce = self._jobs.read_id(ticket, owner)
        seen = await self._queue.see(job, nonce, record=True)
        if seen is None or seen.record is None:
            return
        try:
            batch = self._records.open_of(Batch, job, seen.record)
        except EntryError:
            return
        await self._queue.cancel_all([(item.job, item.nonce) for item in batch.items if item.failure is None])


class _Said(ForeseenError):
    """The error with which a line was refused at submission."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.status, self.code = failure.status, failure.code  # type: ignore[misc]


def _line(name: str | None, body: bytes | None, error: ForeseenError | None) -> bytes:
    head = b'{"custom_id":' + orjson.dumps(name)
    if error is not None:
        shown = {"status_code": error.status, "code": error.code, "message": str(error)}
        return head + b',"response":null,"error":' + orjson.dumps(shown) + b"}\n"
    return head + b',"response":{"status_code":200,"body":' + (body or b"null") + b'},"error":null}\n'


def _sliced(items: Sequence[BatchLine]) -> Iterator[Sequence[BatchLine]]:
    return (items[at : at + SLICE_ITEMS] for at in range(0, len(items), SLICE_ITEMS))
