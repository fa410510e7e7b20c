"""Submits questions as jobs of the queue, issues tickets for them, and fetches the answers.

A job is identified by tenant and keys: an equal question gets a ticket of the same job while the job is under way or
its result is fresh. A ticket is a job and its caller's output options; its id alone gives access to the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

from foreseen.errors import (
    BadRequest,
    DeadlineExceeded,
    EntryError,
    KeyReused,
    ModelUnavailable,
    NotCached,
    NotFinished,
    PredictionCancelled,
    PredictionGone,
    UnknownModel,
)
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.cache.freshness import Control, steps_of
from foreseen.proxy.jobs.job_notifications import JobNotifications
from foreseen.proxy.jobs.ticket_records import TicketRecords, check_renderable, row_bytes
from foreseen.proxy.jobs.ticket_types import PLAINLY, Failed, Fetched, TicketIssued, TicketOptions, TicketStatus
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.dialects import codecs
from foreseen.proxy.predict.dialects.decode import prepared
from foreseen.proxy.predict.facts import AnswerFacts
from foreseen.proxy.predict.pipeline import Pipeline
from foreseen.proxy.predict.response_bytes import headers_of
from foreseen.queue.equal_rows import distinct
from foreseen.queue.queue import Queue
from foreseen.queue.queue_types import OPEN_STATES, Extras
from foreseen.queue.queue_types import JobView as Stored
from foreseen.queue.records import (
    NEVER_SAME,
    Batch,
    Failure,
    Head,
    Hook,
    Records,
    Result,
    Rows,
    Ticket,
    new_job,
    new_nonce,
)
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.telemetry.spans import Publication
from foreseen.types import ALL_STEPS, ANY_AGE, Key, Owner, Question, RequestOptions, Scope, Space, Steps
from foreseen.web.heavy import Heavy, on_loop_bytes

BATCH = ""
"""The model in a batch's head: its items name their own."""
LOOK_SECONDS = 0.25
"""Time limit of the look-up in near and far, before the request becomes a job."""


class JobPurges(Protocol):
    """The part of purges that tickets need."""

    def of(self, scope: Scope, model: str, digest: str) -> int | None: ...
    def purged_since(self, key: Key, made_at: float) -> bool: ...


