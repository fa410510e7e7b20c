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
from foreseen.nouns import Answer, Explanation, Key, Lane, Question, Row, Space, Steps, Terms
from foreseen.prepare import Preparer
from proxy.decode import Asked
from proxy.facts import Facts
from proxy.freshness import Control, steps_of
from proxy.observe import Observer
from proxy.pipeline import Pipeline
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


class Call(Struct, frozen=True):
    """How a request is asked, beside its body."""

    deadline: float
    lane: Lane = "online"
    traceparent: str | None = None
    control: Control = Control()


class Reply(Struct, frozen=True):
    """A rendered answer: body, JSON length where tensors follow, headers, its result label, and what was asked and
    answered (None for a request without rows)."""

    body: bytes
    length: int | None
    headers: dict[str, str]
    result: str
    question: Question | None
    answers: Sequence[Answer]


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

    async def answer(self, served: Served, body: bytes, decode: Callable[[], Asked], call: Call) -> Reply:
        """Body → reply. Raises ForeseenError; the rows it concerns are counted as errors."""
        started = time.perf_counter()
        asked = await self._off_loop(decode, len(body) > OFF_LOOP_BYTES)
        decoded = time.perf_counter()
        stage = self._metrics.stages.add
        stage("decode", decoded - started)
        if asked.timeout_seconds is not None or asked.lane != call.lane:
            within = call.deadline if asked.timeout_seconds is None else _now() + asked.timeout_seconds
            call = Call(min(call.deadline, within), asked.lane, call.traceparent, call.control)
        question, answers, prepared = await self._ask(served, asked, len(body), call)
        answered = time.perf_counter()
        stage("prepare", prepared - decoded)
        now = self._pipeline.tiers.clock()
        why = "sequence" if asked.sequence else None if question is None else self._unknown(question.space)
        facts = Facts.of(answers, served, now, why, requested=call.control.no_cache)
        self._count(served, facts, answers)
        predictions = [answer.prediction for answer in answers]
        many = len(answers) > OFF_LOOP_ROWS
        rendered, length = await self._off_loop(lambda: render(served.manifest, predictions, asked.wish), many)
        headers = facts.headers(now)
        if self._server_timing:
            timings = {"decode": decoded - started, "prepare": prepared - decoded, "answer": answered - prepared}
            headers["Server-Timing"] = facts.timing(timings)
        stage("render", time.perf_counter() - answered)
        computed = facts.sources["model"] + facts.sources["bypass"]
        self._observe(served, facts.result, time.perf_counter() - started, len(answers), computed)
        return Reply(rendered, length, headers, facts.result, question, answers)

    def space(self, served: Served) -> Space:
        """The space in force: of the digest that the process says, in the generation that purges have left."""
        return self._in_force(served.space())

    async def explain(self, served: Served, body: bytes, decode: Callable[[], Asked], call: Call) -> list[Explanation]:
        """Where the rows of a request are, or why they would be misses. Asks no model and changes nothing."""
        asked = await self._off_loop(decode, len(body) > OFF_LOOP_BYTES)
        rows = await self._prepare(served.preparer(), asked, len(body))
        space = self.space(served)
        steps: Steps = frozenset(("model",)) if asked.sequence else served.steps
        question = Question(space, tuple(rows), Terms(call.deadline, steps=steps), asked.parameters)
        former = [self._in_force(Space(space.scope, space.model, digest)) for digest in served.former]
        before = self._purges.formerly(space.model, space.digest)
        former += [Space(space.scope, space.model, space.digest, generation) for generation in before]
        return await whereabouts(self._pipeline, question, former, self._purges.was_purged)

    async def _ask(
        self, served: Served, asked: Asked, size: int, call: Call
    ) -> tuple[Question | None, list[Answer], float]:
        """Prepare and ask; once more where the model's digest moved in between (its preparation may have, too)."""
        for last in (False, True):
            space, preparer = served.space(), served.preparer()
            rows = await self._prepare(preparer, asked, size)
            prepared = time.perf_counter()
            space = self._in_force(space)  # with what was purged meanwhile
            if not rows:
                return None, [], prepared
            unknown = self._purges.of(space.model, space.digest) is None
            steps = steps_of(call.control, frozenset(("model",)) if asked.sequence or unknown else served.steps)
            terms = Terms(call.deadline, call.lane, steps, call.traceparent, call.control.demand)
            question = Question(space, tuple(rows), terms, asked.parameters)
            try:
                return question, await self._answer(question), prepared
            except DigestMoved:
                if last:
                    break
                await served.refresh()
            except ForeseenError:
                self._metrics.rows.labels(served.manifest.name, "error").inc(len(rows))
                raise
        self._metrics.rows.labels(served.manifest.name, "error").inc(len(rows))
        raise ModelUnavailable(f"model {served.manifest.name!r} is changing its version")

    async def _answer(self, question: Question) -> list[Answer]:
        steps = question.terms.steps
        if not steps:
            raise NotCached("only-if-cached: answers of this model are not cached")
        observed = {"model"} < steps and question.space.model in self._observed
        return await (self._observer if observed else self._pipeline).answer(question)

    def _in_force(self, space: Space) -> Space:
        generation = self._purges.of(space.model, space.digest)
        return Space(space.scope, space.model, space.digest, generation) if generation else space

    def _unknown(self, space: Space) -> str | None:
        """Why the cache is not asked, where it is because nobody can say what was purged."""
        return "state-unavailable" if self._purges.of(space.model, space.digest) is None else None

    async def _prepare(self, preparer: Preparer, asked: Asked, size: int) -> list[Row]:
        limit = OFF_LOOP_TEXT_BYTES if preparer.heavy else OFF_LOOP_BYTES
        return await self._off_loop(lambda: preparer.rows(asked.inputs), size > limit)

    async def _off_loop(self, work: Callable[[], T], heavy: bool) -> T:
        if not heavy:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

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


def _now() -> float:
    return asyncio.get_running_loop().time()
