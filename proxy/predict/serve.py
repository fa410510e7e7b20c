"""What the requests of one proxy process share on the normal path: the space in force, questions, keys, threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from foreseen.errors import NotCached
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.cache.freshness import steps_of
from foreseen.proxy.cache.generations import Generations
from foreseen.proxy.predict.answer_cache import AnswerCache
from foreseen.proxy.predict.answer_memory import PreparedRows
from foreseen.proxy.predict.ask import RequestHead, charged_to
from foreseen.proxy.predict.counting import RequestCounter
from foreseen.proxy.predict.dialects.decode import DecodedRequest
from foreseen.proxy.predict.observe import Observer
from foreseen.proxy.predict.pipeline import SLICE_ROWS, Pipeline
from foreseen.proxy.predict.template_answers import TemplateAnswers
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.types import Answer, Key, Question, RequestOptions, Scope, Space
from foreseen.web.heavy import Heavy


class Server:
    """Serves predictions of one proxy process; `PendingRequest` is one request of it."""

    def __init__(
        self,
        pipeline: Pipeline,
        observer: Observer,
        metrics: ProxyMetrics,
        cache: AnswerCache,
        counter: RequestCounter,
        *,
        observed: frozenset[str] = frozenset(),
        server_timing: bool = True,
        purges: Generations,
        heavy: Heavy | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.metrics = metrics
        self.cache = cache
        self.counter = counter
        self.observed = observed
        self.server_timing = server_timing
        self.purges = purges
        self.templates = TemplateAnswers(cache, pipeline.tiers, self)
        self._observer = observer
        self.heavy = heavy or Heavy()

    def space(self, served: ServedModel, scope: Scope) -> Space:
        """A scope's space in force: of the digest that the process says, in the generation that purges have left."""
        return self.in_generation(served.space(scope))

    def in_generation(self, space: Space) -> Space:
        generation = self.purges.of(space.scope, space.model, space.digest)
        return Space(space.scope, space.model, space.digest, generation) if generation else space

    def in_force(self, served: ServedModel, space: Space) -> bool:
        """Whether this is the space that a question would be asked in now."""
        facts = served.facts
        if facts is None or facts.digest != space.digest:
            return False
        return self.purges.of(space.scope, space.model, space.digest) == space.generation

    def unknown(self, space: Space) -> str | None:
        """Why the cache is not asked, where it is because it cannot be known what was purged."""
        return "state-unavailable" if self.purges.of(space.scope, space.model, space.digest) is None else None

    def question(
        self, served: ServedModel, head: RequestHead, decoded: DecodedRequest, prepared: PreparedRows, deadline: float
    ) -> Question:
        """What a request asks, in the space in force."""
        if decoded.timeout_seconds is not None:
            deadline = min(deadline, asyncio.get_running_loop().time() + decoded.timeout_seconds)
        space, known, scope = prepared.space, True, head.tenant.scope
        if space is None or space.scope != scope or not self.in_force(served, space):
            space = self.space(served, scope)
            known = self.unknown(space) is None
        past = decoded.sequence or not known
        steps = steps_of(head.control, frozenset(("model",)) if past else served.steps)
        lane, age = head.lane or decoded.lane, head.control.age_limits
        options = RequestOptions(deadline, lane, steps, head.traceparent, age, charged_to(head))
        return Question(space, prepared.rows, options, decoded.parameters)

    def keys(self, question: Question, prepared: PreparedRows) -> Sequence[Key]:
        """The keys of a question's rows, made once for a space."""
        if prepared.space != question.space or prepared.parameters != question.parameters:
            started = time.perf_counter()
            prepared.keys = self.pipeline.keys(question)
            self.metrics.stages.add("key", time.perf_counter() - started)
            prepared.space, prepared.parameters = question.space, question.parameters
        return prepared.keys

    def is_plain(self, question: Question) -> bool:
        """Whether a question's rows can be looked up and asked for in one turn of the event loop: it is cached, not
        observed, and not too long to be keyed."""
        steps, rows = question.options.steps, len(question.rows)
        return len(steps) > 1 and question.space.model not in self.observed and rows <= SLICE_ROWS

    async def answers(self, question: Question, prepared: PreparedRows) -> list[Answer]:
        """The answers to a question of any kind. Raises as `Pipeline.answer` does, NotCached."""
        steps = question.options.steps
        if self.is_plain(question):
            return await self.pipeline.answer(question, self.keys(question, prepared))
        if not steps:
            raise NotCached("only-if-cached: answers of this model are not cached")
        if {"model"} < steps and question.space.model in self.observed:
            return await self._observer.answer(question)
        return await self.pipeline.answer(question)

    def close(self) -> None:
        self.heavy.close()
