"""The story: how a question becomes answers. Read this file first.

    key     each row's frame becomes its identity
    near    this process's memory
    flight  rows somebody is already asking for are waited for, not asked again
    far     Redis, all rows of this moment in one MGET
    model   the rows nobody knows, in one request
    keep    new rows go to near and far

(decode and prepare come before it, render after it: `serve.py`.) Functions stand in the order in which the data moves.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from foreseen.errors import DeadlineExceeded, DigestMoved, NotCached, Overloaded
from foreseen.key import Framer
from foreseen.metrics import ProxyMetrics
from foreseen.nouns import Answer, Key, Prediction, Question, Row, Terms, Trip
from proxy.flight import Cabin, Flights, Landing, Party
from proxy.tiers import Tiers

TTL_JITTER = 0.1
"""Entries made together do not expire together."""

SLICE_ROWS = 256
"""Rows that are keyed in one turn of the event loop: about a millisecond."""


class Model(Protocol):
    """What the pipeline needs of a model process: one answer per row, in order, under the digest that made it."""

    framer: Framer
    ttl_seconds: float

    async def predict(self, rows: Sequence[Row], parameters: bytes, terms: Terms) -> list[Prediction]: ...


class Pipeline:
    """near → flight → far → model → keep, for all models of one proxy process."""

    def __init__(self, tiers: Tiers, models: Mapping[str, Model], metrics: ProxyMetrics, waiting_rows: int) -> None:
        self.tiers = tiers
        self.models = models
        self.flights = Flights(self._fly)
        self._metrics = metrics
        self._waiting_rows = waiting_rows

    async def answer(self, question: Question) -> list[Answer]:
        """The answers to all rows of a question, in order.

        Raises DeadlineExceeded, Overloaded, NotCached, DigestMoved (ask again in the new space) and what the model
        raises. Somebody who stops waiting disturbs nobody.
        """
        if question.terms.steps == {"model"}:
            return await self.straight(question)
        stage, started = self._metrics.stages.add, time.perf_counter()
        keys = await self._keys_in_slices(question)
        keyed = time.perf_counter()
        stage("key", keyed - started)
        found = self._look_near(question, keys)
        looked = time.perf_counter()
        stage("near", looked - keyed)
        waits = self._take_flight(question, keys, found)
        if waits:
            await _until_landed([landing for landing, _ in waits.values()], question.terms.deadline)
            stage("flight", time.perf_counter() - looked)
        return _in_order(keys, found, waits)

    def keys(self, question: Question) -> list[Key]:
        """key: the identity of every row."""
        framer = self.models[question.space.model].framer
        return self.tiers.keys(question.space, framer, question.rows, question.parameters)

    async def _keys_in_slices(self, question: Question) -> list[Key]:
        """The same, letting others have their turn in between: a hit is not to wait for somebody's 10,000 rows."""
        if len(question.rows) <= SLICE_ROWS:
            return self.keys(question)
        keys: list[Key] = []
        for at in range(0, len(question.rows), SLICE_ROWS):
            part = Question(question.space, question.rows[at : at + SLICE_ROWS], question.terms, question.parameters)
            keys += self.keys(part)
            await asyncio.sleep(0)
        return keys

    def _look_near(self, question: Question, keys: Sequence[Key]) -> dict[Key, Answer]:
        """near. From here to the end of `_take_flight` there is no await, hence no race."""
        if "near" not in question.terms.steps:
            return {}
        return {key: Answer(prediction, "near") for key, prediction in self.tiers.look_near(keys).items()}

    def _take_flight(
        self, question: Question, keys: Sequence[Key], found: Mapping[Key, Answer]
    ) -> dict[Key, tuple[Landing, bool]]:
        """flight: join who asks already, else board. Each landing with whether it was joined."""
        terms = question.terms
        party = Party(question.space, question.parameters, terms.lane, terms.steps)
        full = len(self.flights) >= self._waiting_rows  # a question that is let in boards all its rows, however many
        waits: dict[Key, tuple[Landing, bool]] = {}
        for key, row in zip(keys, question.rows, strict=True):
            if key in found or key in waits:
                continue
            landing = self.flights.join(key) if "near" in terms.steps else None
            if landing is not None:
                waits[key] = landing, True
                continue
            if full:
                raise Overloaded(f"{self._waiting_rows} rows are waiting already")
            waits[key] = self.flights.board(key, row, party, terms.deadline, terms.traceparent), False
        return waits

    async def _fly(self, cabin: Cabin) -> None:
        """One cabin's flight: far, then model and keep for the rows that far does not have."""
        far_seconds, missing = await self._look_far(cabin)
        if not missing:
            return
        if "model" not in cabin.party.steps:
            raise NotCached("only-if-cached: not every row is in the cache")
        await self._ask_model(cabin, missing, far_seconds)

    async def _look_far(self, cabin: Cabin) -> tuple[float | None, list[Key]]:
        """far: land what Redis has; the seconds it took, and who is left."""
        space = cabin.party.space
        if "far" not in cabin.party.steps:
            self._metrics.misses.labels(space.model, "asked").inc(len(cabin.seats))
            return None, list(cabin.seats)
        looked = await self.tiers.look_far(space, list(cabin.seats))
        for key, prediction in looked.found.items():
            self.tiers.keep_near(key, prediction)
            self.flights.land(cabin, key, Answer(prediction, "far", trip=Trip(looked.seconds)))
        for reason, rows in Counter(looked.missing.values()).items():
            self._metrics.misses.labels(space.model, reason).inc(rows)
        return looked.seconds, list(looked.missing)

    async def _ask_model(self, cabin: Cabin, missing: Sequence[Key], far_seconds: float | None) -> None:
        """model, then keep. Nothing is ever stored under a digest that did not compute it."""
        space, parameters, lane, steps = cabin.party
        terms = Terms(cabin.deadline, lane, steps, cabin.traceparent)
        started = time.perf_counter()
        rows = [cabin.seats[key].row for key in missing]
        predictions = await self._predicted(space.model, rows, parameters, terms)
        asked = time.perf_counter()
        trip = Trip(far_seconds, asked - started)
        for prediction in predictions:  # parts of a large question may have met different processes
            if prediction.digest != space.digest:
                raise DigestMoved(prediction.digest)
        expiring = self.living(space.model, predictions)
        stored = "keep" in steps and self.tiers.keep(list(zip(missing, expiring, strict=True)))
        self._metrics.stages.add("keep", time.perf_counter() - asked)
        for key, prediction in zip(missing, expiring, strict=True):
            self.flights.land(cabin, key, Answer(prediction, "model", stored, trip))

    async def _predicted(self, model: str, rows: Sequence[Row], parameters: bytes, terms: Terms) -> list[Prediction]:
        """Ask a model; how many rows, and how long it took, is counted whatever it answers."""
        started = time.perf_counter()
        try:
            return await self.models[model].predict(rows, parameters, terms)
        finally:
            seconds = time.perf_counter() - started
            self._metrics.model_rows.labels(model).observe(len(rows))
            self._metrics.model_seconds.labels(model).observe(seconds)
            self._metrics.stages.add("model", seconds)

    def living(self, model: str, predictions: Iterable[Prediction]) -> list[Prediction]:
        """Predictions with the life that the model's entries have."""
        ttl = self.models[model].ttl_seconds
        return [
            Prediction(p.outputs, p.data, p.digest, p.made_at, p.made_at + ttl * _jitter(), p.seconds)
            for p in predictions
        ]

    async def straight(self, question: Question) -> list[Answer]:
        """Past all tiers and flights: for models whose answers are not cached, and for observed ones."""
        started = time.perf_counter()
        predictions = await self._predicted(question.space.model, question.rows, question.parameters, question.terms)
        trip = Trip(model=time.perf_counter() - started)
        return [Answer(prediction, "bypass", trip=trip) for prediction in predictions]

    async def close(self, seconds: float) -> None:
        """Let flights land and stores finish, at most so long each."""
        await self.flights.drain(seconds)
        await self.tiers.close(seconds)


