"""Single-flight request coalescing: concurrent requests for one key share one look in far and one model request.

Rows that arrive in one turn of the event loop form one batch per flight key (space, parameters, lane, steps, age
limits). A detached task processes the batch: one MGET, then the model, then the store. A waiter that is cancelled
cancels no other waiter. An error reaches all waiters of the batch and is not cached. A request does not join a flight
that could resolve with an answer which the request has to refuse.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct

from foreseen.errors import ForeseenError, ModelUnavailable
from foreseen.telemetry.spans import Computation, RequestSpan
from foreseen.types import ANY_AGE, Answer, Key, Lane, MaxAge, Miss, Prediction, RequestOptions, Row, Space, Steps

RowFuture = asyncio.Future[Answer]


class FlightKey(NamedTuple):
    """Rows share a batch only if they agree in all of these."""

    space: Space
    parameters: bytes
    lane: Lane
    steps: Steps
    age_limits: MaxAge = ANY_AGE

    @property
    def computes(self) -> bool:
        """Whether every answer of the batch is computed after it began: `no-cache` accepts nothing else."""
        return not self.steps & {"near", "far"}


class Waiter(Struct, frozen=True):
    row: Row
    future: RowFuture
    client: int
    """A number that all rows of one request share."""
    caller: str = ""
    """The caller that is charged: of rows that several requests wait for, the first one's."""


class FlightBatch:
    """Rows that are processed together. `deadline` is the latest of its rows', on the event loop's clock; `missed` is
    what the tiers have answered about its keys so far."""

    __slots__ = ("began", "deadline", "flight_key", "held", "missed", "started", "traceparent", "waiters")

    def __init__(self, flight_key: FlightKey) -> None:
        self.flight_key = flight_key
        self.deadline = 0.0
        self.began = asyncio.get_running_loop().time()
        self.started = False
        self.traceparent: str | None = None
        self.waiters: dict[Key, Waiter] = {}
        self.missed: dict[Key, Miss] = {}
        self.held: Counter[str] = Counter()
        """Number of unresolved rows by charged caller."""

    def __repr__(self) -> str:
        return f"<FlightBatch {self.flight_key.space.model} {self.flight_key.lane} {len(self.waiters)} rows>"


