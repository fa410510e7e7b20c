"""The normal path of one predict request, from its bytes to its reply:

    decode → prepare → key → near → flight → far → model → keep → render

`begin` does what one turn of the event loop allows: if near has every row it returns the reply. Else the request waits
for flights, and `finish` returns the reply when they have ended. `answer` awaits whatever else a request needs: a large
body, a question that bypasses the cache, a digest that moved meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from foreseen.errors import DigestMoved, ForeseenError, ModelUnavailable
from foreseen.modelspec.prepare import Preparer
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.cache.freshness import NO_CONTROL
from foreseen.proxy.cache.waits import Wait
from foreseen.proxy.predict.answer_cache import Lookup, rendered_before
from foreseen.proxy.predict.answer_memory import CachedBody, PreparedRows
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.dialects import codecs
from foreseen.proxy.predict.dialects.decode import DecodedRequest, prepared
from foreseen.proxy.predict.dialects.render import RenderedBody
from foreseen.proxy.predict.facts import AnswerFacts
from foreseen.proxy.predict.response_bytes import Reply, fixed_lines
from foreseen.proxy.predict.serve import Server
from foreseen.proxy.predict.template_answers import TemplateRequest
from foreseen.types import Answer, Key, Question
from foreseen.web.heavy import on_loop_bytes

OFF_LOOP_ROWS = 512
"""More rows than these are rendered off the event loop."""


class PendingRequest:
    """One request that is not answered yet. `deadline` is the one it waits for, on the event loop's clock; `started`,
    and all times it notes, are on the clock that measures durations."""

    __slots__ = (
        "_began", "_cut", "_decoded", "_decoded_at", "_done", "_entry", "_futures", "_id", "_is_decoded", "_keys",
        "_known", "_leader", "_limit", "_looked", "_prepared", "_prepared_at", "_question", "_raw", "_server",
        "_waits", "body", "deadline", "followers", "forgotten", "head", "hit", "lookup", "served", "started", "task",
    )  # fmt: skip
    _decoded: DecodedRequest
    _prepared: PreparedRows
    _question: Question

    def __init__(
        self, server: Server, served: ServedModel, head: RequestHead, body: bytes, lookup: Lookup, started: float,
        deadline: float, raw: bytes | None = None, cut: TemplateRequest | None = None,
    ) -> None:  # fmt: skip
        """`lookup` is what is known of the body; `raw` are the bytes of the whole request where they may be kept; `cut`
        is what its template made of it."""
        self._cut = cut
        self._server, self.served, self.head, self.body, self.lookup = server, served, head, body, lookup
        self.started, self._limit, self.deadline, self._raw = started, deadline, deadline, raw
        self._entry: CachedBody | None = None
        self._known = self._is_decoded = False
        self._waits: Mapping[Key, Wait] = {}
        self._done: Callable[[], None] | None = None
        self._leader: PendingRequest | None = None
        self.followers: list[PendingRequest] = []
        self.hit: tuple[RenderedBody, AnswerFacts] | None = None
        self.task: asyncio.Task[None] | None = None

    def begin(self) -> Reply | None:
        """The reply where nothing has to be waited for; else None: `waits`, then `finish`, or `answer`. Raises
        ForeseenError; the rows it concerns are counted as errors."""
        server = self._server
        if not self._decode_now():
            return None
        server.pipeline.tenants.admit(self.head.tenant, 0, len(self._prepared.rows))
        if self._entry is not None and self._entry.pending is not None and self._join(self._entry.pending):
            return None
        question = server.question(self.served, self.head, self._decoded, self._prepared, self._limit)
        self._question, self.deadline = question, question.options.deadline
        if not server.is_plain(question):
            return None
        self._keys = server.keys(question, self._prepared)
        try:
            self._looked, self._waits = server.pipeline.begin(question, self._keys)
            self._began = time.perf_counter()
        except ForeseenError:
            self._count_failed_rows()
            raise
        return None if self._waits else self.finish()

    def _join(self, leader: PendingRequest) -> bool:
        """Wait for the answers of a request of the same body, unless something was purged since it began, or either
        asks for something of its own. (It halves what a hit of far costs where many ask the same.)"""
        flights, plain = self._server.pipeline.flights, leader.waits and self.head.control is NO_CONTROL
        if not plain or leader.forgotten != flights.forgotten:
            return False
        if not self._server.in_force(self.served, leader._question.space):
            return False
        self._leader, self._question, self._keys = leader, leader._question, leader._keys
        self._looked, self._waits, self._began = leader._looked, leader._waits, time.perf_counter()
        flights.trace(self.head.traceparent, self._waits)
        return True

    @property
    def waits(self) -> bool:
        """Whether it waits for flights; else it is `answer` that has to be awaited."""
        return bool(self._waits)

    def call_when_resolved(self, done: Callable[[], None]) -> None:
        """Call once: when all flights have ended, or at `expire`."""
        self._done = done
        if self._leader is not None:
            self._leader.followers.append(self)
            return
        entry, plain = self._entry, self._known and self.head.control is NO_CONTROL
        if entry is not None and plain and entry.decoded.timeout_seconds is None:
            entry.pending, self.forgotten = self, self._server.pipeline.flights.forgotten
        self._futures = [wait.future for wait in self._waits.values()]
        self._resolved()

    def _resolved(self) -> None:
        """One flight has ended; most that are waited for end together."""
        futures = self._futures
        while futures:
            if not futures[-1].done():
                self._server.pipeline.fan_out.add(futures[-1], self._resolved)
                return
            futures.pop()
        if self._entry is not None and self._entry.pending is self:
            self._entry.pending = None
        self.expire()
        if self.followers:
            self._server.pipeline.fan_out.call(follower.expire for follower in self.followers)

    def expire(self) -> None:
        """All flights have ended, or the deadline has come."""
        done, self._done = self._done, None
        if done is not None:
            done()

    def finish(self) -> Reply | None:
        """The reply when all flights have ended or the deadline has come; None where `answer` has to ask anew: a flight
        was cut short, or the model's digest moved meanwhile. Raises as `begin` does."""
        pipeline, waits, leader = self._server.pipeline, self._waits, self._leader
        self._waits, self._leader = {}, None
        if leader is not None and leader.hit is not None:
            return self._reply_with(*leader.hit, time.perf_counter())
        if leader is not None:
            waits = {key: Wait(wait.future, True) for key, wait in waits.items()}
        if waits:
            pipeline.waited(time.perf_counter() - self._began)
        try:
            answers = pipeline.finish(self._keys, self._looked, waits, self.deadline)
        except DigestMoved:
            return None
        except ForeseenError:
            self._count_failed_rows()
            raise
        return None if answers is None else self._reply(answers, plain=True)

    async def answer(self) -> Reply:
        """The reply of a request that `begin` and `finish` could not answer. Raises as they do."""
        answers = await self._answers_anew()
        answered = time.perf_counter()
        if len(answers) <= OFF_LOOP_ROWS:
            return self._reply(answers)
        rendered = await self._server.heavy.off_loop(partial(self._render, answers))
        return self._reply(answers, rendered, answered)

    async def _answers_anew(self) -> list[Answer]:
        """Ask; again where the model's digest moved in between (its preparation may have, too)."""
        server, served = self._server, self.served
        if not self._is_decoded:
            decoding = partial(codecs.decode, self.head, self.body, served)
            self._take(await server.heavy.run(decoding, len(self.body)))
            await self._prepare_anew(served.preparer())
            server.pipeline.tenants.admit(self.head.tenant, 0, len(self._prepared.rows))
        for _ in range(4):
            if self._prepared.preparer is not served.preparer():
                await self._prepare_anew(served.preparer())
            if not self._prepared.rows:
                return []
            self._question = server.question(served, self.head, self._decoded, self._prepared, self._limit)
            try:
                return await server.answers(self._question, self._prepared)
            except DigestMoved as moved:
                if served.facts is None or served.facts.digest != moved.digest:  # no other request has asked meanwhile
                    await served.refresh()
            except ForeseenError:
                self._count_failed_rows()
                raise
        self._count_failed_rows()
        raise ModelUnavailable(f"model {served.manifest.name!r} is changing its version")

    def _decode_now(self) -> bool:
        """decode and prepare, or what is known of the body; False where that is too much for one turn."""
        preparer, entry = self.served.preparer(), self.lookup.entry
        if entry is not None and entry.served is self.served and entry.prepared.preparer is preparer:
            self._known = self._is_decoded = True
            self._entry, self._decoded, self._prepared = entry, entry.decoded, entry.prepared
            own = self.lookup.id
            self._id = entry.decoded.output_options.id if own is None else own.decode()
            self._decoded_at = self._prepared_at = time.perf_counter()
            return True
        if self._cut is not None and self._cut.prepared.preparer is preparer:
            self._take(self._cut.decoded)
            self._use(self._cut.prepared)
            return True
        if len(self.body) > on_loop_bytes(preparer.heavy):
            return False
        self._take(codecs.decode(self.head, self.body, self.served))
        self._decoded, rows = prepared(self._decoded, preparer)
        self._use(PreparedRows(preparer, rows))
        return True

    async def _prepare_anew(self, preparer: Preparer) -> None:
        """prepare, in a thread where that is much."""
        work, limit = partial(prepared, self._decoded, preparer), on_loop_bytes(preparer.heavy)
        self._decoded, rows = await self._server.heavy.run(work, len(self.body), limit)
        self._use(PreparedRows(preparer, rows))

    def _take(self, decoded: DecodedRequest) -> None:
        self._decoded, self._is_decoded = decoded, True
        self._decoded_at, self._id = time.perf_counter(), decoded.output_options.id

    def _use(self, prepared: PreparedRows) -> None:
        """Newly decoded and prepared rows; remembered where their body came before."""
        self._prepared, self._prepared_at, self._known = prepared, time.perf_counter(), False
        self._server.metrics.stages.add("decode", self._decoded_at - self.started)
        self._server.metrics.stages.add("prepare", self._prepared_at - self._decoded_at)
        self._entry = self._server.cache.keep(self.lookup, self.served, self._decoded, prepared)

    def _render(self, answers: Sequence[Answer]) -> RenderedBody:
        """render, or the body that the same predictions were rendered to before."""
        predictions = [answer.prediction for answer in answers]
        rendered = None if self._entry is None else rendered_before(self._entry, predictions)
        if rendered is None and self._cut is not None and self._prepared is self._cut.prepared:
            rendered = self._server.templates.render(self._cut, predictions)
        return rendered or codecs.render(self.served.manifest, predictions, self._decoded.output_options)

    def _reply(
        self, answers: Sequence[Answer], rendered: RenderedBody | None = None, answered: float = 0.0, *,
        plain: bool = False,
    ) -> Reply:  # fmt: skip
        """The reply that answers make, counted; what may come again is kept where the question was `plain`."""
        server, served, decoded = self._server, self.served, self._decoded
        if rendered is None:
            answered = time.perf_counter()
            rendered = self._render(answers)
        why = None
        if answers and answers[0].source == "bypass":
            why = "sequence" if decoded.sequence else server.unknown(self._question.space)
        now, no_cache = server.pipeline.tiers.clock(), self.head.control.no_cache
        facts = AnswerFacts.of(answers, served, now, why, requested=no_cache)
        if plain and self._entry is not None:
            self._keep(self._entry, rendered, facts, answers)
        if plain and self._cut is None and not self._known:
            predictions = [answer.prediction for answer in answers]
            server.templates.learn(served, self.lookup, decoded, self._prepared, predictions, rendered)
        if facts.result == "hit":
            self.hit = rendered, facts
        server.metrics.stages.add("render", time.perf_counter() - answered)
        return self._reply_with(rendered, facts, answered)

    def _reply_with(self, rendered: RenderedBody, facts: AnswerFacts, answered: float) -> Reply:
        """The reply that a rendered body and what is to be said of it make for this request, counted."""
        server = self._server
        timing = self._timing(facts, answered) if server.server_timing else None
        body, length = rendered.with_id(self._id)
        seconds = time.perf_counter() - self.started
        server.counter.answered(self.head, self.served, facts, self._decoded.lane, seconds)
        return Reply(200, fixed_lines(length) + facts.lines(timing), body)

    def _keep(
        self, entry: CachedBody, rendered: RenderedBody, facts: AnswerFacts, answers: Sequence[Answer]
    ) -> None:  # fmt: skip
        """Keep a reply with its body; one that near had all rows of may be sent again. (One of the background lane may
        not: what is sent again is counted as online.)"""
        near = len(answers) == facts.sources.get("near") and self._decoded.lane == "online"
        if near or entry.rendered is not rendered:
            predictions = [answer.prediction for answer in answers]
            self._server.cache.keep_reply(entry, rendered, predictions, self._question.space if near else None)
        if near and self._raw is not None and self.lookup.id is None:
            self._server.cache.keep_request(self._raw, self.head, entry)

    def _timing(self, facts: AnswerFacts, answered: float) -> str:
        if self._known and facts.result == "hit":
            return facts.timing(f"shortcut, answer;dur={1000 * (answered - self.started):.3f}")
        decoding, preparing = self._decoded_at - self.started, self._prepared_at - self._decoded_at
        answering = answered - self._prepared_at
        return facts.timing(
            f"decode;dur={1000 * decoding:.3f}, prepare;dur={1000 * preparing:.3f}, answer;dur={1000 * answering:.3f}"
        )

    def _count_failed_rows(self) -> None:
        self._server.counter.failed_rows(self.served, len(self._prepared.rows), self._decoded.lane)
