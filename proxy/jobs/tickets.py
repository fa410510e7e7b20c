"""A question that may be answered later ↔ a job in the queue, a ticket for whoever asked, and the answer in the end.

A job is tenant + keys: who asks the same while it is under way, or as long as its result is fresh, gets a ticket of the
same job. A ticket is a job and the wish of its asker; its id is all that it takes to fetch the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import structlog
from msgspec import Struct

from foreseen.errors import (
    BadRequest,
    DeadlineExceeded,
    EntryError,
    ForeseenError,
    KeyReused,
    ModelUnavailable,
    NotCached,
    NotFinished,
    PredictionCancelled,
    PredictionGone,
    UnknownModel,
    UnknownPrediction,
)
from foreseen.keys.entry import FAR_OVERHEAD_BYTES
from foreseen.modelspec.manifest import Manifest
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.members import tensor_outputs
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.cache.freshness import Control, steps_of
from foreseen.proxy.jobs.job_notifications import JobNotifications
from foreseen.proxy.predict import codecs
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.facts import AnswerFacts
from foreseen.proxy.predict.heavy import OFF_LOOP_BYTES, OFF_LOOP_TEXT_BYTES, Heavy
from foreseen.proxy.predict.pipeline import Pipeline
from foreseen.proxy.predict.response_bytes import headers_of
from foreseen.queue.queue import Queue
from foreseen.queue.queue_types import OPEN_STATES, Extras, JobState
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
    answers_of,
    distinct,
    new_job,
    new_nonce,
)
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.types import ALL_STEPS, ANY_AGE, Answer, Key, Question, RequestOptions, Space, Steps

BATCH = ""
"""The model of a batch's head: it has many, or none."""
LOOK_SECONDS = 0.25
"""How long near and far have to say that they know all rows, before the question becomes a job."""

R = TypeVar("R", bound=Struct)

log = structlog.get_logger()


class JobPurges(Protocol):
    """What is needed of purges."""

    def of(self, model: str, digest: str) -> int | None: ...
    def purged_since(self, key: Key, made_at: float) -> bool: ...


class TicketOptions(Struct, frozen=True):
    """How a ticket is asked for, besides its question: where its end is told, the batch that it is an item of, the name
    and fingerprint of an idempotency key (empty where there is none), and whether an answer at once will do instead."""

    webhook: str | None = None
    batch: bytes = b""
    once: bytes = b""
    fingerprint: bytes = b""
    at_once: bool = True
    caller: str | None = None
    """Who asks, and is held to a share of the queue: the client's address, until there are tenants."""


PLAINLY = TicketOptions()


class TicketIssued(Struct, frozen=True):
    """A ticket as it was handed out."""

    id: str
    state: JobState
    model: str
    rows: int


class TicketStatus(Struct, frozen=True):
    """A ticket and its job, as they stand. Times are Unix seconds. `failure` is there where the state is `failed`."""

    id: str
    state: JobState
    version: int
    model: str
    rows: int
    done: int
    created_at: float
    started_at: float | None
    ended_at: float | None
    attempts: int
    failure: Failure | None = None
    unsuccessful: int = 0
    """Of a batch: items that have ended in another way than with an answer."""

    @property
    def ended(self) -> bool:
        return self.state not in OPEN_STATES


class Fetched(Struct, frozen=True):
    """A result, rendered as its ticket wishes: body, JSON length where tensors follow, headers."""

    body: bytes
    length: int | None
    headers: dict[str, str]


