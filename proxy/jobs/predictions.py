"""The asynchronous pattern over HTTP: `Prefer: respond-async` returns 202 and a ticket to poll, stream or cancel.

The routes are `/v2/predictions/{id}` and its `/result`. `Prefer` is RFC 7240: `respond-async` asks for a ticket where
the answer is not in the cache, `wait=N` waits so many seconds for a prediction to end.
Server-sent events follow the HTML standard; an event's id is the version of the prediction, so that `Last-Event-ID`
goes on where a reader was cut off.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from aiohttp import web
from msgspec import structs

from foreseen.errors import BadRequest, ForeseenError, PredictionGone, UnknownPrediction
from foreseen.proxy.fastpath.responder import Responder
from foreseen.proxy.jobs.batch import Batches
from foreseen.proxy.jobs.openai_batches import OpenAIBatches
from foreseen.proxy.jobs.ticket_options import Prefer, TicketOptionsReader, accepted
from foreseen.proxy.jobs.ticket_types import TicketStatus
from foreseen.proxy.jobs.tickets import BATCH, Jobs
from foreseen.proxy.predict.ask import RequestHead
from foreseen.queue.records import Batch
from foreseen.types import Owner
from foreseen.web.authentication import tenant_of
from foreseen.web.http import SERVER, expect, infer_reply, json_reply

LONGEST_STREAM_SECONDS = 300.0
"""A stream ends then; its reader comes again with `Last-Event-ID`."""
PING_SECONDS = 15.0
"""A comment is sent so often, to keep load balancers from closing an idle stream."""
EVENTS = "text/event-stream"


class Predictions:
    """The routes of predictions, on one proxy process."""

    def __init__(
        self,
        jobs: Jobs,
        edge: Responder,
        ticket_options: TicketOptionsReader,
        batches: Batches,
        openai: OpenAIBatches,
    ) -> None:
        self._jobs = jobs
        self._edge = edge
        self._ticket_options = ticket_options
        self._batches = batches
        self._openai = openai

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        add = app.router.add_route
        add("GET", "/v2/predictions/{id}", self.prediction)
        add("GET", "/v2/predictions/{id}/result", self.prediction_result)
        add("DELETE", "/v2/predictions/{id}", self.cancel_prediction, expect_handler=expect)
        self._batches.add_to(app)
        self._openai.add_to(app)

    async def submit(
        self, request: web.Request, ask: RequestHead, body: bytes, started: float
    ) -> web.StreamResponse | None:
        """The 202 of a request that prefers one; None where it does not, or is better answered at once.

        Raises what is wrong with the question, QueueFull, QueueUnavailable.
        """
        prefer = Prefer(request)
        if not prefer.respond_async:
            return None
        served, options = self._edge.find(ask.model, ask.version, ask.tenant), self._ticket_options.of(request, body)
        ticket = await self._jobs.used(ask.tenant.owner, options) or await self._jobs.submit(served, ask, body, options)
        if ticket is None:
            return None
        self._edge.accepted(ask, ticket.rows, started)
        if prefer.wait and (await self._jobs.until(ticket.id, ask.tenant.owner, prefer.wait)).state == "succeeded":
            return await self._result(request, ticket.id)
        return json_reply(structs.asdict(ticket), 202, accepted(ticket.id))

    async def prediction(self, request: web.Request) -> web.StreamResponse:
        """How a prediction stands.

        `Prefer: wait=N` waits for its end, at most so many seconds; `Accept: text/event-stream` streams its states.
        """
        ticket = request.match_info["id"]
        if EVENTS in request.headers.get("Accept", ""):
            return await self._stream(request, ticket)
        prefer = Prefer(request)
        seen = await self._jobs.until(ticket, tenant_of(request).owner, prefer.wait or 0.0)
        _not_expired(seen)
        headers = dict(prefer.applied)
        if not seen.ended:
            headers["Retry-After"] = "1"
        return json_reply(document(seen), 200, headers)

    async def prediction_result(self, request: web.Request) -> web.StreamResponse:
        """The result of a prediction, exactly as `/infer` or `:predict` would have sent it.

        `Prefer: wait=N` waits for it, at most so many seconds; where there is none yet, 409.
        """
        ticket, prefer = request.match_info["id"], Prefer(request)
        return await self._result(request, ticket, prefer.wait or 0.0)

    async def cancel_prediction(self, request: web.Request) -> web.StreamResponse:
        """Cancel a prediction that has not ended, and return its state. Work that other tickets wait for continues."""
        owner = tenant_of(request).owner
        seen = await self._jobs.cancel(request.match_info["id"], owner)
        _not_expired(seen)
        if seen.model == BATCH and seen.state == "cancelled":
            await self._batches.cancel(seen.id, owner)
        return json_reply(document(seen))

    async def _result(self, request: web.Request, ticket: str, seconds: float = 0.0) -> web.StreamResponse:
        fetched = await self._jobs.fetch(ticket, tenant_of(request).owner, seconds)
        if isinstance(fetched, Batch):
            return await self._batches.result(request, fetched)
        return infer_reply(fetched.body, fetched.length, fetched.headers)

    async def _stream(self, request: web.Request, ticket: str) -> web.StreamResponse:
        """Every state of a prediction from now on, until its end."""
        known, owner = _last_event(request), tenant_of(request).owner
        seen = await self._jobs.look(ticket, owner)
        if seen.ended and seen.version <= known:
            return web.Response(status=204, headers={"Server": SERVER})  # the standard's way to say: do not come again
        reply = web.StreamResponse(
            headers={"Server": SERVER, "Content-Type": EVENTS, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        await reply.prepare(request)
        try:
            await self._send_states(reply, ticket, owner, known)
        except ConnectionError:
            return reply  # the reader has left
        await reply.write_eof()
        return reply

    async def _send_states(self, reply: web.StreamResponse, ticket: str, owner: Owner, known: int) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + LONGEST_STREAM_SECONDS
        while loop.time() < until and not self._jobs.news.closing:
            try:
                seen = await self._jobs.until(ticket, owner, min(PING_SECONDS, until - loop.time()), known)
            except (PredictionGone, UnknownPrediction) as gone:
                await reply.write(_event("expired", None, {"state": "expired", "error": str(gone), "code": gone.code}))
                return
            except ForeseenError:  # the queue is not reachable for a moment: the stream stays open
                await asyncio.sleep(0.5)
                continue
            if seen.version <= known and not seen.ended:
                await reply.write(b": still there\n\n")
                continue
            known = seen.version
            await reply.write(_event(seen.state, seen.version, document(seen)))
            if seen.ended:
                return


def document(seen: TicketStatus) -> dict[str, Any]:
    """A ticket's body. Times are Unix seconds; `error` is there where the prediction has failed. A batch has its
    items instead of model and rows, and how many of those have ended without an answer."""
    fields: dict[str, Any] = {"id": seen.id, "state": seen.state}
    if seen.model == BATCH:
        fields |= {"items": seen.rows, "done": seen.done, "unsuccessful": seen.unsuccessful}
    else:
        fields |= {"model": seen.model, "rows": seen.rows, "done": seen.done}
    fields["created_at"] = seen.created_at
    if seen.started_at is not None:
        fields["started_at"] = seen.started_at
    if seen.ended_at is not None:
        fields["ended_at"] = seen.ended_at
    if seen.attempts:
        fields["attempts"] = seen.attempts
    if seen.failure is not None:
        fields |= {"error": seen.failure.message, "code": seen.failure.code, "status": seen.failure.status}
    return fields


def _not_expired(seen: TicketStatus) -> None:
    """An expired batch still has the results of the items that ran."""
    if seen.state == "expired" and seen.model != BATCH:
        raise PredictionGone("the prediction was not computed in time")


def _last_event(request: web.Request) -> int:
    value = request.headers.get("Last-Event-ID")
    if value is None:
        return 0
    if not (value.isascii() and value.isdigit() and len(value) <= 15):
        raise BadRequest("Last-Event-ID: must be the id of an event of this stream")
    return int(value)


def _event(name: str, number: int | None, fields: dict[str, Any]) -> bytes:
    head = f"event: {name}\n" if number is None else f"id: {number}\nevent: {name}\n"
    return head.encode() + b"data: " + orjson.dumps(fields) + b"\n\n"
