"""Flights: one future per key. Rows of one turn of the event loop share a batch, which no waiting caller owns."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from foreseen.errors import ModelUnavailable
from foreseen.proxy.cache.flight import FlightBatch, FlightKey, Flights
from foreseen.telemetry.spans import Computation, RequestSpan, SpanSink
from foreseen.types import ALL_STEPS, ANY_AGE, Answer, Key, MaxAge, Miss, RequestOptions, Space, Steps
from tests.doubles import numbered, predicted, row

FLIGHT = FlightKey(Space("public", "m", "d"), b"", "online", ALL_STEPS)
OTHER = FlightKey(Space("public", "m", "d"), b"", "background", ALL_STEPS)
KEYS = numbered(3)
SOON = RequestOptions(1.0)


class Scripted:
    """Runs batches: waits for the test, then resolves every key or raises."""

    def __init__(self) -> None:
        self.ran: list[list[Key]] = []
        self.go = asyncio.Event()
        self.error: Exception | None = None
        self.leave_in_flight = False
        self.flights = Flights(self.run_batch)

    async def run_batch(self, batch: FlightBatch) -> None:
        self.ran.append(list(batch.waiters))
        await self.go.wait()
        if self.error is not None:
            raise self.error
        if not self.leave_in_flight:
            for key in batch.waiters:
                self.flights.resolve(batch, key, Answer(predicted(1), "model"))


async def test_one_batch_per_flight_key_and_turn() -> None:
    """Rows added in one turn make one batch; another lane has a batch of its own."""
    script = Scripted()
    script.go.set()
    futures = [script.flights.add(key, row(1), FLIGHT, SOON) for key in KEYS[:2]]
    futures.append(script.flights.add(KEYS[2], row(1), OTHER, SOON))
    await asyncio.gather(*futures)
    assert sorted(map(len, script.ran)) == [1, 2]
    later = script.flights.add(KEYS[0], row(1), FLIGHT, SOON)
    await later
    assert len(script.ran) == 3


async def test_a_key_in_flight_is_joined_until_it_is_resolved() -> None:
    """Joining gives the very same future; once it is resolved there is none to join."""
    script = Scripted()
    future = script.flights.add(KEYS[0], row(1), FLIGHT, SOON)
    assert script.flights.join(KEYS[0], FLIGHT) is future
    assert script.flights.join(KEYS[1], FLIGHT) is None
    script.go.set()
    assert (await future).source == "model"
    assert script.flights.join(KEYS[0], FLIGHT) is None
    assert len(script.flights) == 0


async def test_an_error_fails_the_rows_of_its_batch_only() -> None:
    """Every error of a batch reaches its waiters, and no row stays in flight."""
    script = Scripted()
    script.error = ModelUnavailable("gone")
    future = script.flights.add(KEYS[0], row(1), FLIGHT, SOON)
    script.go.set()
    with pytest.raises(ModelUnavailable, match="gone"):
        await future
    assert script.flights.join(KEYS[0], FLIGHT) is None


async def test_what_a_flight_forgets_to_land_crashes() -> None:
    """A bug in the pipeline is an error for the waiters, never an endless wait."""
    script = Scripted()
    script.leave_in_flight = True
    future = script.flights.add(KEYS[0], row(1), FLIGHT, SOON)
    script.go.set()
    with pytest.raises(ModelUnavailable):
        await future


async def test_a_second_flight_of_a_key_does_not_resolve_the_first() -> None:
    """`no-cache` starts another flight beside one under way: each resolves its waiters; later ones join the newer."""
    script = Scripted()
    first = script.flights.add(KEYS[0], row(1), FLIGHT, SOON)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second = script.flights.add(KEYS[0], row(1), FLIGHT, SOON)
    assert script.flights.join(KEYS[0], FLIGHT) is second is not first
    script.go.set()
    await asyncio.gather(first, second)
    assert script.ran == [[KEYS[0]], [KEYS[0]]]
    assert len(script.flights) == 0


async def test_the_same_key_twice_in_one_turn_takes_two_batches() -> None:
    """A key never has two futures in one batch."""
    script = Scripted()
    script.go.set()
    futures = [script.flights.add(KEYS[0], row(1), FLIGHT, SOON) for _ in range(2)]
    await asyncio.gather(*futures)
    assert len(script.ran) == 2


async def test_drain_ends_what_does_not_land_in_time() -> None:
    """At the end of the process the waiters get the error that it is stopping."""
    script = Scripted()
    future = script.flights.add(KEYS[0], row(1), FLIGHT, SOON)
    await asyncio.sleep(0)
    await script.flights.drain(0.01)
    with pytest.raises(ModelUnavailable, match="stopping"):
        await future


async def test_deadline_and_traceparent_of_a_cabin() -> None:
    """A batch has the latest deadline of its waiters, and the first trace."""
    seen: list[FlightBatch] = []

    async def run_batch(batch: FlightBatch) -> None:
        seen.append(batch)

    flights = Flights(run_batch)
    flights.add(KEYS[0], row(1), FLIGHT, RequestOptions(5.0))
    flights.add(KEYS[1], row(2), FLIGHT, RequestOptions(9.0, traceparent="00-a"))
    flights.add(KEYS[2], row(3), FLIGHT, RequestOptions(7.0, traceparent="00-b"))
    await flights.drain(5)
    assert [(batch.deadline, batch.traceparent, len(batch.waiters)) for batch in seen] == [(9.0, "00-a", 3)]
    assert "m online 3 rows" in repr(seen[0])


ALL, FRESHLY, CACHED = ALL_STEPS, frozenset({"model", "keep"}), frozenset({"near", "far"})
STRICT, PATIENT, FORGIVING = MaxAge(max_age=5.0), MaxAge(max_stale=9.0), MaxAge(stale_if_error=9.0)


@pytest.mark.parametrize(
    ("there", "started", "asks", "joins"),
    [
        ((ALL, ANY_AGE), False, (ALL, ANY_AGE), True),
        ((ALL, ANY_AGE), True, (ALL, ANY_AGE), True),
        ((CACHED, ANY_AGE), False, (ALL, ANY_AGE), False),
        ((ALL, ANY_AGE), False, (CACHED, ANY_AGE), False),
        ((CACHED, ANY_AGE), False, (CACHED, ANY_AGE), True),
        ((FRESHLY, ANY_AGE), False, (FRESHLY, ANY_AGE), True),
        ((FRESHLY, ANY_AGE), True, (FRESHLY, ANY_AGE), False),
        ((FRESHLY, ANY_AGE), True, (ALL, ANY_AGE), True),
        ((FRESHLY, ANY_AGE), False, (ALL, STRICT), True),
        ((ALL, ANY_AGE), False, (FRESHLY, ANY_AGE), False),
        ((ALL, STRICT), False, (ALL, STRICT), True),
        ((ALL, STRICT), False, (ALL, ANY_AGE), True),
        ((ALL, ANY_AGE), False, (ALL, STRICT), False),
        ((ALL, PATIENT), False, (ALL, ANY_AGE), False),
        ((ALL, FORGIVING), False, (ALL, ANY_AGE), False),
        ((ALL, PATIENT), False, (ALL, PATIENT), True),
        ((ALL, PATIENT), False, (ALL, FORGIVING), False),
    ],
)
async def test_nobody_joins_what_could_land_more_than_they_take(
    there: tuple[Steps, MaxAge], started: bool, asks: tuple[Steps, MaxAge], joins: bool
) -> None:
    """Who joins whom: by the steps, by what was asked of ages, and for no-cache by whether it has begun."""
    script = Scripted()
    future = script.flights.add(KEYS[0], row(1), flight_key(*there), SOON)
    if started:
        await asyncio.sleep(0)
    assert (script.flights.join(KEYS[0], flight_key(*asks)) is future) == joins
    script.go.set()
    await script.flights.drain(5)


def flight_key(steps: Steps, age_limits: MaxAge) -> FlightKey:
    return FlightKey(FLIGHT.space, b"", "online", steps, age_limits)


async def test_a_spare_is_there_while_its_key_is_aloft() -> None:
    """The stale answer that came along with a row, for whoever can wait no longer; none before, none after."""
    script = Scripted()
    stale = Answer(predicted(9), "stale")
    script.flights.add(KEYS[0], row(1), FLIGHT, SOON, Miss("expired", stale))
    script.flights.add(KEYS[1], row(2), FLIGHT, SOON)
    assert script.flights.stale_fallback(KEYS[0]) is stale
    assert script.flights.stale_fallback(KEYS[1]) is None
    assert script.flights.stale_fallback(KEYS[2]) is None
    script.go.set()
    await script.flights.drain(5)
    assert script.flights.stale_fallback(KEYS[0]) is None


async def test_a_forgotten_key_is_joined_by_nobody_and_still_lands() -> None:
    """Waiters of a forgotten flight keep waiting; the next request starts a new one."""
    script = Scripted()
    future = script.flights.add(KEYS[0], row(1), FLIGHT, SOON)
    assert script.flights.forgotten == 0
    script.flights.forget(KEYS[0])
    script.flights.forget(KEYS[1])
    assert script.flights.forgotten == 2
    assert script.flights.join(KEYS[0], FLIGHT) is None
    script.go.set()
    assert (await future).source == "model"


async def test_a_new_cabin_is_empty() -> None:
    """No deadline, no waiter, not started, no trace."""
    batch = FlightBatch(FLIGHT)
    assert (batch.deadline, batch.started, batch.traceparent, batch.waiters, batch.missed) == (
        0.0,
        False,
        None,
        {},
        {},
    )


async def test_rows_in_flight_are_charged_to_the_caller_that_asked_first() -> None:
    """A caller that joins is charged nothing; what has ended, failed or was cancelled is held by none."""
    script = Scripted()
    futures = script.flights.add_all({KEYS[0]: row(1), KEYS[1]: row(2)}, FLIGHT, RequestOptions(1.0, caller="a"), {})
    futures.append(script.flights.add(KEYS[2], row(3), FLIGHT, RequestOptions(1.0, caller="b")))
    script.flights.join(KEYS[0], FLIGHT)
    assert [script.flights.held(caller) for caller in ("a", "b", "c")] == [2, 1, 0]
    more = script.flights.add(numbered(4)[3], row(4), FLIGHT, RequestOptions(1.0, caller="a"))
    assert script.flights.held("a") == 3, "a caller's rows add up over its requests"
    futures[1].cancel()
    script.go.set()
    await script.flights.drain(5)
    assert [script.flights.held(caller) for caller in ("a", "b", "c")] == [0, 0, 0]
    assert (await more).source == "model"


async def test_a_traced_request_owns_the_batches_of_its_rows_or_waits_for_another_traced_one() -> None:
    """The first traced request that waits for a batch owns its computation; a later one links to it, once a batch."""
    script = Scripted()
    sink = cast(SpanSink, None)
    one, other = RequestSpan.under(None, sink), RequestSpan.under(None, sink)
    script.flights.add(KEYS[0], row(1), FLIGHT, SOON)
    script.flights.add(KEYS[1], row(2), FLIGHT, SOON)
    script.flights.trace("00-plain", KEYS)
    script.flights.trace(one, [KEYS[2], KEYS[0], KEYS[1]])
    script.flights.trace(one, KEYS)
    script.flights.trace(other, [KEYS[1], KEYS[0]])
    batch = script.flights._in_flight[KEYS[0]]
    assert isinstance(batch.traceparent, Computation)
    assert batch.traceparent.owner is one
    assert one.waited_for == []
    assert other.waited_for == [batch.traceparent]
    script.go.set()
    await script.flights.drain(5)
