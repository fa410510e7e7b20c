"""Flights: one future per key, boarded in a turn of the event loop, owned by nobody who waits."""

from __future__ import annotations

import asyncio

import pytest

from foreseen.errors import ModelUnavailable
from foreseen.nouns import ALL_STEPS, Answer, Key, Space
from proxy.flight import Cabin, Flights, Party
from tests.doubles import numbered, predicted, row

PARTY = Party(Space("public", "m", "d"), b"", "online", ALL_STEPS)
OTHER = Party(Space("public", "m", "d"), b"", "background", ALL_STEPS)
KEYS = numbered(3)


class Scripted:
    """Carries cabins: waits for the test's word, then lands or raises."""

    def __init__(self) -> None:
        self.flown: list[list[Key]] = []
        self.word = asyncio.Event()
        self.error: Exception | None = None
        self.leave_aloft = False
        self.flights = Flights(self.fly)

    async def fly(self, cabin: Cabin) -> None:
        self.flown.append(list(cabin.seats))
        await self.word.wait()
        if self.error is not None:
            raise self.error
        if not self.leave_aloft:
            for key in cabin.seats:
                self.flights.land(cabin, key, Answer(predicted(1), "model"))


async def test_one_cabin_per_party_and_turn() -> None:
    """Those who board in one turn leave together; another lane has a cabin of its own."""
    script = Scripted()
    script.word.set()
    landings = [script.flights.board(key, row(1), PARTY, 1.0) for key in KEYS[:2]]
    landings.append(script.flights.board(KEYS[2], row(1), OTHER, 1.0))
    await asyncio.gather(*landings)
    assert sorted(map(len, script.flown)) == [1, 2]
    later = script.flights.board(KEYS[0], row(1), PARTY, 1.0)
    await later
    assert len(script.flown) == 3


async def test_a_key_aloft_is_joined_until_it_lands() -> None:
    """Joining gives the very same landing; after it there is none to join."""
    script = Scripted()
    landing = script.flights.board(KEYS[0], row(1), PARTY, 1.0)
    assert script.flights.join(KEYS[0], PARTY) is landing
    assert script.flights.join(KEYS[1], PARTY) is None
    script.word.set()
    assert (await landing).source == "model"
    assert script.flights.join(KEYS[0], PARTY) is None
    assert len(script.flights) == 0


async def test_an_error_crashes_those_aboard_only() -> None:
    """Whatever the flight raises reaches its seats, and nobody is left aloft."""
    script = Scripted()
    script.error = ModelUnavailable("gone")
    landing = script.flights.board(KEYS[0], row(1), PARTY, 1.0)
    script.word.set()
    with pytest.raises(ModelUnavailable, match="gone"):
        await landing
    assert script.flights.join(KEYS[0], PARTY) is None


async def test_what_a_flight_forgets_to_land_crashes() -> None:
    """A bug in the story is an error for those aboard, never a wait for ever."""
    script = Scripted()
    script.leave_aloft = True
    landing = script.flights.board(KEYS[0], row(1), PARTY, 1.0)
    script.word.set()
    with pytest.raises(ModelUnavailable):
        await landing


async def test_a_second_flight_of_a_key_does_not_land_the_first() -> None:
    """`no-cache` flies again beside a flight under way: each lands its own, later ones join the newer."""
    script = Scripted()
    first = script.flights.board(KEYS[0], row(1), PARTY, 1.0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second = script.flights.board(KEYS[0], row(1), PARTY, 1.0)
    assert script.flights.join(KEYS[0], PARTY) is second is not first
    script.word.set()
    await asyncio.gather(first, second)
    assert script.flown == [[KEYS[0]], [KEYS[0]]]
    assert len(script.flights) == 0


async def test_the_same_key_twice_in_one_turn_takes_two_cabins() -> None:
    """A seat is never given to two futures."""
    script = Scripted()
    script.word.set()
    landings = [script.flights.board(KEYS[0], row(1), PARTY, 1.0) for _ in range(2)]
    await asyncio.gather(*landings)
    assert len(script.flown) == 2


async def test_drain_ends_what_does_not_land_in_time() -> None:
    """At the end of the process those aboard hear that it is stopping."""
    script = Scripted()
    landing = script.flights.board(KEYS[0], row(1), PARTY, 1.0)
    await asyncio.sleep(0)
    await script.flights.drain(0.01)
    with pytest.raises(ModelUnavailable, match="stopping"):
        await landing


async def test_deadline_and_traceparent_of_a_cabin() -> None:
    """The latest deadline aboard, and the first trace that came along."""
    seen: list[Cabin] = []

    async def fly(cabin: Cabin) -> None:
        seen.append(cabin)

    flights = Flights(fly)
    flights.board(KEYS[0], row(1), PARTY, 5.0)
    flights.board(KEYS[1], row(2), PARTY, 9.0, "00-a")
    flights.board(KEYS[2], row(3), PARTY, 7.0, "00-b")
    await flights.drain(5)
    assert [(cabin.deadline, cabin.traceparent, len(cabin.seats)) for cabin in seen] == [(9.0, "00-a", 3)]
    assert "m online 3 rows" in repr(seen[0])