class Jobs:
    """Issues, looks up and fetches tickets in one proxy process."""

    def __init__(
        self, queue: Queue, records: Records, pipeline: Pipeline, served: Mapping[str, ServedModel], purges: JobPurges,
        metrics: ProxyMetrics, heavy: Heavy | None = None,
    ) -> None:  # fmt: skip
        self.heavy = heavy or Heavy()
        self.news = JobNotifications(queue)
        self._queue = queue
        self._records = records
        self.stored = TicketRecords(queue, records, metrics)
        self.pipeline = pipeline
        self._served = served
        self._purges = purges
        self._metrics = metrics

    async def submit(
        self, served: ServedModel, ask: RequestHead, body: bytes, options: TicketOptions = PLAINLY
    ) -> TicketIssued | None:
        """A ticket for a request; None if it is better answered at once: near and far have every row (and `at_once` is
        set), it has no rows, it must not wait for the model, or it belongs to a sequence.

        Raises QueueFull, QueueUnavailable, KeyReused and what is wrong with the question.
        """
        control, steps, size = ask.control, steps_of(ask.control, served.steps), len(body)
        asked = await self.heavy.run(lambda: codecs.decode(ask, body, served), size)
        if options.batch and (
            asked.output_options.binary or any(output.binary for output in asked.output_options.outputs or ())
        ):
            raise BadRequest("parameters: binary outputs cannot stand in a line of a batch's result")
        if asked.sequence or "model" not in steps:
            return None
        scope, owner = ask.tenant.scope, ask.tenant.owner
        space, preparation, preparer = self._in_force(served, scope), served.preparation, served.preparer()
        limit = on_loop_bytes(preparer.heavy)
        decoded = asked
        asked, rows = await self.heavy.run(lambda: prepared(decoded, preparer), size, limit)
        frames = served.framer.frames(rows, asked.parameters)
        keys = self.pipeline.keyed(space, frames)
        question = Question(space, rows, self._terms(steps, control), asked.parameters)
        if not rows or (options.at_once and await self._is_known(question, keys)):
            return await self.used(owner, options)  # the same request may have been submitted, and answered, meanwhile
        self.pipeline.tenants.admit_job(ask.tenant, len(rows), of_batch=bool(options.batch))
        shared = steps == ALL_STEPS and control.age_limits == ANY_AGE
        same = self._records.same(keys) if shared else NEVER_SAME
        unique, places = await self.heavy.run(lambda: distinct(frames), size)
        for sharing in (same, NEVER_SAME) if same else (NEVER_SAME,):
            job, nonce, seal = new_job(), new_nonce(), self._records.seal
            publication = Publication.of(options.traceparent if options.batch else ask.traceparent)
            head = Head(
                job, sharing, scope, served.manifest.name, preparation, len(rows), sorted(steps), asked.parameters,
                publication.context, ask.tenant.name,
            )  # fmt: skip
            sealed = seal(Rows(job, unique, places))
            ticket = seal(Ticket(nonce, owner, sharing or job, codecs.fetched(asked.output_options), options.once))
            room = len(sealed) + 1024 + len(places) + len(unique) * row_bytes(served.manifest)
            extras = self.extras(options, nonce, owner)
            given = await self._queue.submit(sharing, job, nonce, seal(head), sealed, ticket, len(rows), room, extras)
            if given.nonce != nonce:
                return await self.promised(given.job, given.nonce, owner, options.once)
            if given.job == job or self.stored.is_same(given.job, given.head, same):
                other = "" if given.job == job else self._records.open_of(Head, given.job, given.head).traceparent
                publication.end(head, other)
                id_ = self._records.ticket_id(given.job, nonce, owner)
                return TicketIssued(id_, given.state, head.model, len(rows))
        raise AssertionError("a job that is not shared is new")

    def extras(self, options: TicketOptions, nonce: bytes, owner: Owner) -> Extras:
        """The part of ticket options that the store keeps, sealed."""
        hook = b""
        if options.webhook is not None:
            hook = self._records.seal(Hook(nonce, owner, options.webhook))
        caller = b"" if options.caller is None else self._records.once(owner, options.caller)
        return Extras(hook, options.batch, options.once, options.fingerprint, caller)

    def options(self, owner: Owner, webhook: str | None, key: str | None, *request: bytes) -> TicketOptions:
        """The ticket options of a request. `request` are the parts that its idempotency key is bound to."""
        if key is None:
            return TicketOptions(webhook)
        parts = (webhook or "").encode(), *request
        return TicketOptions(
            webhook, once=self._records.once(owner, key), fingerprint=self._records.fingerprint(*parts)
        )

    async def used(self, owner: Owner, options: TicketOptions) -> TicketIssued | None:
        """The ticket of an idempotency key; None if the key is new or its ticket is forgotten.

        Raises KeyReused if the key belongs to another request.
        """
        known = await self._queue.used(options.once) if options.once else None
        if known is None or await self._queue.see(known[1], known[2]) is None:
            return None
        if known[0] != options.fingerprint:
            raise KeyReused("Idempotency-Key: belongs to a request with another body")
        return await self.promised(known[1], known[2], owner, options.once)

    async def promised(self, job: bytes, nonce: bytes, owner: Owner, once: bytes) -> TicketIssued:
        """The ticket that the store has for an idempotency key, verified to have been made for this key."""
        seen = await self.stored.see(job, nonce)
        head = self.stored.open(Head, job, seen.head)
        if self.stored.open_ticket(head, nonce, owner, seen.ticket).once != once:
            raise self.stored.tampered(EntryError("identity"))
        return TicketIssued(self._records.ticket_id(job, nonce, owner), seen.state, head.model, seen.rows)

    async def look(self, ticket: str, owner: Owner) -> TicketStatus:
        """The status of a ticket. Raises UnknownPrediction, PredictionGone, QueueUnavailable."""
        job, nonce = self.stored.read_id(ticket, owner)
        seen = await self.stored.see(job, nonce)
        head = self.stored.open(Head, job, seen.head)
        self.stored.open_ticket(head, nonce, owner, seen.ticket)
        failure = None
        if seen.state == "failed":
            failure = self.stored.open(Failure, job, (await self.stored.see(job, nonce, record=True)).record)
        return TicketStatus(
            ticket, seen.state, seen.version, head.model, seen.rows, seen.done, seen.created_at, seen.begun_at,
            seen.ended_at, seen.attempts, failure, seen.unsuccessful,
        )  # fmt: skip

    def read_id(self, ticket: str, owner: Owner) -> tuple[bytes, bytes]:
        """A ticket's job and nonce. Raises UnknownPrediction."""
        return self.stored.read_id(ticket, owner)

    async def until(self, ticket: str, owner: Owner, seconds: float, version: int | None = None) -> TicketStatus:
        """Wait until a ticket has ended, or has a later version than this; its status then."""
        job, _ = self.stored.read_id(ticket, owner)
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        with self.news.of(job, end_alone=version is None) as watch:
            while True:
                seen = await self.look(ticket, owner)
                left = end - loop.time()
                if seen.ended or (version is not None and seen.version > version) or left <= 0 or self.news.closing:
                    return seen
                await watch.wait(left)

    async def fetch(self, ticket: str, owner: Owner, seconds: float = 0.0) -> Fetched | Batch:
        """The result of a ticket, as `/infer` would have sent it; of a batch its items. Waits for it, at most so long.

        Raises NotFinished, PredictionGone, PredictionCancelled, and what the job failed with.
        """
        job, nonce = self.stored.read_id(ticket, owner)
        if not seconds:
            return await self.fetched(job, nonce, owner, await self.stored.see(job, nonce, record=True))
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        with self.news.of(job, end_alone=True) as watch:
            while True:
                seen = await self.stored.see(job, nonce, record=True)
                left = end - loop.time()
                if seen.state not in OPEN_STATES or left <= 0 or self.news.closing:
                    return await self.fetched(job, nonce, owner, seen)
                await watch.wait(left)

    async def fetched(self, job: bytes, nonce: bytes, owner: Owner, seen: Stored) -> Fetched | Batch:
        """The same for a ticket that was looked up with its record."""
        if seen.state in OPEN_STATES:
            raise NotFinished(f"the prediction is {seen.state}", retry_after=1)
        head = self.stored.open(Head, job, seen.head)
        output_options = self.stored.open_ticket(head, nonce, owner, seen.ticket).output_options
        if head.model == BATCH and seen.record is not None:  # a batch's items have ends of their own
            return self.stored.open(Batch, job, seen.record)
        match seen.state:
            case "cancelled":
                raise PredictionCancelled("the prediction was cancelled")
            case "expired":
                raise PredictionGone("the prediction was not computed in time")
            case "failed":
                raise Failed(self.stored.open(Failure, job, seen.record))
        result = self.stored.open(Result, job, seen.record)
        served = self._served.get(head.model)
        if served is None:
            raise UnknownModel(head.model)
        self._not_purged(head, result)
        answers = self.stored.answers(result)
        check_renderable(served.manifest, answers)
        now = self.pipeline.tiers.clock()
        predictions, size = [answer.prediction for answer in answers], len(seen.record or b"")
        rendered = await self.heavy.run(lambda: codecs.render(served.manifest, predictions, output_options), size)
        body, length = rendered.with_id(output_options.id)
        facts = AnswerFacts.of(answers, served, now, requested=not {"near", "far"} & set(head.steps))
        return Fetched(body, length, dict(headers_of(facts.lines())))

    async def cancel(self, ticket: str, owner: Owner) -> TicketStatus:
        """Cancel a ticket that has not ended, and with its last ticket the job; the status then."""
        job, nonce = self.stored.read_id(ticket, owner)
        if not await self._queue.cancel(job, nonce):
            raise PredictionGone("the prediction has expired")
        return await self.look(ticket, owner)

    async def close(self) -> None:
        await self.news.close()
        await self._queue.close()

    def _terms(self, steps: Steps, control: Control) -> RequestOptions:
        """Options of the look-up that decides whether a request needs a job at all."""
        deadline = asyncio.get_running_loop().time() + LOOK_SECONDS
        return RequestOptions(deadline, steps=steps & {"near", "far"}, age_limits=control.age_limits)

    async def _is_known(self, question: Question, keys: Sequence[Key]) -> bool:
        """Whether near and far have every row, in time. Requests that become jobs mostly have new rows only: far is
        asked for the first row that near lacks, and only where it has that one for the rest."""
        options, tiers = question.options, self.pipeline.tiers
        if not options.steps:
            return False
        lacking = next((key for key in keys if tiers.near.peek(key) is None), None)
        if lacking is not None and len(keys) > 1 and "far" in options.steps:
            policy = self.pipeline.models[question.space.model].freshness
            if not (await tiers.look_far(question.space, [lacking], policy, options.age_limits)).found:
                return False
        try:
            await self.pipeline.answer(question, keys)
        except (NotCached, DeadlineExceeded):
            return False
        return True

    def _in_force(self, served: ServedModel, scope: Scope) -> Space:
        """A scope's space of the model at its present generation. Raises ModelUnavailable if that is not known."""
        space = served.space(scope)
        generation = self._purges.of(space.scope, space.model, space.digest)
        if generation is None:
            raise ModelUnavailable("the state store has not been read yet: purges are not known")
        return Space(space.scope, space.model, space.digest, generation)

    def _not_purged(self, head: Head, result: Result) -> None:
        """Raises PredictionGone where something of a result was purged after it was made."""
        for part in result.parts:
            purged = (self._purges.of(head.scope, head.model, part.digest) or 0) > part.generation
            if purged or any(self._purges.purged_since(Key(row.key), row.made_at) for row in part.rows):
                raise PredictionGone("the prediction was purged")
