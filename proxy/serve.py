"""One request through all nine words: decode → prepare → (pipeline) → render, with the facts counted and shown.

What the pipeline says of each row becomes `Cache-Status` (RFC 9211), `Age` (RFC 9111), `Server-Timing` and counters.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from msgspec import Struct

from foreseen.errors import DigestMoved, ForeseenError, ModelUnavailable, NotCached
from foreseen.metrics import ProxyMetrics
from foreseen.nouns import ALL_STEPS, Answer, Explanation, Key, Question, Row, Space, Steps, Terms
from foreseen.prepare import Preparer
from proxy.ask import Ask
from proxy.decode import Asked, decode_v1, decode_v2
from proxy.facts import Facts
from proxy.freshness import steps_of
from proxy.observe import Observer
from proxy.pipeline import SLICE_ROWS, Journey, Pipeline
from proxy.render import render
from proxy.served import Served
from proxy.whereabouts import whereabouts

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


class Known(Struct):
    """The rows that the inputs of a request came to under one preparation, and their keys in the space asked last."""

    preparer: Preparer
    rows: tuple[Row, ...]
    space: Space | None = None
    parameters: bytes = b""
    keys: Sequence[Key] = ()


class Times(Struct):
    """When a request's steps were done, on the clock that measures durations."""

    started: float
    decoded: float = 0.0
    prepared: float = 0.0


class Visit(Struct):
    """A request on its way: decoded, keyed and aboard, but not answered yet."""

    served: Served
    asked: Asked
    journey: Journey
    times: Times
    requested: bool
    """Whether it said no-cache."""