async def _until_landed(landings: Iterable[Landing], deadline: float) -> None:
    """Wait for flights without owning them: a waiter that is cancelled leaves them aloft."""
    pending = [landing for landing in landings if not landing.done()]
    if pending:
        seconds = deadline - asyncio.get_running_loop().time()
        _, late = await asyncio.wait(pending, timeout=max(0.0, seconds))
        if late:
            raise DeadlineExceeded("the answer did not come before the deadline")


def _in_order(
    keys: Sequence[Key], found: Mapping[Key, Answer], waits: Mapping[Key, tuple[Landing, bool]]
) -> list[Answer]:
    """One answer per row. A row that the model answered for somebody else's asking, or for an equal row of the same
    batch, is `collapsed`."""
    answers = []
    asked: set[Key] = set()
    for key in keys:
        answer = found.get(key)
        if answer is None:
            landing, joined = waits[key]
            answer = landing.result()
            if answer.source == "model" and (joined or key in asked):
                answer = Answer(answer.prediction, "collapsed", answer.stored, answer.trip)
            asked.add(key)
        answers.append(answer)
    return answers


def _jitter() -> float:
    return random.uniform(1.0 - TTL_JITTER, 1.0 + TTL_JITTER)  # noqa: S311 - spreads expiry, hides nothing
