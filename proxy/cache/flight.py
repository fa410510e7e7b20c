"""Keys that somebody is already asking for ↔ those who wait for them: one future per key, far and model in one flight.

Rows that board in one turn of the event loop leave together, in one detached task per cabin (space, parameters, lane,
steps, demand): one MGET, then model and keep. A passenger who leaves cancels nobody; an error reaches those
aboard and is kept by nobody. Nobody joins a flight that could land what they refused to take.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import NamedTuple

from msgspec import Struct

from foreseen.errors import ModelUnavailable
from foreseen.types import ANY_AGE, Answer, Key, Lane, MaxAge, Miss, Row, Space, Steps

RowFuture = asyncio.Future[Answer]


class FlightKey(NamedTuple):
    """Who may share a cabin: rows that differ in one of these are asked apart."""

    space: Space
    parameters: bytes
    lane: Lane
    steps: Steps
    age_limits: MaxAge = ANY_AGE

    @property
    def computes(self) -> bool:
        """Whether all it lands is computed after it began: `no-cache` takes nothing else."""
        return not self.steps & {"near", "far"}


class Waiter(Struct, frozen=True):
    row: Row
    future: RowFuture
    client: int
    """Equal of rows that somebody asks for together."""


class FlightBatch:
    """Those that leave together. `deadline` is the latest aboard, on the event loop's clock; `missed` is
    what tiers said of its keys so far."""

    __slots__ = ("began", "deadline", "departed", "flight_key", "missed", "traceparent", "waiters")

    def __init__(self, flight_key: FlightKey) -> None:
        self.flight_key = flight_key
        self.deadline = 0.0
        self.began = asyncio.get_running_loop().time()
        self.departed = False
        self.traceparent: str | None = None
        self.waiters: dict[Key, Waiter] = {}
        self.missed: dict[Key, Miss] = {}

    def __repr__(self) -> str:
        return f"<FlightBatch {self.flight_key.space.model} {self.flight_key.lane} {len(self.waiters)} rows>"


class Flights:
    """What is aloft. `fly` carries one cabin and lands its keys; what it leaves aloft, or raises, crashes."""

    def __init__(self, fly: Callable[[FlightBatch], Awaitable[None]]) -> None:
        self._fly = fly
        self.forgotten = 0
        """How many keys were forgotten, ever."""
        self._in_flight: dict[Key, FlightBatch] = {}
        self._collecting: dict[FlightKey, FlightBatch] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._client_numbers = itertools.count()

    def join(self, key: Key, flight_key: FlightKey) -> RowFuture | None:
        """The landing of a key that is already aloft or boarding, where it suits this party."""
        batch = self._in_flight.get(key)
        return batch.waiters[key].future if batch is not None and _suits(batch, flight_key) else None

    def spare(self, key: Key) -> Answer | None:
        """The stale answer of a key that is aloft, for somebody who cannot wait any longer."""
        batch = self._in_flight.get(key)
        missed = None if batch is None else batch.missed.get(key)
        return None if missed is None else missed.spare

    def add(
        self,
        key: Key,
        row: Row,
        flight_key: FlightKey,
        deadline: float,
        traceparent: str | None = None,
        missed: Miss | None = None,
    ) -> RowFuture:
        """Take a row aboard; it leaves at the end of this turn of the event loop.

        A key that is already aloft gets a second flight (`no-cache` asks for that); later ones join the newer, unless
        that one asks no model.
        """
        return self.add_all({key: row}, flight_key, deadline, traceparent, {} if missed is None else {key: missed})[0]

    def add_all(
        self,
        rows: Mapping[Key, Row],
        flight_key: FlightKey,
        deadline: float,
        traceparent: str | None,
        missed: Mapping[Key, Miss],
    ) -> list[RowFuture]:
        """The same of many rows; `missed` is what tiers have said of some."""
        loop = asyncio.get_running_loop()
        in_flight, asks_model, futures = self._in_flight, "model" in flight_key.steps, []
        batch, client = self._collecting.get(flight_key), next(self._client_numbers)
        for key, row in rows.items():
            if batch is None or key in batch.waiters:
                batch = self._collecting[flight_key] = FlightBatch(flight_key)
                loop.call_soon(self._depart, batch)
            future: RowFuture = loop.create_future()
            futures.append(future)
            batch.waiters[key] = Waiter(row, future, client)
            if asks_model or key not in in_flight:
                in_flight[key] = batch
            if key in missed:
                batch.missed[key] = missed[key]
            batch.deadline = max(batch.deadline, deadline)
            batch.traceparent = batch.traceparent or traceparent
        return futures

    def resolve(self, batch: FlightBatch, key: Key, answer: Answer) -> None:
        """Hand a key's answer to everybody aboard."""
        future = self._leave(batch, key)
        if not future.done():
            future.set_result(answer)

    def fail(self, batch: FlightBatch, keys: Iterable[Key], error: Exception) -> None:
        """Hand an error to everybody aboard of these keys; the next asker starts anew."""
        for key in keys:
            future = self._leave(batch, key)
            if not future.done():
                future.set_exception(error)
                future.exception()  # mark it seen: where everybody has left, nobody would

    def forget(self, key: Key) -> None:
        """Nobody joins a flight of this key from now on; those aboard keep their seats."""
        self.forgotten += 1
        self._in_flight.pop(key, None)

    async def drain(self, seconds: float) -> None:
        """Wait for what is aloft, at most so long, then end it."""
        await asyncio.sleep(0)  # let those boarding depart: that is the last callback of their turn
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=seconds)
            for task in late:
                task.cancel()

    def __len__(self) -> int:
        return len(self._in_flight)

    def __repr__(self) -> str:
        return f"<Flights {len(self._in_flight)} keys in flight, {len(self._tasks)} tasks>"

    def _leave(self, batch: FlightBatch, key: Key) -> RowFuture:
        if self._in_flight.get(key) is batch:
            del self._in_flight[key]
        return batch.waiters[key].future

    def _depart(self, batch: FlightBatch) -> None:
        if self._collecting.get(batch.flight_key) is batch:
            del self._collecting[batch.flight_key]
        batch.departed = True
        task = asyncio.get_running_loop().create_task(self._carry(batch))
        self._tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, batch: FlightBatch) -> None:
        error: Exception = ModelUnavailable("the proxy is stopping")
        try:
            await self._fly(batch)
        except Exception as raised:  # noqa: BLE001 - whatever it was belongs to those aboard
            error = raised
        finally:
            self.fail(batch, [key for key, waiter in batch.waiters.items() if not waiter.future.done()], error)


def _suits(batch: FlightBatch, flight_key: FlightKey) -> bool:
    """Whether all that a flight may land is what the party would take."""
    there = batch.flight_key
    if there == flight_key:
        return not (batch.departed and there.computes)
    if ("model" in there.steps) != ("model" in flight_key.steps):  # only-if-cached never waits for a model request
        return False
    if there.computes:
        return not (flight_key.computes and batch.departed)
    if flight_key.computes:
        return False
    strict = there.age_limits.max_stale is None and there.age_limits.stale_if_error is None
    return there.age_limits == flight_key.age_limits or (flight_key.age_limits == ANY_AGE and strict)