class Flights:
    """All keys in flight. `run_batch` processes one batch and resolves its keys. Keys that it leaves unresolved fail,
    with the error that it raised."""

    def __init__(self, run_batch: Callable[[FlightBatch], Awaitable[None]]) -> None:
        self._run_batch = run_batch
        self.forgotten = 0
        """Count of the keys that `forget` was called with."""
        self._in_flight: dict[Key, FlightBatch] = {}
        self._collecting: dict[FlightKey, FlightBatch] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: Counter[str] = Counter()
        self._client_numbers = itertools.count()

    def join(self, key: Key, flight_key: FlightKey) -> RowFuture | None:
        """The future of a key that is in flight or collected for a batch, if its answer will suit this flight key."""
        batch = self._in_flight.get(key)
        return batch.waiters[key].future if batch is not None and _suits(batch, flight_key) else None

    def stale_fallback(self, key: Key) -> Answer | None:
        """The stale answer of a key in flight, for a request that cannot wait any longer."""
        batch = self._in_flight.get(key)
        missed = None if batch is None else batch.missed.get(key)
        return None if missed is None else missed.stale_fallback

    def add(
        self,
        key: Key,
        row: Row,
        flight_key: FlightKey,
        options: RequestOptions,
        missed: Miss | None = None,
    ) -> RowFuture:
        """Add a row to the batch that starts at the end of this turn of the event loop.

        A key that is already in flight gets a second flight (`no-cache` needs one). Later requests join the newer
        flight, unless that one asks no model.
        """
        return self.add_all({key: row}, flight_key, options, {} if missed is None else {key: missed})[0]

    def add_all(
        self,
        rows: Mapping[Key, Row],
        flight_key: FlightKey,
        options: RequestOptions,
        missed: Mapping[Key, Miss],
    ) -> list[RowFuture]:
        """The same for many rows; `missed` is what the tiers have answered about some. Of the options the deadline,
        the trace and the caller are used."""
        loop, caller = asyncio.get_running_loop(), options.caller
        in_flight, asks_model, futures = self._in_flight, "model" in flight_key.steps, []
        batch, client = self._collecting.get(flight_key), next(self._client_numbers)
        for key, row in rows.items():
            if batch is None or key in batch.waiters:
                batch = self._collecting[flight_key] = FlightBatch(flight_key)
                loop.call_soon(self._start, batch)
            future: RowFuture = loop.create_future()
            futures.append(future)
            batch.waiters[key] = Waiter(row, future, client, caller)
            if asks_model or key not in in_flight:
                in_flight[key] = batch
            if key in missed:
                batch.missed[key] = missed[key]
            batch.deadline = max(batch.deadline, options.deadline)
            batch.traceparent = batch.traceparent or options.traceparent
            batch.held[caller] += 1
        self._held[caller] += len(rows)
        return futures

    def trace(self, span: str | None, keys: Iterable[Key]) -> None:
        """If the request that waits for these keys is traced, it owns the batches that no other traced one does."""
        if not isinstance(span, RequestSpan):
            return
        for batch in dict.fromkeys(self._in_flight[key] for key in keys if key in self._in_flight):
            if not isinstance(batch.traceparent, Computation):
                batch.traceparent = Computation.of(span)
            elif batch.traceparent.owner is not span:
                span.waited_for.append(batch.traceparent)

    def held(self, caller: str) -> int:
        """How many rows in flight are charged to a caller."""
        return self._held.get(caller, 0)

    def resolve(self, batch: FlightBatch, key: Key, answer: Answer) -> None:
        """Give a key's answer to all its waiters."""
        future = self._remove(batch, key)
        if not future.done():
            future.set_result(answer)

    def fail(self, batch: FlightBatch, keys: Iterable[Key], error: Exception) -> None:
        """Give an error to all waiters of these keys; the next request for them starts a new flight."""
        for key in keys:
            future = self._remove(batch, key)
            if not future.done():
                future.set_exception(error)
                future.exception()  # mark it retrieved: all waiters may have been cancelled

    def fall_back(self, batch: FlightBatch, key: Key, error: ForeseenError) -> bool:
        """Answer a row with its stale entry, if it has one, unless the input itself is wrong."""
        missed = batch.missed.get(key)
        if error.status < 500 or missed is None or missed.stale_fallback is None:
            return False
        self.resolve(batch, key, missed.stale_fallback)
        return True

    def fail_refused(
        self, batch: FlightBatch, missing: Sequence[Key], outcomes: Sequence[Prediction | ForeseenError]
    ) -> tuple[Sequence[Key], list[Prediction]]:
        """Rows that the model refuses, or that are in quarantine, get their error; the others, with predictions."""
        answered = {key: one for key, one in zip(missing, outcomes, strict=True) if isinstance(one, Prediction)}
        for key, outcome in zip(missing, outcomes, strict=True):
            if not isinstance(outcome, Prediction) and not self.fall_back(batch, key, outcome):
                self.fail(batch, [key], outcome)
        return list(answered), list(answered.values())

    def forget(self, key: Key) -> None:
        """Let no further request join the flight of this key; its present waiters still get the answer."""
        self.forgotten += 1
        self._in_flight.pop(key, None)

    async def drain(self, seconds: float) -> None:
        """Wait for the batches in progress, at most `seconds`, then cancel them."""
        await asyncio.sleep(0)  # start the batches being collected: that is the last callback of their turn
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=seconds)
            for task in late:
                task.cancel()

    def __len__(self) -> int:
        return len(self._in_flight)

    def __repr__(self) -> str:
        return f"<Flights {len(self._in_flight)} keys in flight, {len(self._tasks)} tasks>"

    def _remove(self, batch: FlightBatch, key: Key) -> RowFuture:
        if self._in_flight.get(key) is batch:
            del self._in_flight[key]
        waiter = batch.waiters[key]
        if not waiter.future.done():
            batch.held[waiter.caller] -= 1
            self._release(waiter.caller, 1)
        return waiter.future

    def _release(self, caller: str, rows: int) -> None:
        self._held[caller] -= rows
        if not self._held[caller]:
            del self._held[caller]

    def _start(self, batch: FlightBatch) -> None:
        if self._collecting.get(batch.flight_key) is batch:
            del self._collecting[batch.flight_key]
        batch.started = True
        task = asyncio.get_running_loop().create_task(self._run(batch))
        self._tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)

    async def _run(self, batch: FlightBatch) -> None:
        error: Exception = ModelUnavailable("the proxy is stopping")
        try:
            await self._run_batch(batch)
        except Exception as raised:  # noqa: BLE001 - the waiters get every kind of error
            error = raised
        finally:
            self.fail(batch, [key for key, waiter in batch.waiters.items() if not waiter.future.done()], error)
            for caller, rows in batch.held.items():  # of futures that were cancelled
                if rows:
                    self._release(caller, rows)


def _suits(batch: FlightBatch, flight_key: FlightKey) -> bool:
    """Whether a request with this flight key would accept every answer that the batch may give."""
    there = batch.flight_key
    if there == flight_key:
        return not (batch.started and there.computes)
    if ("model" in there.steps) != ("model" in flight_key.steps):  # only-if-cached never waits for a model request
        return False
    if there.computes:
        return not (flight_key.computes and batch.started)
    if flight_key.computes:
        return False
    strict = there.age_limits.max_stale is None and there.age_limits.stale_if_error is None
    return there.age_limits == flight_key.age_limits or (flight_key.age_limits == ANY_AGE and strict)
