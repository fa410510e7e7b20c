"""Draws rows that were answered and looks at them later, in the background: for the audit and for shadow traffic.

    draw      rows, uniformly (`draws.py`); the pipeline and the responder offer what they answered
    grant     at most so many a second, so many waiting and so many bytes of them; others are counted as dropped
    follow    one after the other, or a few side by side; each gets an outcome, which is counted

No request waits for any of it.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import structlog
from msgspec import structs

from foreseen.errors import ForeseenError
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.cache.look_result import LookResult
from foreseen.proxy.cache.waits import Wait
from foreseen.proxy.predict.answer_cache import Lookup
from foreseen.proxy.predict.answer_memory import CachedBody
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.dialects import codecs
from foreseen.proxy.predict.dialects.decode import prepared
from foreseen.proxy.predict.sampling.draws import Draws, RowBudget
from foreseen.proxy.predict.serve import Server
from foreseen.telemetry.meters import CachedChildren
from foreseen.types import Answer, Key, Prediction, Question, Row, Space

log = structlog.get_logger()

WAITING_ROWS, WAITING_BYTES = 64, 16 * 2**20


class Drawn(NamedTuple):
    """A row that was drawn, and what it was answered by."""

    served: ServedModel
    space: Space
    parameters: bytes
    key: Key
    row: Row
    answered: Prediction

    @property
    def size(self) -> int:
        return sum(tensor.nbytes for tensor in self.row.tensors) + sum(map(len, self.answered.data))


def _nothing() -> None:
    """Nothing follows the pauses of a sampler."""


class RowSampler(ABC):
    """Samples the rows that one proxy process answers."""

    sources: frozenset[str]
    """Answers from where are drawn."""
    hits = True
    """Whether hits are drawn."""
    joined = True
    """Whether a row counts for each request that waits for it, or only for the one that it is computed for."""

    def __init__(self, name: str, counts: CachedChildren[Any], draws: Draws, budget: RowBudget) -> None:
        """`counts` has the labels model and outcome; `name` is for the log."""
        self.draws = draws
        self._name, self._counts, self._budget = name, counts, budget
        self._waiting: asyncio.Queue[Drawn] = asyncio.Queue(WAITING_ROWS)
        self._bytes = self._under_way = 0
        self.paused = False
        """Whether hits of the fast path are not offered: `switched` is called when that changes."""
        self.switched: Callable[[], None] = _nothing
        self._server: Server

    @abstractmethod
    def expect(self, model: str) -> None:
        """Show what may happen before it does: an alert on an increase needs a zero to start from."""

    @abstractmethod
    async def outcome(self, drawn: Drawn) -> str:
        """Look at one row. Raises ForeseenError where it cannot be told: that is counted as failed."""

    @property
    def idle(self) -> bool:
        """Whether no row waits or is looked at."""
        return self._under_way == 0 and self._waiting.empty()

    def granted(self, model: str, rows: Sequence[int]) -> Sequence[int]:
        """Those of the drawn rows that the budget allows; the others are counted as dropped."""
        self.expect(model)
        taken = self._budget.take(len(rows))
        if taken < len(rows):
            self._counts.labels(model, "dropped").inc(len(rows) - taken)
        return rows[:taken]

    def add(self, drawn: Drawn) -> None:
        """Look at a row later. Its arrays are copied: they may be views of a whole request's."""
        size = drawn.size
        if self._waiting.full() or self._bytes + size > WAITING_BYTES:
            self._counts.labels(drawn.space.model, "dropped").inc()
            return
        row = Row(tuple(np.array(tensor) for tensor in drawn.row.tensors), drawn.row.given)
        self._bytes += size
        self._waiting.put_nowait(drawn._replace(row=row))

    async def follow(self, server: Server, models: Sequence[str] = (), at_once: int = 1) -> None:
        """Look at what is drawn, so many rows at once, for ever."""
        self._server = server
        for model in models:
            self.expect(model)
        await asyncio.gather(*(self._follow() for _ in range(at_once)))

    async def _follow(self) -> None:
        while True:
            drawn = await self._waiting.get()
            self._bytes -= drawn.size
            self._under_way += 1
            try:
                outcome = await self.outcome(drawn)
            except ForeseenError:
                outcome = "failed"
            except Exception as error:
                log.exception(
                    "sampled row failed", sampler=self._name, model=drawn.space.model, error=type(error).__name__
                )
                outcome = "failed"
            finally:
                self._under_way -= 1
            self._counts.labels(drawn.space.model, outcome).inc()

    # What the pipeline and the responder offer.

    def offer_rows(
        self, served: ServedModel, question: Question, keys: Sequence[Key], looked: LookResult,
        waits: Mapping[Key, Wait],
    ) -> None:  # fmt: skip
        """The rows of a question that was begun: those that near had, and later those that are waited for."""
        known = []
        for at in self.draws.of(len(keys)):
            answer, wait = looked.found.get(keys[at]), waits.get(keys[at])
            if answer is not None and answer.source in self.sources:
                known.append(at)
            elif wait is not None and (self.joined or not wait.joined):
                wait.future.add_done_callback(partial(self._resolved, served, question, keys[at], at))
        for at in self.granted(question.space.model, known) if known else ():
            self._take(served, question, keys[at], at, looked.found[keys[at]])

    def offer_bypassed(self, served: ServedModel, question: Question, answers: Sequence[Answer]) -> None:
        """The rows of a question that the cache was not asked; they have no keys yet."""
        if "bypass" not in self.sources:
            return
        drawn = self.draws.of(len(answers))
        for at in self.granted(question.space.model, drawn) if drawn else ():
            rows = [question.rows[at]]
            (key,) = self._server.pipeline.tiers.keys(question.space, served.framer, rows, question.parameters)
            self._take(served, question, key, at, answers[at])

    def offer_body(self, entry: CachedBody) -> None:
        """The rows of a known body that was answered by its cached reply. (Asked at every such hit: without a call.)"""
        draws, rows, facts = self.draws, len(entry.rows), entry.facts
        if draws.left >= rows:
            draws.left -= rows
            return
        drawn = draws.of(rows)
        if not drawn or facts is None:
            return
        model, scope = entry.meaning[0], entry.meaning[4]
        space = Space(scope, model, facts.digest, entry.generation or 0)
        for at in self.granted(model, drawn):
            key, answered = entry.rows[at]
            self.add(Drawn(entry.served, space, entry.decoded.parameters, key, entry.prepared.rows[at], answered))

    def offer_template(self, head: RequestHead, served: ServedModel, lookup: Lookup, rows: int) -> None:
        """The rows of a body that was answered by its template. One that is drawn is decoded once the reply is sent."""
        drawn = self.draws.of(rows)
        granted = self.granted(head.model, drawn) if drawn else ()
        if granted:
            asyncio.get_running_loop().call_soon(partial(self._decode, head, served, lookup, granted))

    def _resolved(
        self, served: ServedModel, question: Question, key: Key, at: int, future: asyncio.Future[Answer]
    ) -> None:  # fmt: skip
        """A flight has ended."""
        if future.cancelled() or future.exception() is not None:
            return
        answer = future.result()
        if answer.source in self.sources and self.granted(question.space.model, (at,)):
            self._take(served, question, key, at, answer)

    def _take(self, served: ServedModel, question: Question, key: Key, at: int, answer: Answer) -> None:
        self.add(Drawn(served, question.space, question.parameters, key, question.rows[at], answer.prediction))

    def _decode(self, head: RequestHead, served: ServedModel, lookup: Lookup, places: Sequence[int]) -> None:
        """What the template left out: rows and keys, as the normal path makes them."""
        server = self._server
        try:
            decoded = codecs.decode(structs.replace(head, header_length=lookup.meaning[2]), lookup.text, served)
            decoded, rows = prepared(decoded, served.preparer())
            space = server.space(served, head.tenant.scope)
        except ForeseenError:
            self._counts.labels(head.model, "failed").inc(len(places))
            return
        wanted = [rows[at] for at in places]
        keys = server.pipeline.tiers.keys(space, served.framer, wanted, decoded.parameters)
        for key, row in zip(keys, wanted, strict=True):
            answered = server.pipeline.tiers.near.peek(key)
            if answered is None:
                self._counts.labels(head.model, "not-comparable").inc()
            else:
                self.add(Drawn(served, space, decoded.parameters, key, row, answered))


class OffersHits(Protocol):
    """What offers the hits that it answers, while there is something to offer them to."""

    sampled: HitSamplers | RowSampler | None


class HitSamplers:
    """Those samplers that the responder offers hits of the fast path to: all that draw hits and are not paused."""

    def __init__(self, samplers: Iterable[RowSampler]) -> None:
        self._samplers = [sampler for sampler in samplers if sampler.hits]
        self._active = self._samplers
        self._responders: list[OffersHits] = []

    def attach(self, responder: OffersHits) -> None:
        """Have a responder offer its hits. It asks one alone without a detour; none costs nothing."""
        self._responders.append(responder)
        for sampler in self._samplers:
            sampler.switched = self._switch
        self._switch()

    def _switch(self) -> None:
        self._active = [sampler for sampler in self._samplers if not sampler.paused]
        for responder in self._responders:
            responder.sampled = self if len(self._active) > 1 else self._active[0] if self._active else None

    def offer_body(self, entry: CachedBody) -> None:
        for sampler in self._active:
            sampler.offer_body(entry)

    def offer_template(self, head: RequestHead, served: ServedModel, lookup: Lookup, rows: int) -> None:
        for sampler in self._active:
            sampler.offer_template(head, served, lookup, rows)
