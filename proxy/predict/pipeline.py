"""The story: how a question becomes answers. Read this file first.

    key     each row's frame becomes its identity
    near    this process's memory
    flight  rows somebody is already asking for are waited for, not asked again
    far     Redis, all rows of this moment in one MGET; of a slow model, rows that another proxy computes are waited for
    model   the rows nobody knows, in one request; of a slow model in some, so that nobody waits for others' rows
    keep    new rows go to near and far

(decode and prepare come before it, render after it: `serve.py`.) Functions stand in the order in which the data moves.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from foreseen.errors import DigestMoved, ForeseenError, InputRejected, NotCached, Overloaded, RowsRefused
from foreseen.keys.key import Framer
from foreseen.proxy.backend.admission import Turnstile
from foreseen.proxy.cache.far_skip import Pace
from foreseen.proxy.cache.flight import Cabin, Flights, Party
from foreseen.proxy.cache.freshness import Policy, expiry_of
from foreseen.proxy.cache.lease import Leases
from foreseen.proxy.cache.request_splitting import groups_of
from foreseen.proxy.cache.tiers import Looked, Tiers, both
from foreseen.proxy.cache.waits import Wait, cut_short, in_order, until_landed
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.types import Answer, Demand, Key, Prediction, Question, Row, Space, Steps, Terms, Trip

REFRESHED = Demand(min_fresh=0.0)
"""What a refresh takes from far: an entry that another proxy has refreshed already, and no stale one."""
REFRESH_STEPS: Steps = frozenset(("far", "model", "keep"))
REFRESH_SECONDS = 30.0

NOTHING = Looked({}, {})
SLICE_ROWS = 256
"""Rows that are keyed in one turn of the event loop: about a millisecond."""


class Model(Protocol):
    """What the pipeline needs of a model process: one answer per row, in order, under the digest that made it."""

    framer: Framer
    freshness: Policy

    @property
    def ours(self) -> bool: ...

    async def predict(self, rows: Sequence[Row], parameters: bytes, terms: Terms) -> list[Prediction]: ...


class Journey(NamedTuple):
    """A question on its way: what near had, and the flights that the other rows took."""

    question: Question
    keys: Sequence[Key]
    looked: Looked
    waits: Mapping[Key, Wait]
    boarded: float
    """When, on the clock that measures durations."""


class Pipeline:
    """near → flight → far → model → keep, for all models of one proxy process."""

    def __init__(
        self,
        tiers: Tiers,
        models: Mapping[str, Model],
        metrics: ProxyMetrics,
        waiting_rows: int,
        miss_rows: int = 1024,
        leases: Leases | None = None,
    ) -> None:
        self.tiers = tiers
        self.models = models
        self.leases = leases or Leases(None, metrics, 0.0)
        self.pace = Pace()
        self.flights = Flights(self._fly)
        self._metrics = metrics
        self._near_stage, self._flight_stage = metrics.stages.of("near"), metrics.stages.of("flight")
        self._waiting_rows = waiting_rows
        self._turnstiles = defaultdict[str, Turnstile](lambda: Turnstile(miss_rows, waiting_rows))

    async def answer(self, question: Question, keys: Sequence[Key] | None = None) -> list[Answer]:
        """The answers to all rows of a question, in order. `keys` are those of its rows, where they are known.

        Raises DeadlineExceeded, Overloaded, NotCached, DigestMoved (ask again in the new space) and what the model
        raises. Somebody who stops waiting disturbs nobody.
        """
        if question.terms.steps == {"model"}:
            return await self.straight(question)
        if keys is None:
            started = time.perf_counter()
            keys = await self._keys_in_slices(question)
            self._metrics.stages.add("key", time.perf_counter() - started)
        while True:
            journey = self.set_out(question, keys)
            if journey.waits:
                await until_landed(journey.waits.values(), question.terms.deadline)
            answers = self.arrive(journey)
            if answers is not None:
                return answers

    def set_out(self, question: Question, keys: Sequence[Key]) -> Journey:
        """near, then flight for what it lacks: all of a question that needs no waiting. Raises Overloaded."""
        looking = time.perf_counter()
        looked = self._look_near(question, keys)
        looked_at = time.perf_counter()
        self._near_stage.add(looked_at - looking)
        return Journey(question, keys, looked, self._take_flight(question, keys, looked), looked_at)

    def arrive(self, journey: Journey) -> list[Answer] | None:
        """The answers of a journey whose flights have landed or whose deadline has come; None where a flight that was
        joined ended before that: ask again. Raises as `answer` does."""
        question, keys, looked, waits, boarded = journey
        if waits:
            self._flight_stage.add(time.perf_counter() - boarded)
            if cut_short(waits.values(), question.terms.deadline):
                return None
        return in_order(keys, looked.found, waits, self.flights.spare)

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
        """The same, letting others have their turn in between: a hit is not to wait for somebody's 10,000 rows."""
        if len(question.rows) <= SLICE_ROWS:
            return self.keys(question)
        keys: list[Key] = []
        for at in range(0, len(question.rows), SLICE_ROWS):
            part = Question(question.space, question.rows[at : at + SLICE_ROWS], question.terms, question.parameters)
            keys += self.keys(part)
            await asyncio.sleep(0)
        return keys

    def _look_near(self, question: Question, keys: Sequence[Key]) -> Looked:
        """near. From here to the end of `_take_flight` there is no await, hence no race."""
        if "near" not in question.terms.steps or not self.tiers.near.capacity_bytes:
            return NOTHING
        return self.tiers.look_near(keys, self.models[question.space.model].freshness, question.terms.demand)

    def _take_flight(self, question: Question, keys: Sequence[Key], looked: Looked) -> dict[Key, Wait]:
        """flight: join who asks already, else board. What is answered stale takes a flight of its own, unwaited for."""
        terms = question.terms
        if len(looked.found) == len(keys) and not looked.stale:
            return {}
        party = Party(question.space, question.parameters, terms.lane, terms.steps, terms.demand)
        full = len(self.flights) >= self._waiting_rows  # a question that is let in boards all its rows, however many
        waits: dict[Key, Wait] = {}
        boarding: dict[Key, Row] = {}
        for key, row in zip(keys, question.rows, strict=True):
            if key in looked.found or key in boarding or key in waits:
                continue
            landing = self.flights.join(key, party)
            if landing is not None:
                waits[key] = Wait(landing, True)
                continue
            if full:
                raise Overloaded(f"{self._waiting_rows} rows are waiting already")
            boarding[key] = row
        landings = self.flights.board_all(boarding, party, terms.deadline, terms.traceparent, looked.missing)
        waits.update((key, Wait(landing, False)) for key, landing in zip(boarding, landings, strict=True))
        if looked.stale:
            self._refresh(party, {k: r for k, r in zip(keys, question.rows, strict=True) if k in looked.found}, looked)
        return waits

    def _refresh(self, party: Party, rows: Mapping[Key, Row], looked: Looked) -> None:
        """One flight per stale key, in the background, unless the request may not ask the model or keep anything."""
        if not party.steps >= {"model", "keep"}:
            return
        refreshing = Party(party.space, party.parameters, "background", REFRESH_STEPS, REFRESHED)
        deadline = asyncio.get_running_loop().time() + REFRESH_SECONDS
        for key, answer in looked.found.items():
            if answer.why == "stale-while-revalidate" and self.flights.join(key, refreshing) is None:
                self.flights.board(key, rows[key], refreshing, deadline)

    async def _fly(self, cabin: Cabin) -> None:
        """One cabin's flight: far, then model and keep for the rows that far does not have and nobody else computes."""
        far_seconds, missing = await self._look_far(cabin)
        if not missing:
            return
        if "model" not in cabin.party.steps:
            raise NotCached("only-if-cached: not every row is in the cache")
        look, compute = partial(self._look_again, cabin), partial(self._ask_model, cabin, far_seconds)
        try:
            await self.leases.divide(cabin, missing, look, compute)
        except ForeseenError as error:
            for key in cabin.missed:
                self._land_spare(cabin, key, error)
            raise

    async def _look_far(self, cabin: Cabin) -> tuple[float | None, list[Key]]:
        """far: land what Redis has; the seconds it took, and who is left."""
        space, _, _, steps, demand = cabin.party
        if "far" not in steps:
            self._metrics.misses.labels(space.model, "asked").inc(len(cabin.seats))
            return None, list(cabin.seats)
        if "model" in steps and self.pace.skips(space.model, asyncio.get_running_loop().time()):
            self._metrics.misses.labels(space.model, "far-slow").inc(len(cabin.seats))
            return None, list(cabin.seats)
        looked = await self.tiers.look_far(space, list(cabin.seats), self.models[space.model].freshness, demand)
        if looked.seconds is not None:
            self.pace.far_took(looked.seconds)
        rows = {key: cabin.seats[key].row for key in looked.found}
        for key, answer in looked.found.items():
            if "keep" in steps:
                self.tiers.keep_near(key, answer.prediction)
            self.flights.land(cabin, key, answer)
        self._refresh(cabin.party, rows, looked)
        for key, missed in looked.missing.items():
            near = cabin.missed.get(key)
            cabin.missed[key] = missed if near is None else both(near, missed)
        for reason, count in Counter(cabin.missed[key].reason for key in looked.missing).items():
            self._metrics.misses.labels(space.model, reason).inc(count)
        return looked.seconds, list(looked.missing)

    async def _look_again(self, cabin: Cabin, rows: Sequence[Key]) -> list[Key] | None:
        """far, once more: another proxy may have computed these. Who is left; None where far does not answer."""
        space, model = cabin.party.space, self.models[cabin.party.space.model]
        looked = await self.tiers.look_far(space, rows, model.freshness, cabin.party.demand)
        if any(missed.reason == "far-down" for missed in looked.missing.values()):
            return None
        fresh = {key: answer for key, answer in looked.found.items() if answer.source == "far"}
        for key, answer in fresh.items():
            self.tiers.keep_near(key, answer.prediction)
            self.flights.land(cabin, key, Answer(answer.prediction, "collapsed", True, answer.trip))
        return [key for key in rows if key not in fresh]

    async def _ask_model(
        self, cabin: Cabin, far_seconds: float | None, missing: Sequence[Key], kept: Callable[[], None]
    ) -> None:
        """model, then keep, of as many requests as `groups_of` finds right; each lands, or fails, by itself. `kept` is
        called when far has the answers, or will not have them. Raises what one of them failed with, when all are over.
        """
        name = cabin.party.space.model
        row_seconds = self.leases.row_seconds(name) if self.models[name].ours else 0.0  # others may batch nothing
        groups = groups_of([cabin.seats[key] for key in missing], row_seconds)
        if len(groups) == 1:
            return await self._ask_group(cabin, far_seconds, missing, kept)
        left = len(groups)

        def one_kept() -> None:
            nonlocal left
            left -= 1
            if not left:
                kept()

        async def ask(keys: Sequence[Key]) -> Exception | None:
            try:
                await self._ask_group(cabin, far_seconds, keys, one_kept)
            except Exception as error:  # noqa: BLE001 - whatever it was belongs to those aboard
                for key in keys:
                    if not (isinstance(error, ForeseenError) and self._land_spare(cabin, key, error)):
                        self.flights.crash(cabin, [key], error)
                return error
            return None

        told = await asyncio.gather(*(ask([missing[at] for at in group]) for group in groups))
        for error in told:
            if error is not None:
                raise error
        return None

    async def _ask_group(
        self, cabin: Cabin, far_seconds: float | None, missing: Sequence[Key], kept: Callable[[], None]
    ) -> None:
        """One request. Nothing is ever stored under a digest that did not compute it."""
        space, parameters, lane, steps, _ = cabin.party
        terms = Terms(cabin.deadline, lane, steps, cabin.traceparent)
        started = time.perf_counter()
        rows = [cabin.seats[key].row for key in missing]
        try:
            predictions = await self._predicted(space.model, rows, parameters, terms)
        except RowsRefused as some:
            missing, predictions = self._crash_refused(cabin, missing, some.outcomes)
        except ForeseenError:
            self.pace.model_failed(space.model)
            raise
        asked = time.perf_counter()
        if missing:
            self.pace.model_took(space.model, asked - started)
        else:  # not one row of them has an answer
            self.pace.model_failed(space.model)
        trip = Trip(far_seconds, asked - started)
        for prediction in predictions:  # parts of a large question may have met different processes
            if prediction.digest != space.digest:
                raise DigestMoved(prediction.digest)
        self.leases.took(space.model, predictions)
        expiring = self.living(space.model, predictions)
        stored = "keep" in steps and self.tiers.keep(
            list(zip(missing, expiring, strict=True)), self.models[space.model].freshness, cabin.began, kept
        )
        self._metrics.stages.add("keep", time.perf_counter() - asked)
        for key, prediction in zip(missing, expiring, strict=True):
            self.flights.land(cabin, key, Answer(prediction, "model", stored, trip))

    def _crash_refused(
        self, cabin: Cabin, missing: Sequence[Key], outcomes: Sequence[Prediction | ForeseenError]
    ) -> tuple[Sequence[Key], list[Prediction]]:
        """Rows that the model refuses, or that are in quarantine, get their error; who is left, with predictions."""
        answered: list[tuple[Key, Prediction]] = []
        for key, outcome in zip(missing, outcomes, strict=True):
            if isinstance(outcome, Prediction):
                answered.append((key, outcome))
            elif not self._land_spare(cabin, key, outcome):
                self.flights.crash(cabin, [key], outcome)
        return [key for key, _ in answered], [prediction for _, prediction in answered]

    def _land_spare(self, cabin: Cabin, key: Key, error: ForeseenError) -> bool:
        """Land the stale answer that a row may have where there is none, unless the input itself is wrong."""
        missed = cabin.missed.get(key)
        if error.status < 500 or missed is None or missed.spare is None:
            return False
        self.flights.land(cabin, key, missed.spare)
        return True

    async def _predicted(self, model: str, rows: Sequence[Row], parameters: bytes, terms: Terms) -> list[Prediction]:
        """Ask a model in turn; how many rows, and how long it took, is counted whatever it answers."""
        async with self._turnstiles[model].turn(len(rows), terms.deadline, terms.lane):
            started = time.perf_counter()
            try:
                return await self.models[model].predict(rows, parameters, terms)
            except RowsRefused as some:
                self._metrics.quarantined.labels(model).inc(sum(isinstance(o, InputRejected) for o in some.outcomes))
                raise
            finally:
                seconds = time.perf_counter() - started
                self._metrics.model_rows.of(model).add(len(rows))
                self._metrics.model_seconds.of(model).add(seconds)
                self._metrics.stages.add("model", seconds)

    def living(self, model: str, predictions: Iterable[Prediction]) -> list[Prediction]:
        """Predictions with the life that the model's entries have. They are made now, by this process's own clock."""
        policy, now = self.models[model].freshness, self.tiers.clock()
        return [Prediction(p.outputs, p.data, p.digest, now, expiry_of(now, policy), p.seconds) for p in predictions]

    async def straight(self, question: Question) -> list[Answer]:
        """Past all tiers and flights: for models whose answers are not cached, and for observed ones."""
        started = time.perf_counter()
        space, rows = question.space, question.rows
        try:
            predictions = await self._predicted(space.model, rows, question.parameters, question.terms)
        except RowsRefused as some:
            raise some.first from None
        trip = Trip(model=time.perf_counter() - started)
        return [Answer(prediction, "bypass", trip=trip) for prediction in predictions]

    def count_background(self, model: str, results: Iterable[str]) -> None:
        """What became of rows of jobs; those of requests are counted where they are replied to."""
        for result, rows in Counter(results).items():
            self._metrics.background_rows.labels(model, result).inc(rows)

    async def forget(self, keys: Sequence[Key] | None) -> None:
        """Purged keys, or everything: what is aloft may land, but nobody joins it and nothing of it is kept."""
        for key in keys or ():
            self.flights.forget(key)
        await self.tiers.forget(keys)

    async def close(self, seconds: float) -> None:
        """Let flights land and stores finish, at most so long each."""
        await self.flights.drain(seconds)
        await self.tiers.close(seconds)
        await self.leases.close(seconds)
