"""near → flight → far → model → keep: how the rows of a question get their answers. Read this file first.

    key     each row's frame becomes its identity
    near    this process's memory
    flight  a row that is being computed is waited for, not computed again
    far     Redis, one MGET per event-loop turn; rows of a slow model that another proxy computes are waited for
    model   cache misses: in one request, of a slow model in several, so that no caller waits for another's rows
    keep    new rows go to near and far

decode, prepare and render are around it (`pending_request.py`). Functions stand in the order in which the data moves.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol

from msgspec import structs

from foreseen.errors import DigestMoved, ForeseenError, NotCached, Overloaded, RowsRefused, TooLarge
from foreseen.fair_order import has_room
from foreseen.keys.key import Framer
from foreseen.proxy.backend.turns.model_turns import ModelTurns
from foreseen.proxy.cache.far_skip import FarSkipPolicy
from foreseen.proxy.cache.flight import FlightBatch, FlightKey, Flights
from foreseen.proxy.cache.freshness import Policy, expiry_of
from foreseen.proxy.cache.lease import Leases
from foreseen.proxy.cache.look_result import LookResult, both
from foreseen.proxy.cache.request_splitting import split_request
from foreseen.proxy.cache.tiers import Tiers
from foreseen.proxy.cache.waits import FanOut, Wait, cut_short, in_order, until_resolved
from foreseen.proxy.predict.lone_miss import LoneMiss
from foreseen.proxy.predict.tenant_misses import NO_TENANTS, TenantMisses
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.telemetry.spans import far_call
from foreseen.types import Answer, Key, MaxAge, Prediction, Question, RequestOptions, Row, Space, Steps, TierSeconds

REFRESHED = MaxAge(min_fresh=0.0)
"""What a refresh takes from far: an entry that another proxy has refreshed already, and no stale one."""
REFRESH_STEPS: Steps = frozenset(("far", "model", "keep"))
REFRESH_SECONDS = 30.0

NOTHING = LookResult({}, {})
SLICE_ROWS = 256
"""Rows that are keyed in one turn of the event loop: about a millisecond."""
PART_ROWS = 1024
"""A larger question is answered part by part: a row takes 2 KiB while it is in flight."""
MAX_NEW_ROWS = 65_536
"""Rows of one question that near may lack."""


class Model(Protocol):
    """What the pipeline needs of a model process: one answer per row, in order, under the digest that made it."""

    framer: Framer
    freshness: Policy

    @property
    def ours(self) -> bool: ...

    async def predict(self, rows: Sequence[Row], parameters: bytes, options: RequestOptions) -> list[Prediction]: ...


class Pipeline:
    """near → flight → far → model → keep, for all models of one proxy process."""

    def __init__(
        self, tiers: Tiers, models: Mapping[str, Model], metrics: ProxyMetrics, waiting_rows: int,
        miss_rows: int = 1024, leases: Leases | None = None, tenants: TenantMisses = NO_TENANTS,
    ) -> None:  # fmt: skip
        self.tiers = tiers
        self.models = models
        self.leases = leases or Leases(None, metrics, 0.0)
        self.far_skip = FarSkipPolicy()
        self.flights = Flights(self._fly)
        self.fan_out = FanOut()
        self.tenants = tenants
        self._metrics = metrics
        self._near_stage, self._flight_stage = metrics.stages.of("near"), metrics.stages.of("flight")
        self._waiting_rows = waiting_rows
        self._turns = ModelTurns(models, metrics, miss_rows, waiting_rows)
        self.lone = LoneMiss(
            self.take_far, tiers, models, self._turns, self.flights, self.leases, self.far_skip, tenants, metrics
        )

    async def answer(self, question: Question, keys: Sequence[Key] | None = None) -> list[Answer]:
        """The answers to all rows of a question, in order. `keys` are those of its rows, where they are known.

        Raises DeadlineExceeded, Overloaded, NotCached, DigestMoved (ask again in the new space) and what the model
        raises. Cancelling it cancels no flight.
        """
        if question.options.steps == {"model"}:
            return await self.bypass(question)
        if keys is None:
            started = time.perf_counter()
            keys = await self._keys_in_slices(question)
            self._metrics.stages.add("key", time.perf_counter() - started)
        if len(keys) <= PART_ROWS:
            return await self._answer(question, keys)
        answers: list[Answer] = []
        for at in range(0, len(keys), PART_ROWS):
            part = structs.replace(question, rows=question.rows[at : at + PART_ROWS])
            answers += await self._answer(part, keys[at : at + PART_ROWS])
            await asyncio.sleep(0)
        return answers

    async def _answer(self, question: Question, keys: Sequence[Key]) -> list[Answer]:
        while True:
            looked, waits = self.begin(question, keys)
            if waits:
                started = time.perf_counter()
                await until_resolved(waits.values(), question.options.deadline, self.fan_out)
                self.waited(time.perf_counter() - started)
            answers = self.finish(keys, looked, waits, question.options.deadline)
            if answers is not None:
                return answers

    def begin(self, question: Question, keys: Sequence[Key]) -> tuple[LookResult, Mapping[Key, Wait]]:
        """near, then flight for the rows that near lacks: the part without waiting. Returns what near has, and what the
        other rows wait for. Raises Overloaded."""
        started = time.perf_counter()
        looked = self._look_near(question, keys)
        self._near_stage.add(time.perf_counter() - started)
        return looked, self._take_flight(question, keys, looked)

    def finish(
        self, keys: Sequence[Key], looked: LookResult, waits: Mapping[Key, Wait], deadline: float
    ) -> list[Answer] | None:
        """The answers of a question that was begun, once its flights have ended or its deadline has come; None where a
        flight that was joined ended before that: ask again. Raises as `answer` does."""
        if waits and cut_short(waits.values(), deadline):
            return None
        return in_order(keys, looked.found, waits, self.flights.stale_fallback)

    def waited(self, seconds: float) -> None:
        """Count how long a question waited for its flights."""
        self._flight_stage.add(seconds)

    def keys(self, question: Question) -> list[Key]:
        """key: the identity of every row."""
        framer = self.models[question.space.model].framer
        return self.tiers.keys(question.space, framer, question.rows, question.parameters)

    def keyed(self, space: Space, frames: Sequence[bytes]) -> list[Key]:
        """The same, of rows whose frames are made."""
        started = time.perf_counter()
        keys = self.tiers.keys_of(space, frames)
        self._metrics.stages.add("key", time.perf_counter() - started)
        return keys

    async def _keys_in_slices(self, question: Question) -> list[Key]:
        """The same, slice by slice: a hit does not wait until 10,000 rows of another request are keyed."""
        if len(question.rows) <= SLICE_ROWS:
            return self.keys(question)
        keys: list[Key] = []
        new: dict[Key, Key] = {}
        for at in range(0, len(question.rows), SLICE_ROWS):
            part = self.keys(structs.replace(question, rows=question.rows[at : at + SLICE_ROWS]))
            if len(question.rows) > MAX_NEW_ROWS:  # equal rows share a key, which is a third of what a row takes here
                part = [key if self.tiers.near.peek(key) else new.setdefault(key, key) for key in part]
                _check_new(len(new))
            keys += part
            await asyncio.sleep(0)
        return keys

    def _look_near(self, question: Question, keys: Sequence[Key]) -> LookResult:
        """near. From here to the end of `_take_flight` there is no await, hence no race."""
        if "near" not in question.options.steps or not self.tiers.near.capacity_bytes:
            return NOTHING
        return self.tiers.look_near(keys, self.models[question.space.model].freshness, question.options.age_limits)

    def _take_flight(self, question: Question, keys: Sequence[Key], looked: LookResult) -> dict[Key, Wait]:
        """flight: join the rows that are in flight, add the others. Stale rows get flights of their own."""
        options = question.options
        if not looked.stale and all(map(looked.found.__contains__, keys)):  # equal rows share an answer
            return {}
        flight_key = FlightKey(question.space, question.parameters, options.lane, options.steps, options.age_limits)
        free = self._waiting_rows - len(self.flights)
        full = not has_room(self.flights.held(options.caller), 1, free)  # one that is let in may add any number of rows
        waits: dict[Key, Wait] = {}
        adding: dict[Key, Row] = {}
        for key, row in zip(keys, question.rows, strict=True):
            if key in looked.found or key in adding or key in waits:
                continue
            future = self.flights.join(key, flight_key)
            if future is not None:
                waits[key] = Wait(future, True)
                continue
            if full:
                raise Overloaded(f"{len(self.flights)} rows are waiting already")
            adding[key] = row
        futures = self.flights.add_all(adding, flight_key, options, looked.missing)
        waits.update((key, Wait(future, False)) for key, future in zip(adding, futures, strict=True))
        self.flights.trace(options.traceparent, waits)
        if looked.stale:
            self._refresh(flight_key, dict(zip(keys, question.rows, strict=True)), looked)
        return waits

    def _refresh(self, flight_key: FlightKey, rows: Mapping[Key, Row], looked: LookResult) -> None:
        """One flight per stale key, in the background, unless the request may not ask the model or keep anything."""
        if not flight_key.steps >= {"model", "keep"}:
            return
        refreshing = FlightKey(flight_key.space, flight_key.parameters, "background", REFRESH_STEPS, REFRESHED)
        options = RequestOptions(asyncio.get_running_loop().time() + REFRESH_SECONDS, "background")
        for key, answer in looked.found.items():
            if answer.why == "stale-while-revalidate" and self.flights.join(key, refreshing) is None:
                self.flights.add(key, rows[key], refreshing, options)

    async def _fly(self, batch: FlightBatch) -> None:
        """One batch: far, then model and keep for the rows that neither far has nor another proxy computes."""
        if self.lone.suits(batch):
            return await self.lone.fly(batch)
        far_seconds, missing = await self._look_far(batch)
        if missing and "model" not in batch.flight_key.steps:
            raise NotCached("only-if-cached: not every row is in the cache")
        refused = self.tenants.refused(batch, missing, self.flights.held)
        for key, error in refused.items():
            self.flights.fail(batch, [key], error)
        missing = [key for key in missing if key not in refused] if refused else missing
        if not missing:
            return None
        look, compute = partial(self._look_again, batch), partial(self._ask_model, batch, far_seconds)
        try:
            return await self.leases.divide(batch, missing, look, compute)
        except ForeseenError as error:
            for key in batch.missed:
                self.flights.fall_back(batch, key, error)
            raise

    async def _look_far(self, batch: FlightBatch) -> tuple[float | None, list[Key]]:
        """far: resolve what Redis has; the seconds it took, and the keys that are left."""
        space, _, _, steps, age_limits = batch.flight_key
        if "far" not in steps:
            self._metrics.misses.labels(space.model, "asked").inc(len(batch.waiters))
            return None, list(batch.waiters)
        if "model" in steps and self.far_skip.skips(space.model, asyncio.get_running_loop().time()):
            self._metrics.misses.labels(space.model, "far-slow").inc(len(batch.waiters))
            return None, list(batch.waiters)
        looked = await self.tiers.look_far(space, list(batch.waiters), self.models[space.model].freshness, age_limits)
        return looked.seconds, self.take_far(batch, looked)

    def take_far(self, batch: FlightBatch, looked: LookResult) -> list[Key]:
        """Resolve what far had; the keys that are left."""
        space, steps = batch.flight_key.space, batch.flight_key.steps
        if looked.seconds is not None:
            self.far_skip.far_took(looked.seconds)
        far_call(batch.traceparent, looked.seconds, len(batch.waiters), len(looked.found))
        rows = {key: batch.waiters[key].row for key in looked.found}
        for key, answer in looked.found.items():
            if "keep" in steps:
                self.tiers.keep_near(key, answer.prediction)
            self.flights.resolve(batch, key, answer)
        self._refresh(batch.flight_key, rows, looked)
        for key, missed in looked.missing.items():
            near = batch.missed.get(key)
            batch.missed[key] = missed if near is None else both(near, missed)
        for reason, count in Counter(batch.missed[key].reason for key in looked.missing).items():
            self._metrics.misses.labels(space.model, reason).inc(count)
        return list(looked.missing)

    async def _look_again(self, batch: FlightBatch, rows: Sequence[Key]) -> list[Key] | None:
        """far, once more: another proxy may have computed these. The keys that are left; None if far fails."""
        space, model = batch.flight_key.space, self.models[batch.flight_key.space.model]
        looked = await self.tiers.look_far(space, rows, model.freshness, batch.flight_key.age_limits)
        if any(missed.reason == "far-down" for missed in looked.missing.values()):
            return None
        fresh = {key: answer for key, answer in looked.found.items() if answer.source == "far"}
        for key, answer in fresh.items():
            self.tiers.keep_near(key, answer.prediction)
            self.flights.resolve(batch, key, Answer(answer.prediction, "collapsed", True, answer.trip))
        return [key for key in rows if key not in fresh]

    async def _ask_model(
        self, batch: FlightBatch, far_seconds: float | None, missing: Sequence[Key], kept: Callable[[], None]
    ) -> None:
        """model, then keep, in as many requests as `split_request` says; each succeeds or fails by itself. `kept`
        is called when far has the answers, or will not have them. Raises the error of one that failed, when all ended.
        """
        name = batch.flight_key.space.model
        row_seconds = self._row_seconds(name)
        waiters = [batch.waiters[key] for key in missing]
        groups = split_request(waiters, row_seconds, crowded=self._turns.crowded(name))
        if len(groups) == 1:
            return await self._ask_group(batch, far_seconds, missing, kept)
        left = len(groups)

        def one_kept() -> None:
            nonlocal left
            left -= 1
            if not left:
                kept()

        async def ask(keys: Sequence[Key]) -> Exception | None:
            try:
                await self._ask_group(batch, far_seconds, keys, one_kept)
            except Exception as error:  # noqa: BLE001 - the error belongs to the rows of this request
                for key in keys:
                    if not (isinstance(error, ForeseenError) and self.flights.fall_back(batch, key, error)):
                        self.flights.fail(batch, [key], error)
                return error
            return None

        errors = await asyncio.gather(*(ask([missing[at] for at in group]) for group in groups))
        for error in errors:
            if error is not None:
                raise error
        return None

    def _row_seconds(self, model: str) -> float:
        """What a row of our own process takes; other servers may batch nothing, and say nothing of it."""
        return self.leases.row_seconds(model) if self.models[model].ours else 0.0

    async def _ask_group(
        self, batch: FlightBatch, far_seconds: float | None, missing: Sequence[Key], kept: Callable[[], None]
    ) -> None:
        """One request. Nothing is ever stored under a digest that did not compute it."""
        space, parameters, lane, steps, _ = batch.flight_key
        waiters = [batch.waiters[key] for key in missing]
        caller, weight = self.tenants.charged(waiters)
        options = RequestOptions(
            batch.deadline, lane, steps, batch.traceparent, caller=caller, weight=weight, scope=space.scope
        )
        started, each = time.perf_counter(), self._row_seconds(space.model)
        try:
            predictions = await self._turns.predict(space.model, [w.row for w in waiters], parameters, options, each)
        except RowsRefused as some:
            missing, predictions = self.flights.fail_refused(batch, missing, some.outcomes)
        except ForeseenError:
            self.far_skip.model_failed(space.model)
            raise
        asked = time.perf_counter()
        if missing:
            self.far_skip.model_took(space.model, asked - started)
        else:  # not one row of them has an answer
            self.far_skip.model_failed(space.model)
        trip = TierSeconds(far_seconds, asked - started)
        for prediction in predictions:  # parts of a large question may have met different processes
            if prediction.digest != space.digest:
                raise DigestMoved(prediction.digest)
        self.leases.took(space.model, predictions)
        self.tenants.computed_batch(batch, missing, predictions)
        expiring = self.with_expiry(space.model, predictions)
        stored = "keep" in steps and self.tiers.keep(
            list(zip(missing, expiring, strict=True)), self.models[space.model].freshness, batch.began, kept
        )
        self._metrics.stages.add("keep", time.perf_counter() - asked)
        for key, prediction in zip(missing, expiring, strict=True):
            self.flights.resolve(batch, key, Answer(prediction, "model", stored, trip))

    def with_expiry(self, model: str, predictions: Iterable[Prediction]) -> list[Prediction]:
        """Predictions with the life that the model's entries have. They are made now, by this process's own clock."""
        policy, now = self.models[model].freshness, self.tiers.clock()
        return [Prediction(p.outputs, p.data, p.digest, now, expiry_of(now, policy), p.seconds) for p in predictions]

    async def bypass(self, question: Question) -> list[Answer]:
        """Ask the model without tiers and flights: for models that are not cached, and for observed ones."""
        started = time.perf_counter()
        space, rows = question.space, question.rows
        _check_new(len(rows))
        try:
            options = structs.replace(question.options, scope=space.scope)
            predictions = await self._turns.predict(space.model, rows, question.parameters, options)
        except RowsRefused as some:
            raise some.first from None
        self.tenants.computed(question.options.caller, space.model, predictions)
        trip = TierSeconds(model=time.perf_counter() - started)
        return [Answer(prediction, "bypass", trip=trip) for prediction in predictions]

    def count_background(self, model: str, results: Iterable[str]) -> None:
        """Count the results of jobs' rows; `counting.py` counts those of requests."""
        for result, rows in Counter(results).items():
            self._metrics.background_rows.labels(model, result).inc(rows)

    async def forget(self, keys: Mapping[Key, float] | None) -> None:
        """Purged keys, by when they were, or everything: flights under way are answered, not joined and not kept."""
        for key in keys or ():
            self.flights.forget(key)
        await self.tiers.forget(keys)

    async def close(self, seconds: float) -> None:
        """Wait for flights and stores to finish, at most so long each."""
        await self.flights.drain(seconds)
        await self.tiers.close(seconds)
        await self.leases.close(seconds)


def _check_new(rows: int) -> None:
    if rows > MAX_NEW_ROWS:
        raise TooLarge(f"inputs: more than {MAX_NEW_ROWS} rows of the request are not in the cache; split it")