class Failed(ForeseenError):
    """A job's failure, told as `/infer` would have: status and code are its own."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.status, self.code = failure.status, failure.code  # type: ignore[misc]


class Jobs:
    """Jobs and tickets, as one proxy process hands them out."""

    def __init__(
        self,
        queue: Queue,
        records: Records,
        pipeline: Pipeline,
        served: Mapping[str, ServedModel],
        purges: JobPurges,
        metrics: ProxyMetrics,
        heavy: Heavy | None = None,
    ) -> None:
        self.heavy = heavy or Heavy()
        self.news = JobNotifications(queue)
        self._queue = queue
        self._records = records
        self._pipeline = pipeline
        self._served = served
        self._purges = purges
        self._metrics = metrics

    async def submit(
        self, served: ServedModel, ask: RequestHead, body: bytes, options: TicketOptions = PLAINLY
    ) -> TicketIssued | None:
        """A ticket for a question; None where it is better answered at once: near and far know every row (and the
        manner allows it), it has none, it must not wait for the model, or belongs to a sequence.

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
        space, preparation, preparer = self._in_force(served), served.preparation, served.preparer()
        limit = OFF_LOOP_TEXT_BYTES if preparer.heavy else OFF_LOOP_BYTES
        rows = await self.heavy.run(lambda: preparer.rows(asked.inputs), size, limit)
        frames, scope = served.framer.frames(rows, asked.parameters), space.scope
        keys = self._pipeline.keyed(space, frames)
        question = Question(space, rows, self._terms(steps, control), asked.parameters)
        if not rows or (options.at_once and await self._is_known(question, keys)):
            return await self.used(scope, options)  # the same request may have been here, and be answered, meanwhile
        shared = steps == ALL_STEPS and control.age_limits == ANY_AGE
        same = self._records.same(keys) if shared else NEVER_SAME
        unique, places = await self.heavy.run(lambda: distinct(frames), size)
        for sharing in (same, NEVER_SAME) if same else (NEVER_SAME,):
            job, nonce, seal = new_job(), new_nonce(), self._records.seal
            head = Head(
                job, sharing, scope, served.manifest.name, preparation, len(rows), sorted(steps), asked.parameters
            )
            sealed = seal(Rows(job, unique, places))
            ticket = seal(Ticket(nonce, scope, sharing or job, asked.output_options, options.once))
            room = len(sealed) + 1024 + len(places) + len(unique) * _row_bytes(served.manifest)
            extras = self.extras(options, nonce, scope)
            given = await self._queue.submit(sharing, job, nonce, seal(head), sealed, ticket, len(rows), room, extras)
            if given.nonce != nonce:
                return await self.promised(given.job, given.nonce, scope, options.once)
            if given.job == job or self._is_same(given.job, given.head, same):
                id_ = self._records.ticket_id(given.job, nonce, scope)
                return TicketIssued(id_, given.state, head.model, len(rows))
        raise AssertionError("a job that is shared with nobody is its own")

    def extras(self, options: TicketOptions, nonce: bytes, scope: str) -> Extras:
        """What the store keeps of a manner."""
        hook = b""
        if options.webhook is not None:
            hook = self._records.seal(Hook(nonce, scope, options.webhook))
        caller = b"" if options.caller is None else self._records.caller(scope, options.caller)
        return Extras(hook, options.batch, options.once, options.fingerprint, caller)

    def options(self, scope: str, webhook: str | None, key: str | None, *request: bytes) -> TicketOptions:
        """A manner with an idempotency key for a request, which is told from others by these parts of it."""
        if key is None:
            return TicketOptions(webhook)
        parts = (webhook or "").encode(), *request
        return TicketOptions(
            webhook, once=self._records.once(scope, key), fingerprint=self._records.fingerprint(*parts)
        )

    async def used(self, scope: str, options: TicketOptions) -> TicketIssued | None:
        """The ticket that an idempotency key stands for; None where it is new or its ticket is forgotten.

        Raises KeyReused where it stands for another request.
        """
        known = await self._queue.used(options.once) if options.once else None
        if known is None or await self._queue.see(known[1], known[2]) is None:
            return None
        if known[0] != options.fingerprint:
            raise KeyReused("Idempotency-Key: belongs to a request with another body")
        return await self.promised(known[1], known[2], scope, options.once)

    async def promised(self, job: bytes, nonce: bytes, scope: str, once: bytes) -> TicketIssued:
        """A ticket that the store says an idempotency key stands for: it must be one that was made for this key."""
        seen = await self._see(job, nonce)
        head = self._open(Head, job, seen.head)
        if self._open_ticket(head, nonce, scope, seen.ticket).once != once:
            raise self._tampered(EntryError("identity"))
        return TicketIssued(self._records.ticket_id(job, nonce, scope), seen.state, head.model, seen.rows)

    def _is_same(self, job: bytes, head: bytes, same: bytes) -> bool:
        """Whether the job that the store takes for this question's really is: it could have been tampered with."""
        try:
            return self._records.open_of(Head, job, head).same == same
        except EntryError as error:
            self._metrics.verify_failed.labels(error.reason).inc()
            return False

    async def look(self, ticket: str, scope: str) -> TicketStatus:
        """How a ticket stands. Raises UnknownPrediction, PredictionGone, QueueUnavailable."""
        job, nonce = self.read_id(ticket, scope)
        seen = await self._see(job, nonce)
        head = self._open(Head, job, seen.head)
        self._open_ticket(head, nonce, scope, seen.ticket)
        failure = None
        if seen.state == "failed":
            failure = self._open(Failure, job, (await self._see(job, nonce, record=True)).record)
        return TicketStatus(
            ticket, seen.state, seen.version, head.model, seen.rows, seen.done, seen.created_at, seen.begun_at,
            seen.ended_at, seen.attempts, failure, seen.unsuccessful,
        )  # fmt: skip

    def read_id(self, ticket: str, scope: str) -> tuple[bytes, bytes]:
        """A ticket's job and nonce. Raises UnknownPrediction."""
        known = self._records.read_ticket_id(ticket, scope)
        if known is None:
            raise UnknownPrediction("there is no such prediction")
        return known

    async def until(self, ticket: str, scope: str, seconds: float, version: int | None = None) -> TicketStatus:
        """Wait until a ticket has ended, or is of a later version than this; how it stands then."""
        job, _ = self.read_id(ticket, scope)
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        with self.news.of(job, end_alone=version is None) as watch:
            while True:
                seen = await self.look(ticket, scope)
                left = end - loop.time()
                if seen.ended or (version is not None and seen.version > version) or left <= 0 or self.news.closing:
                    return seen
                await watch.wait(left)

    async def fetch(self, ticket: str, scope: str, seconds: float = 0.0) -> Fetched | Batch:
        """The result of a ticket, as `/infer` would have sent it; of a batch its items. Waits for it, at most so long.

        Raises NotFinished, PredictionGone, PredictionCancelled, and what the job failed with.
        """
        job, nonce = self.read_id(ticket, scope)
        if not seconds:
            return await self.fetched(job, nonce, scope, await self._see(job, nonce, record=True))
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        with self.news.of(job, end_alone=True) as watch:
            while True:
                seen = await self._see(job, nonce, record=True)
                left = end - loop.time()
                if seen.state not in OPEN_STATES or left <= 0 or self.news.closing:
                    return await self.fetched(job, nonce, scope, seen)
                await watch.wait(left)

    async def fetched(self, job: bytes, nonce: bytes, scope: str, seen: Stored) -> Fetched | Batch:
        """The same of a ticket that was looked up, with its record."""
        if seen.state in OPEN_STATES:
            raise NotFinished(f"the prediction is {seen.state}", retry_after=1)
        head = self._open(Head, job, seen.head)
        output_options = self._open_ticket(head, nonce, scope, seen.ticket).output_options
        if head.model == BATCH and seen.record is not None:  # whose items have ends of their own, however it ended
            return self._open(Batch, job, seen.record)
        match seen.state:
            case "cancelled":
                raise PredictionCancelled("the prediction was cancelled")
            case "expired":
                raise PredictionGone("the prediction was not computed in time")
            case "failed":
                raise Failed(self._open(Failure, job, seen.record))
        result = self._open(Result, job, seen.record)
        served = self._served.get(head.model)
        if served is None:
            raise UnknownModel(head.model)
        self._not_purged(head.model, result)
        answers = self._answers(result)
        _renderable(served.manifest, answers)
        now = self._pipeline.tiers.clock()
        predictions, size = [answer.prediction for answer in answers], len(seen.record or b"")
        rendered = await self.heavy.run(lambda: codecs.render(served.manifest, predictions, output_options), size)
        body, length = rendered.with_id(output_options.id)
        facts = AnswerFacts.of(answers, served, now, requested=not {"near", "far"} & set(head.steps))
        return Fetched(body, length, dict(headers_of(facts.lines())))

    async def cancel(self, ticket: str, scope: str) -> TicketStatus:
        """Cancel a ticket that has not ended, and with the last one its job; how it stands then."""
        job, nonce = self.read_id(ticket, scope)
        if not await self._queue.cancel(job, nonce):
            raise PredictionGone("the prediction has expired")
        return await self.look(ticket, scope)

    async def close(self) -> None:
        await self.news.close()
        await self._queue.close()

    def _terms(self, steps: Steps, control: Control) -> RequestOptions:
        """Those of the look whether a question needs a job at all."""
        deadline = asyncio.get_running_loop().time() + LOOK_SECONDS
        return RequestOptions(deadline, steps=steps & {"near", "far"}, age_limits=control.age_limits)

    async def _is_known(self, question: Question, keys: Sequence[Key]) -> bool:
        """Whether near and far have every row, in time. Questions that become jobs are mostly new as a whole: far is
        asked for the first row that near lacks, and only where it has that one for the rest."""
        options, tiers = question.options, self._pipeline.tiers
        if not options.steps:
            return False
        lacking = next((key for key in keys if tiers.near.peek(key) is None), None)
        if lacking is not None and len(keys) > 1 and "far" in options.steps:
            policy = self._pipeline.models[question.space.model].freshness
            if not (await tiers.look_far(question.space, [lacking], policy, options.age_limits)).found:
                return False
        try:
            await self._pipeline.answer(question, keys)
        except (NotCached, DeadlineExceeded):
            return False
        return True

    def _in_force(self, served: ServedModel) -> Space:
        """The model's space, with what was purged. Raises ModelUnavailable where that is not known."""
        space = served.space()
        generation = self._purges.of(space.model, space.digest)
        if generation is None:
            raise ModelUnavailable("the state store has not been read yet: nobody knows what was purged")
        return Space(space.scope, space.model, space.digest, generation)

    def _not_purged(self, model: str, result: Result) -> None:
        """Raises PredictionGone where something of a result was purged after it was made."""
        for part in result.parts:
            purged = (self._purges.of(model, part.digest) or 0) > part.generation
            if purged or any(self._purges.purged_since(Key(row.key), row.made_at) for row in part.rows):
                raise PredictionGone("the prediction was purged")

    async def _see(self, job: bytes, nonce: bytes, *, record: bool = False) -> Stored:
        seen = await self._queue.see(job, nonce, record=record)
        if seen is None:
            raise PredictionGone("the prediction has expired")
        return seen

    def _open(self, kind: type[R], job: bytes, value: bytes | None) -> R:
        """A record of a job. What is not what was stored there is no answer: raises PredictionGone."""
        try:
            return self._records.open_of(kind, job, value or b"")
        except EntryError as error:
            raise self._tampered(error) from None

    def _open_ticket(self, head: Head, nonce: bytes, scope: str, value: bytes) -> Ticket:
        """A ticket of the job of this head, and of nobody else's."""
        try:
            ticket = self._records.open(Ticket, value)
        except EntryError as error:
            raise self._tampered(error) from None
        if (ticket.nonce, ticket.scope) != (nonce, scope) or not ticket.is_of(head):
            raise self._tampered(EntryError("identity"))
        return ticket

    def _answers(self, result: Result) -> list[Answer]:
        try:
            return answers_of(result)
        except EntryError as error:
            raise self._tampered(error) from None

    def _tampered(self, error: EntryError) -> PredictionGone:
        self._metrics.verify_failed.labels(error.reason).inc()
        log.error("a record of the state store is not what was put there", reason=error.reason)
        return PredictionGone("what the state store holds of the prediction is not what was put there")


def _renderable(manifest: Manifest, answers: list[Answer]) -> None:
    """Raises PredictionGone where the model has another signature by now."""
    wanted = [output.name for output in manifest.model.outputs]
    some = manifest.outputs == "requested"
    for answer in answers:
        names = [output.name for output in tensor_outputs(answer.prediction)]
        if names == wanted or (some and set(names) <= set(wanted)):
            continue
        raise PredictionGone("the model has another signature since")


def _row_bytes(manifest: Manifest) -> int:
    """What a row's result is likely to take, as far as its outputs have a fixed size."""
    size = FAR_OVERHEAD_BYTES
    for output in manifest.model.outputs:
        elements = 1
        for dim in output.shape[1:]:
            elements *= dim if isinstance(dim, int) else 1
        size += elements * max(1, DATATYPES[output.datatype].size)
    return size
