"""One request through all nine words: decode → prepare → (pipeline) → render, with the facts counted and shown.

What the pipeline says of each row becomes `Cache-Status` (RFC 9211), `Age` (RFC 9111), `Server-Timing` and counters.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import msgspec
from msgspec import Struct

from foreseen.errors import BadInput, DigestMoved, ForeseenError, ModelUnavailable, NotCached, StateUnavailable
from foreseen.modelspec.prepare import Preparer
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.cache.freshness import steps_of
from foreseen.proxy.cache.waits import Wait
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.decode import DecodedRequest, decode_v1, decode_v2
from foreseen.proxy.predict.explain_rows import explain_rows
from foreseen.proxy.predict.facts import AnswerFacts
from foreseen.proxy.predict.import_rows import decode_import, import_rows, predictions_of
from foreseen.proxy.predict.observe import Observer
from foreseen.proxy.predict.pipeline import SLICE_ROWS, Journey, Pipeline
from foreseen.proxy.predict.render import Drawn, draw, render
from foreseen.proxy.predict.shortcut import Entry, Found, Known, Shortcuts, plain_id
from foreseen.telemetry.meters import Hits
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.types import ALL_STEPS, Answer, Explanation, Key, Lane, Prediction, Question, RequestOptions, Space, Steps

T = TypeVar("T")

OFF_LOOP_BYTES = 32 * 1024
"""A larger body is parsed and prepared off the event loop; a smaller one costs less than the hop to a thread."""
OFF_LOOP_TEXT_BYTES = 4 * 1024
"""The same for text that goes through a tokenizer, which costs about 30 µs for a short sentence."""
OFF_LOOP_ROWS = 512
"""More rows than these are rendered off the event loop."""
_SAVED = ("near", "far", "stale", "collapsed")


class Reply(Struct, frozen=True):
    """A rendered answer: body, JSON length where tensors follow, headers, its result label, and what was asked and
    answered (None for a request without rows)."""

    body: bytes
    length: int | None
    headers: dict[str, str]
    result: str
    question: Question | None
    keys: Sequence[Key]
    answers: Sequence[Answer]


class Times(Struct):
    """When a request's steps were done, on the clock that measures durations."""

    started: float
    decoded: float = 0.0
    prepared: float = 0.0


NOBODY_JOINS = -1


class Hit(Struct, frozen=True):
    """Answers that are all fresh hits: rows of near and far, compute seconds saved, the span of Unix seconds in which
    they are fresh, seconds that far took, and what they are rendered to."""

    drawn: Drawn
    near: int
    far: int
    saved: float
    until: float
    made_at: float
    trip: float | None


class Visit(Struct):
    """A request on its way: decoded, keyed and aboard, but not answered yet."""

    served: ServedModel
    asked: DecodedRequest
    journey: Journey
    times: Times
    requested: bool
    """Whether it said no-cache."""
    own: bytes | None
    """Its id, where that is plain."""
    entry: Entry | None
    forgotten: int
    """How many keys had been purged when it boarded; NOBODY_JOINS where its body is not known."""
    waiting: list[Callable[[], None]]
    """Told when all of it has landed."""
    hit: Hit | None = None
    """What all who take this visit are answered, where all of it turns out to be hits."""


class ServerPurges(Protocol):
    """What a server needs to know of purges."""

    def of(self, model: str, digest: str) -> int | None:
        """The generation of a model's space; None as long as nobody can say what was purged."""

    def formerly(self, model: str, digest: str) -> list[int]:
        """The generations it had before."""

    def was_purged(self, key: Key) -> bool:
        """Whether this very key was ever purged."""


