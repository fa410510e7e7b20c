"""The story: how a question becomes answers. Read this file first.

    key     each row's frame becomes its identity
    near    this process's memory
    flight  rows somebody is already asking for are waited for, not asked again
    far     Redis, all rows of this moment in one MGET
    model   the rows nobody knows, in one request
    keep    new rows go to near and far

(decode and prepare come before it, render after it: `handlers.py`.) Functions stand in the order in which the data
moves. Failing open is policy and lives here: far may be slow, full, lying or gone, and costs time but never an answer.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import structlog

from foreseen.entry import EntryCodec, entry_bytes
from foreseen.errors import DeadlineExceeded, DigestMoved, EntryError, FarError, NotCached, Overloaded
from foreseen.key import Framer, SpaceKey, key_of, space_key
from foreseen.metrics import ProxyMetrics
from foreseen.nouns import Answer, Key, Prediction, Question, Row, Space, Terms, Trip
from proxy.flight import Cabin, Flights, Landing, Party, Seat
from proxy.near import Near

log = structlog.get_logger()

TTL_JITTER = 0.1
"""Entries made together do not expire together."""


class FarTier(Protocol):
    """What the pipeline needs of the far tier. Both raise FarError."""

    async def get(self, keys: Sequence[Key]) -> list[bytes | None]: ...
    async def put(self, entries: Sequence[tuple[Key, bytes, int]]) -> None: ...


class Model(Protocol):
    """What the pipeline needs of a model process: one answer per row, in order, under the digest that made it."""

    framer: Framer
    ttl_seconds: float

    async def predict(self, rows: Sequence[Row], parameters: bytes, terms: Terms) -> list[Prediction]: ...


class Limits(Protocol):
    """The settings that bound the pipeline."""

    @property
    def waiting_rows(self) -> int: ...
    @property
    def far_value_bytes(self) -> int: ...
    @property
    def far_pending_bytes(self) -> int: ...


class Pipeline:
    """near → flight → far → model → keep, for all models of one proxy process."""

    def __init__(
        self,
        *,
        root: bytes,
        codec: EntryCodec,
        near: Near,
        far: FarTier | None,
        models: Mapping[str, Model],
        metrics: ProxyMetrics,
        limits: Limits,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.near = near
        self.flights = Flights(self._fly)
        self._root = root
        self._codec = codec
        self._far = far
        self._models = models
        self._metrics = metrics
        self._limits = limits
        self._clock = clock
        self._spaces: dict[Space, SpaceKey] = {}
        self._pending_bytes = 0
        self._stores: set[asyncio.Task[None]] = set()

    async def answer(self, question: Question) -> list[Answer]:
        """The answers to all rows of a question, in order.

        Raises DeadlineExceeded, Overloaded, NotCached, DigestMoved (ask again in the new space) and what the model
        raises. Somebody who stops waiting disturbs nobody.
        """
        if question.terms.steps == {"model"}:
            return await self._bypass(question)
        keys = self.keys(question)
        found = self._look_near(question, keys)
        waits = self._take_flight(question, keys, found)
        if waits:
            await _until_landed([landing for landing, _ in waits.values()], question.terms.deadline)
        return _in_order(keys, found, waits)

    def keys(self, question: Question) -> list[Key]:
        """key: the identity of every row."""
        space = self._space_key(question.space)
        frame = self._models[question.space.model].framer.frame
        return [key_of(space, frame(row, question.parameters)) for row in question.rows]

    def _look_near(self, question: Question, keys: Sequence[Key]) -> dict[Key, Answer]:
        """near: what this process remembers. From here to `_take_flight` there is no await, hence no race."""
        if "near" not in question.terms.steps:
            return {}
        now = self._clock()
        known = ((key, self.near.get(key, now)) for key in dict.fromkeys(keys))
        return {key: Answer(prediction, "near") for key, prediction in known if prediction is not None}

    def _take_flight(
        self, question: Question, keys: Sequence[Key], found: Mapping[Key, Answer]
    ) -> dict[Key, tuple[Landing, bool]]:
        """flight: join who asks already, else board. Each landing with whether it was joined."""
        terms = question.terms
        party = Party(question.space, question.parameters, terms.lane, terms.steps)
        waits: dict[Key, tuple[Landing, bool]] = {}
        for key, row in zip(keys, question.rows, strict=True):
            if key in found or key in waits:
                continue
            landing = self.flights.join(key) if "near" in terms.steps else None
            if landing is not None:
                waits[key] = landing, True
                continue
            if len(self.flights) >= self._limits.waiting_rows:
                raise Overloaded(f"{self._limits.waiting_rows} rows are waiting already")
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

    async def _look_far(self, cabin: Cabin) -> tuple[float | None, dict[Key, Seat]]:
        """far: land what Redis has; the seconds it took, and who is left. A far failure is a miss."""
        if self._far is None or "far" not in cabin.party.steps:
            self._count_misses(cabin, Counter({"cold": len(cabin.seats)}))
            return None, cabin.seats
        keys = list(cabin.seats)
        started = time.perf_counter()
        try:
            values = await self._far.get(keys)
        except FarError as error:
            self._metrics.far_errors.labels(error.kind).inc()
            self._count_misses(cabin, Counter({"far-down": len(keys)}))
            return time.perf_counter() - started, cabin.seats
        seconds = time.perf_counter() - started
        self._metrics.far_seconds.labels("get").observe(seconds)
        missing: dict[Key, Seat] = {}
        reasons: Counter[str] = Counter()
        for key, value in zip(keys, values, strict=True):
            proved = self._proved(cabin.party.space, key, value)
            if isinstance(proved, str):
                reasons[proved] += 1
                missing[key] = cabin.seats[key]
            else:
                self._keep_near(key, proved)
                self.flights.land(cabin, key, Answer(proved, "far", trip=Trip(seconds)))
        self._count_misses(cabin, reasons)
        return seconds, missing

    def _proved(self, space: Space, key: Key, value: bytes | None) -> Prediction | str:
        """The prediction of a far value that proves to be the entry asked for and lives; else why it is a miss."""
        if value is None:
            return "cold"
        try:
            prediction = self._codec.unpack(key, space.digest, value)
        except EntryError as error:
            self._metrics.verify_failed.labels(error.reason).inc()
            return "verify-failed"
        return prediction if prediction.expires_at > self._clock() else "expired"

    def _count_misses(self, cabin: Cabin, reasons: Counter[str]) -> None:
        for reason, rows in reasons.items():
            self._metrics.misses.labels(cabin.party.space.model, reason).inc(rows)

    async def _ask_model(self, cabin: Cabin, missing: Mapping[Key, Seat], far_seconds: float | None) -> None:
        """model, then keep. Nothing is ever stored under a digest that did not compute it."""
        space, parameters, lane, steps = cabin.party
        terms = Terms(cabin.deadline, lane, steps, cabin.traceparent)
        started = time.perf_counter()
        predictions = await self._models[space.model].predict(
            [seat.row for seat in missing.values()], parameters, terms
        )
        trip = Trip(far_seconds, time.perf_counter() - started)
        if (digest := predictions[0].digest) != space.digest:
            raise DigestMoved(digest)
        expiring = self._expiry(space.model, predictions)
        stored = "keep" in steps and self._keep(space, list(zip(missing, expiring, strict=True)))
        for key, prediction in zip(missing, expiring, strict=True):
            self.flights.land(cabin, key, Answer(prediction, "model", stored, trip))

    def _expiry(self, model: str, predictions: Sequence[Prediction]) -> list[Prediction]:
        ttl = self._models[model].ttl_seconds
        return [
            Prediction(p.outputs, p.data, p.digest, p.made_at, p.made_at + ttl * _jitter(), p.seconds)
            for p in predictions
        ]

    def _keep(self, space: Space, fresh: Sequence[tuple[Key, Prediction]]) -> bool:
        """keep: near now, far behind the answer's back. True where all of it is kept somewhere."""
        kept = [self._keep_near(key, prediction) for key, prediction in fresh]
        if self._far is None:
            return all(kept)
        storable = [pair for pair in fresh if entry_bytes(pair[1]) <= self._limits.far_value_bytes]
        size = sum(entry_bytes(prediction) for _, prediction in storable)
        if len(storable) < len(fresh):
            self._metrics.dropped.labels("large").inc(len(fresh) - len(storable))
        if self._pending_bytes + size > self._limits.far_pending_bytes:
            self._metrics.dropped.labels("pending").inc(len(storable))
            return all(kept)
        self._pending_bytes += size
        task = asyncio.get_running_loop().create_task(self._store(storable, size))
        self._stores.add(task)
        task.add_done_callback(self._stores.discard)
        return len(storable) == len(fresh) or all(kept)

    def _keep_near(self, key: Key, prediction: Prediction) -> bool:
        before = self.near.evictions
        kept = self.near.put(key, prediction)
        if self.near.evictions > before:
            self._metrics.evictions.inc(self.near.evictions - before)
        return kept

    async def _store(self, fresh: Sequence[tuple[Key, Prediction]], size: int) -> None:
        assert self._far is not None
        now = self._clock()
        started = time.perf_counter()
        try:
            await self._far.put(
                [
                    (key, self._codec.pack(key, p), int((p.expires_at - now) * 1000))
                    for key, p in fresh
                    if p.expires_at > now
                ]
            )
            self._metrics.far_seconds.labels("put").observe(time.perf_counter() - started)
        except FarError as error:
            self._metrics.far_errors.labels(error.kind).inc()
            self._metrics.dropped.labels("far").inc(len(fresh))
        finally:
            self._pending_bytes -= size

    async def _bypass(self, question: Question) -> list[Answer]:
        """A model whose answers are not to be cached: straight through, alone."""
        model = self._models[question.space.model]
        started = time.perf_counter()
        predictions = await model.predict(question.rows, question.parameters, question.terms)
        trip = Trip(model=time.perf_counter() - started)
        return [Answer(prediction, "bypass", trip=trip) for prediction in predictions]

    async def close(self, seconds: float) -> None:
        """Let flights land and stores finish, at most so long each."""
        await self.flights.drain(seconds)
        if self._stores:
            await asyncio.wait(self._stores, timeout=seconds)

    def _space_key(self, space: Space) -> SpaceKey:
        key = self._spaces.get(space)
        if key is None:
            if len(self._spaces) >= 4096:  # old digests and generations are never asked for again
                self._spaces.clear()
            key = self._spaces[space] = space_key(self._root, space)
        return key


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