class Purges(Protocol):
    """What a server needs to know of purges."""

    def of(self, model: str, digest: str) -> int | None:
        """The generation of a model's space; None as long as nobody can say what was purged."""

    def formerly(self, model: str, digest: str) -> list[int]:
        """The generations it had before."""

    def was_purged(self, key: Key) -> bool:
        """Whether this very key was purged not long ago."""


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
        purges: Purges,
    ) -> None:
        self._pipeline = pipeline
        self._observer = observer
        self._observed = observed
        self._metrics = metrics
        self._server_timing = server_timing
        self._purges = purges
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="prepare")

    async def answer(self, served: Served, ask: Ask, body: bytes, deadline: float) -> Reply:
        """Body → reply. Raises ForeseenError; the rows it concerns are counted as errors."""
        times = Times(time.perf_counter())
        asked = await self._off_loop(lambda: decoded(served, ask, body), len(body) > OFF_LOOP_BYTES)
        times.decoded = time.perf_counter()
        known = await self._known(served.preparer(), asked, len(body))
        times.prepared = time.perf_counter()
        question, keys, answers = await self._ask(served, ask, asked, known, len(body), deadline)
        answered = time.perf_counter()
        facts = self._facts(served, asked, question, answers, requested=ask.control.no_cache)
        predictions = [answer.prediction for answer in answers]
        many = len(answers) > OFF_LOOP_ROWS
        rendered, length = await self._off_loop(lambda: render(served.manifest, predictions, asked.wish), many)
        return self._reply(served, facts, times, answered, rendered, length, question, keys, answers)

    def at_once(self, served: Served, ask: Ask, body: bytes, deadline: float) -> Reply | Visit | None:
        """The same for a small body as far as it needs no waiting: the reply where near has every row, else the visit
        whose journey's flights have to land. None where nothing is begun and `answer` has to be asked: for what is
        large, and for what goes past the cache. Raises as `answer` does."""
        if len(body) > OFF_LOOP_BYTES or served.steps != ALL_STEPS or served.manifest.name in self._observed:
            return None
        times, preparer = Times(time.perf_counter()), served.preparer()
        if preparer.heavy and len(body) > OFF_LOOP_TEXT_BYTES:
            return None
        asked = decoded(served, ask, body)
        times.decoded = time.perf_counter()
        known = Known(preparer, tuple(preparer.rows(asked.inputs)))
        times.prepared = time.perf_counter()
        space = self.space(served)
        if asked.sequence or not 0 < len(known.rows) <= SLICE_ROWS or self._unknown(space):
            return None
        question = self._question(served, space, ask, asked, known, deadline)
        keys = self._keys(question, known)
        try:
            journey = self._pipeline.set_out(question, keys)
        except ForeseenError:
            self._count_errors(served, len(keys))
            raise
        visit = Visit(served, asked, journey, times, ask.control.no_cache)
        return visit if journey.waits else self.arrived(visit)

    def arrived(self, visit: Visit) -> Reply | None:
        """The reply of a visit whose flights have landed, or whose deadline has come. None where `answer` has to be
        asked anew: a flight was cut short, or the model's digest moved meanwhile."""
        served, journey = visit.served, visit.journey
        try:
            answers = self._pipeline.arrive(journey)
        except DigestMoved:
            return None
        except ForeseenError:
            self._count_errors(served, len(journey.keys))
            raise
        if answers is None:
            return None
        answered = time.perf_counter()
        facts = self._facts(served, visit.asked, journey.question, answers, requested=visit.requested)
        predictions = [answer.prediction for answer in answers]
        rendered, length = render(served.manifest, predictions, visit.asked.wish)
        return self._reply(
            served, facts, visit.times, answered, rendered, length, journey.question, journey.keys, answers
        )

    def _facts(
        self, served: Served, asked: Asked, question: Question | None, answers: Sequence[Answer], *, requested: bool
    ) -> Facts:
        why = "sequence" if asked.sequence else None if question is None else self._unknown(question.space)
        facts = Facts.of(answers, served, self._pipeline.tiers.clock(), why, requested=requested)
        self._count(served, facts, answers)
        return facts

    def _reply(
        self,
        served: Served,
        facts: Facts,
        times: Times,
        answered: float,
        rendered: bytes,
        length: int | None,
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
        return Reply(rendered, length, headers, facts.result, question, keys, answers)

    def space(self, served: Served) -> Space:
        """The space in force: of the digest that the process says, in the generation that purges have left."""
        return self._in_force(served.space())

    async def explain(self, served: Served, ask: Ask, body: bytes) -> list[Explanation]:
        """Where the rows of a request are, or why they would be misses. Asks no model and changes nothing."""
        asked = await self._off_loop(lambda: decoded(served, ask, body), len(body) > OFF_LOOP_BYTES)
        known = await self._known(served.preparer(), asked, len(body))
        space = self.space(served)
        steps: Steps = frozenset(("model",)) if asked.sequence else served.steps
        question = Question(space, known.rows, Terms(_now() + ask.seconds, steps=steps), asked.parameters)
        former = [self._in_force(Space(space.scope, space.model, digest)) for digest in served.former]
        before = self._purges.formerly(space.model, space.digest)
        former += [Space(space.scope, space.model, space.digest, generation) for generation in before]
        return await whereabouts(self._pipeline, question, former, self._purges.was_purged)

    async def _ask(
        self, served: Served, ask: Ask, asked: Asked, known: Known, size: int, deadline: float
    ) -> tuple[Question | None, Sequence[Key], list[Answer]]:
        """Ask; once more where the model's digest moved in between (its preparation may have, too)."""
        for last in (False, True):
            preparer = served.preparer()
            if known.preparer is not preparer:
                known = await self._known(preparer, asked, size)
            if not known.rows:
                return None, (), []
            question = self._question(served, self.space(served), ask, asked, known, deadline)
            try:
                return question, *await self._answer(question, known)
            except DigestMoved:
                if last:
                    break
                await served.refresh()
            except ForeseenError:
                self._count_errors(served, len(known.rows))
                raise
        self._count_errors(served, len(known.rows))
        raise ModelUnavailable(f"model {served.manifest.name!r} is changing its version")

    def _question(
        self, served: Served, space: Space, ask: Ask, asked: Asked, known: Known, deadline: float
    ) -> Question:
        if asked.timeout_seconds is not None:
            deadline = min(deadline, _now() + asked.timeout_seconds)
        past = asked.sequence or self._unknown(space) is not None
        steps = steps_of(ask.control, frozenset(("model",)) if past else served.steps)
        terms = Terms(deadline, asked.lane, steps, ask.traceparent, ask.control.demand)
        return Question(space, known.rows, terms, asked.parameters)

    async def _answer(self, question: Question, known: Known) -> tuple[Sequence[Key], list[Answer]]:
        steps = question.terms.steps
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

    async def _known(self, preparer: Preparer, asked: Asked, size: int) -> Known:
        limit = OFF_LOOP_TEXT_BYTES if preparer.heavy else OFF_LOOP_BYTES
        return Known(preparer, tuple(await self._off_loop(lambda: preparer.rows(asked.inputs), size > limit)))

    async def _off_loop(self, work: Callable[[], T], heavy: bool) -> T:
        if not heavy:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _count_errors(self, served: Served, rows: int) -> None:
        self._metrics.rows.labels(served.manifest.name, "error").inc(rows)

    def _count(self, served: Served, facts: Facts, answers: Sequence[Answer]) -> None:
        name = served.manifest.name
        for source, rows in facts.sources.items():
            self._metrics.rows.labels(name, source).inc(rows)
        saved = sum(answer.prediction.seconds for answer in answers if answer.source in _SAVED)
        if saved:
            self._metrics.saved_seconds.labels(name).inc(saved)

    def count_replay(self, served: Served, rows: int, saved: float, seconds: float) -> None:
        """One replayed request: everything that a hit counts."""
        self._metrics.rows.labels(served.manifest.name, "near").inc(rows)
        if saved:
            self._metrics.saved_seconds.labels(served.manifest.name).inc(saved)
        self._observe(served, "hit", seconds, rows, 0)

    def _observe(self, served: Served, result: str, seconds: float, rows: int, computed: int) -> None:
        self._metrics.request_seconds.labels(served.manifest.name, result).observe(seconds)
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


def decoded(served: Served, ask: Ask, body: bytes) -> Asked:
    """decode: what a body asks. Raises BadRequest or BadInput naming the field."""
    if ask.protocol == "v1":
        return decode_v1(body, served.manifest)
    return decode_v2(body, ask.header_length, served.manifest)


def _now() -> float:
    return asyncio.get_running_loop().time()