class Server:
    """Serves predictions of one proxy process."""

    def __init__(
        self,
        pipeline: Pipeline,
        observer: Observer,
        metrics: ProxyMetrics,
        *,
        observed: frozenset[str] = frozenset(),
        server_timing: bool = True,
        purges: ServerPurges,
        shortcut_bytes: int = 0,
    ) -> None:
        self.shortcuts = Shortcuts(shortcut_bytes)
        self._pipeline = pipeline
        self._observer = observer
        self._observed = observed
        self._metrics = metrics
        self._server_timing = server_timing
        self._purges = purges
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="prepare")

    async def answer(self, served: ServedModel, ask: RequestHead, body: bytes, deadline: float) -> Reply:
        """Body → reply. Raises ForeseenError; the rows it concerns are counted as errors."""
        times, found = Times(time.perf_counter()), self.shortcuts.find(ask, body)
        preparer, entry = served.preparer(), self._entry(found, served)
        if entry is None:
            asked = await self._off_loop(lambda: decoded(served, ask, body), len(body) > OFF_LOOP_BYTES)
            times.decoded = time.perf_counter()
            known = await self._known(preparer, asked, len(body))
            times.prepared = time.perf_counter()
            entry = self.shortcuts.keep(found, served, asked, known)
        else:
            asked, known = entry.asked, entry.known
            times.decoded = times.prepared = time.perf_counter()
        question, keys, answers = await self._ask(served, ask, asked, known, len(body), deadline)
        answered = time.perf_counter()
        facts = self._facts(served, asked, question, answers, requested=ask.control.no_cache)
        many = len(answers) > OFF_LOOP_ROWS
        predictions = [answer.prediction for answer in answers]
        output_options = asked.output_options if entry is None else entry.output_options(found.id)
        rendered, length = await self._off_loop(lambda: render(served.manifest, predictions, output_options), many)
        return self._reply(served, facts, times, answered, (rendered, length), question, keys, answers)

    def at_once(
        self, served: ServedModel, ask: RequestHead, body: bytes, deadline: float, found: Found
    ) -> Visit | None:
        """The same as far as it needs no waiting: near was looked at, and what it lacks has boarded. None where nothing
        is begun and `answer` has to be asked: for large bodies that are not known, for what goes past the cache, and in
        the background lane, whose rows are counted apart: here, and where replies are kept, nobody has to ask for it.
        Raises as `answer` does."""
        if served.steps != ALL_STEPS or served.manifest.name in self._observed:
            return None
        times, preparer = Times(time.perf_counter()), served.preparer()
        entry = self._entry(found, served)
        if entry is None:
            if len(body) > (OFF_LOOP_TEXT_BYTES if preparer.heavy else OFF_LOOP_BYTES):
                return None
            asked = decoded(served, ask, body)
            times.decoded = time.perf_counter()
            known = Known(preparer, preparer.rows(asked.inputs))
            times.prepared = time.perf_counter()
            own = None if asked.output_options.id is None else plain_id(asked.output_options.id)
            entry = self.shortcuts.keep(found, served, asked, known)
        else:
            asked, known, own = entry.asked, entry.known, found.id
            times.decoded = times.prepared = times.started
        space = self.space(served)
        apart = asked.sequence or asked.lane == "background"
        if apart or not 0 < len(known.rows) <= SLICE_ROWS or self._unknown(space):
            return None
        question = self._question(served, space, ask, asked, known, deadline)
        keys = self._keys(question, known)
        try:
            journey = self._pipeline.set_out(question, keys)
        except ForeseenError:
            self._count_errors(served, len(keys))
            raise
        return Visit(served, asked, journey, times, ask.control.no_cache, own, entry, NOBODY_JOINS, [])

    def again(self, served: ServedModel, ask: RequestHead, deadline: float, found: Found, entry: Entry) -> Visit | None:
        """`at_once` for a body that is known and asks for nothing special, in the space that its keys are of."""
        known, asked = entry.known, entry.asked
        space = known.space
        if (
            space is None
            or not self.in_force(served, space)
            or served.steps != ALL_STEPS
            or len(known.keys) > SLICE_ROWS
        ):
            return None
        if asked.timeout_seconds is not None:
            deadline = min(deadline, _now() + asked.timeout_seconds)
        options = RequestOptions(deadline, asked.lane, ALL_STEPS, ask.traceparent)
        question = Question(space, known.rows, options, known.parameters)
        try:
            journey = self._pipeline.set_out(question, known.keys)
        except ForeseenError:
            self._count_errors(served, len(known.keys))
            raise
        forgotten = self._pipeline.flights.forgotten
        return Visit(served, asked, journey, Times(journey.joined_at), False, found.id, entry, forgotten, [])

    def may_join(self, visit: Visit) -> bool:
        """Whether a request of the same known body may wait for this visit's answers: its space is in force, nothing
        was purged since it boarded, and its body says nothing of how long that takes."""
        if visit.asked.timeout_seconds is not None or visit.forgotten != self._pipeline.flights.forgotten:
            return False
        return self.in_force(visit.served, visit.journey.question.space)

    def joined(self, visit: Visit, own: bytes | None, deadline: float) -> Visit:
        """The same visit as one who joined it sees it: its rows were aloft already, its deadline is another."""
        served, asked, journey, times, requested, _, entry, forgotten, waiting, hit = msgspec.structs.astuple(visit)
        waits = {key: Wait(wait.future, True) for key, wait in journey.waits.items()}
        old = journey.question
        options = RequestOptions(
            deadline, old.options.lane, old.options.steps, old.options.traceparent, old.options.age_limits
        )
        question = Question(old.space, old.rows, options, old.parameters)
        journey = Journey(question, journey.keys, journey.looked, waits, journey.joined_at)
        return Visit(served, asked, journey, times, requested, own, entry, forgotten, waiting, hit)

    def landed(self, visit: Visit) -> list[Answer] | None:
        """The answers of a visit whose flights have landed, or whose deadline has come. None where `answer` has to be
        asked anew: a flight was cut short, or the model's digest moved meanwhile. Raises as `answer` does."""
        try:
            return self._pipeline.arrive(visit.journey)
        except DigestMoved:
            return None
        except ForeseenError:
            self._count_errors(visit.served, len(visit.journey.keys))
            raise

    def replied(self, visit: Visit, answers: Sequence[Answer]) -> Reply:
        """The reply that a visit's answers make."""
        served, journey = visit.served, visit.journey
        answered = time.perf_counter()
        facts = self._facts(served, visit.asked, journey.question, answers, requested=visit.requested)
        output_options = visit.asked.output_options if visit.entry is None else visit.entry.output_options(visit.own)
        rendered = render(served.manifest, [answer.prediction for answer in answers], output_options)
        return self._reply(served, facts, visit.times, answered, rendered, journey.question, journey.keys, answers)

    def _entry(self, found: Found, served: ServedModel) -> Entry | None:
        """What is known of a body, where it is of this served model as it is prepared now."""
        entry = found.entry
        if entry is None or entry.served is not served or entry.known.preparer is not served.preparer():
            return None
        return entry

    def drawn(self, visit: Visit, predictions: Sequence[Prediction]) -> Drawn | None:
        """The rendered body, whatever the id; None where the request has one that has to be quoted. What a known body
        was rendered to before is good for predictions of the same bytes."""
        if visit.own is None and visit.asked.output_options.id is not None:
            return None
        entry, started = visit.entry, time.perf_counter()
        if entry is not None and entry.drawn is not None and entry.drawn.of(predictions):
            return entry.drawn
        drawn = draw(visit.served.manifest, predictions, visit.asked.output_options)
        if entry is not None:
            self.shortcuts.draw(entry, drawn)
        self._metrics.stages.add("render", time.perf_counter() - started)
        return drawn

    def _facts(
        self,
        served: ServedModel,
        asked: DecodedRequest,
        question: Question | None,
        answers: Sequence[Answer],
        *,
        requested: bool,
    ) -> AnswerFacts:
        why = "sequence" if asked.sequence else None if question is None else self._unknown(question.space)
        facts = AnswerFacts.of(answers, served, self._pipeline.tiers.clock(), why, requested=requested)
        self._count(served, facts, answers, asked.lane)
        return facts

    def _reply(
        self,
        served: ServedModel,
        facts: AnswerFacts,
        times: Times,
        answered: float,
        rendered: tuple[bytes, int | None],
        question: Question | None,
        keys: Sequence[Key],
        answers: Sequence[Answer],
    ) -> Reply:
        headers = facts.headers()
        decoding, preparing = times.decoded - times.started, times.prepared - times.decoded
        if self._server_timing:
            timings = {"decode": decoding, "prepare": preparing, "answer": answered - times.prepared}
            headers["Server-Timing"] = facts.timing(timings)
        done, stage = time.perf_counter(), self._metrics.stages.add
        stage("decode", decoding)
        stage("prepare", preparing)
        stage("render", done - answered)
        computed = facts.sources["model"] + facts.sources["bypass"]
        self._observe(served, facts.result, done - times.started, len(answers), computed)
        return Reply(*rendered, headers, facts.result, question, keys, answers)

    def in_force(self, served: ServedModel, space: Space) -> bool:
        """Whether this is the space that a question would be asked in now."""
        facts = served.facts
        if facts is None or facts.digest != space.digest:
            return False
        return self._purges.of(space.model, space.digest) == space.generation

    def space(self, served: ServedModel) -> Space:
        """The space in force: of the digest that the process says, in the generation that purges have left."""
        return self._in_force(served.space())

    async def explain(self, served: ServedModel, ask: RequestHead, body: bytes) -> list[Explanation]:
        """Where the rows of a request are, or why they would be misses. Asks no model and changes nothing."""
        asked = await self._off_loop(lambda: decoded(served, ask, body), len(body) > OFF_LOOP_BYTES)
        known = await self._known(served.preparer(), asked, len(body))
        space = self.space(served)
        steps: Steps = frozenset(("model",)) if asked.sequence else served.steps
        question = Question(space, known.rows, RequestOptions(_now() + ask.seconds, steps=steps), asked.parameters)
        former = [self._in_force(Space(space.scope, space.model, digest)) for digest in served.former]
        before = self._purges.formerly(space.model, space.digest)
        former += [Space(space.scope, space.model, space.digest, generation) for generation in before]
        return await explain_rows(self._pipeline, question, former, self._purges.was_purged)

    async def import_rows(self, served: ServedModel, header_length: int | None, body: bytes) -> tuple[int, list[int]]:
        """Store what a batch run has computed: how many rows, and which of them were there. Asks no model.

        Raises BadInput (also for another model's predictions), StateUnavailable, FarUnavailable.
        """
        heavy = len(body) > OFF_LOOP_BYTES
        brought = await self._off_loop(lambda: decode_import(body, header_length, served.manifest), heavy)
        space = self.space(served)
        if brought.digest != space.digest:
            told = f"the outputs are of model {brought.digest[:16]}…, in force is {space.digest[:16]}…"
            raise BadInput(f"parameters.digest: {told}; predict them again")
        if served.steps != ALL_STEPS or served.manifest.rows == "together":
            raise BadInput("answers of this model are not cached by the row")
        if self._unknown(space):
            raise StateUnavailable("the state store does not answer, so what was purged is not known")
        preparer, at = served.preparer(), self._pipeline.tiers.clock()
        rows = await self._off_loop(lambda: preparer.rows(brought.inputs), heavy)
        predictions = await self._off_loop(lambda: predictions_of(brought, rows, served.manifest, at), heavy)
        had = await import_rows(self._pipeline, space, rows, brought.parameters, predictions)
        self._metrics.imported_rows.labels(space.model, "had").inc(len(had))
        self._metrics.imported_rows.labels(space.model, "stored").inc(len(rows) - len(had))
        return len(rows), had

    async def _ask(
        self, served: ServedModel, ask: RequestHead, asked: DecodedRequest, known: Known, size: int, deadline: float
    ) -> tuple[Question | None, Sequence[Key], list[Answer]]:
        """Ask; again where the model's digest moved in between (its preparation may have, too)."""
        for last in (False, False, False, True):
            preparer = served.preparer()
            if known.preparer is not preparer:
                known = await self._known(preparer, asked, size)
            if not known.rows:
                return None, (), []
            question = self._question(served, self.space(served), ask, asked, known, deadline)
            try:
                return question, *await self._answer(question, known)
            except DigestMoved as moved:
                if last:
                    break
                if served.facts is None or served.facts.digest != moved.digest:  # nobody else has asked meanwhile
                    await served.refresh()
            except ForeseenError:
                self._count_errors(served, len(known.rows), asked.lane)
                raise
        self._count_errors(served, len(known.rows), asked.lane)
        raise ModelUnavailable(f"model {served.manifest.name!r} is changing its version")

    def _question(
        self, served: ServedModel, space: Space, ask: RequestHead, asked: DecodedRequest, known: Known, deadline: float
    ) -> Question:
        if asked.timeout_seconds is not None:
            deadline = min(deadline, _now() + asked.timeout_seconds)
        past = asked.sequence or self._unknown(space) is not None
        steps = steps_of(ask.control, frozenset(("model",)) if past else served.steps)
        options = RequestOptions(deadline, asked.lane, steps, ask.traceparent, ask.control.age_limits)
        return Question(space, known.rows, options, asked.parameters)

    async def _answer(self, question: Question, known: Known) -> tuple[Sequence[Key], list[Answer]]:
        steps = question.options.steps
        if not steps:
            raise NotCached("only-if-cached: answers of this model are not cached")
        if {"model"} < steps and question.space.model in self._observed:
            return (), await self._observer.answer(question)
        small = steps != {"model"} and len(question.rows) <= SLICE_ROWS
        keys = self._keys(question, known) if small else None
        return keys or (), await self._pipeline.answer(question, keys)

    def _keys(self, question: Question, known: Known) -> Sequence[Key]:
        """The keys of a question's rows, made once for a space."""
        if known.space != question.space or known.parameters != question.parameters:
            started = time.perf_counter()
            known.keys = self._pipeline.keys(question)
            known.space, known.parameters = question.space, question.parameters
            self._metrics.stages.add("key", time.perf_counter() - started)
        return known.keys

    def _in_force(self, space: Space) -> Space:
        generation = self._purges.of(space.model, space.digest)
        return Space(space.scope, space.model, space.digest, generation) if generation else space

    def _unknown(self, space: Space) -> str | None:
        """Why the cache is not asked, where it is because nobody can say what was purged."""
        return "state-unavailable" if self._purges.of(space.model, space.digest) is None else None

    async def _known(self, preparer: Preparer, asked: DecodedRequest, size: int) -> Known:
        limit = OFF_LOOP_TEXT_BYTES if preparer.heavy else OFF_LOOP_BYTES
        return Known(preparer, await self._off_loop(lambda: preparer.rows(asked.inputs), size > limit))

    async def _off_loop(self, work: Callable[[], T], heavy: bool) -> T:
        if not heavy:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _count_errors(self, served: ServedModel, rows: int, lane: Lane = "online") -> None:
        self._count_rows(served.manifest.name, "error", rows, lane)

    def _count_rows(self, model: str, result: str, rows: int, lane: Lane) -> None:
        self._metrics.rows.labels(model, result).inc(rows)
        if lane == "background":
            self._metrics.background_rows.labels(model, result).inc(rows)

    def _count(self, served: ServedModel, facts: AnswerFacts, answers: Sequence[Answer], lane: Lane) -> None:
        name = served.manifest.name
        for source, rows in facts.sources.items():
            self._count_rows(name, source, rows, lane)
        saved = sum(answer.prediction.seconds for answer in answers if answer.source in _SAVED)
        if saved:
            self._metrics.saved_seconds.labels(name).inc(saved)

    def count_again(self, served: ServedModel, hits: Hits, near: int, far: int, saved: float, seconds: float) -> None:
        """One kept reply that is sent again: everything that a hit counts."""
        hits.add(near, far, saved, seconds)
        stats, took = served.stats, int(seconds * 1e9)
        stats.success += 1
        stats.success_ns += took
        stats.rows += near + far
        stats.last_ms = int(time.time() * 1000)
        stats.cache_hit += 1
        stats.cache_hit_ns += took

    def _observe(self, served: ServedModel, result: str, seconds: float, rows: int, computed: int) -> None:
        self._metrics.request_seconds.of(served.manifest.name, result).add(seconds)
        stats, took = served.stats, int(seconds * 1e9)
        stats.success += 1
        stats.success_ns += took
        stats.rows += rows
        stats.last_ms = int(time.time() * 1000)
        if result in ("hit", "stale"):
            stats.cache_hit += 1
            stats.cache_hit_ns += took
        elif result != "bypass":
            stats.cache_miss += 1
            stats.cache_miss_ns += took
        stats.computed_rows += computed
        stats.computed_requests += computed > 0

    def close(self) -> None:
        self._threads.shutdown(wait=False)


def decoded(served: ServedModel, ask: RequestHead, body: bytes) -> DecodedRequest:
    """decode: what a body asks. Raises BadRequest or BadInput naming the field."""
    if ask.protocol == "v1":
        return decode_v1(body, served.manifest)
    return decode_v2(body, ask.header_length, served.manifest)


def _now() -> float:
    return asyncio.get_running_loop().time()
