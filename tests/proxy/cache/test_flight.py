"""Flights: one future per key, boarded in a turn of the event loop, owned by nobody who waits."""

from __future__ import annotations

import asyncio

import pytest

from foreseen.errors import ModelUnavailable
from foreseen.proxy.cache.flight import Cabin, Flights, Party
from foreseen.types import ALL_STEPS, AT_EASE, Answer, Demand, Key, Missed, Space, Steps
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


ALL, FRESHLY, CACHED = ALL_STEPS, frozenset({"model", "keep"}), frozenset({"near", "far"})
STRICT, PATIENT, FORGIVING = Demand(max_age=5.0), Demand(max_stale=9.0), Demand(stale_if_error=9.0)


@pytest.mark.parametrize(
    ("there", "departed", "asks", "joins"),
    [
        ((ALL, AT_EASE), False, (ALL, AT_EASE), True),
        ((ALL, AT_EASE), True, (ALL, AT_EASE), True),
        ((CACHED, AT_EASE), False, (ALL, AT_EASE), False),
        ((ALL, AT_EASE), False, (CACHED, AT_EASE), False),
        ((CACHED, AT_EASE), False, (CACHED, AT_EASE), True),
        ((FRESHLY, AT_EASE), False, (FRESHLY, AT_EASE), True),
        ((FRESHLY, AT_EASE), True, (FRESHLY, AT_EASE), False),
        ((FRESHLY, AT_EASE), True, (ALL, AT_EASE), True),
        ((FRESHLY, AT_EASE), False, (ALL, STRICT), True),
        ((ALL, AT_EASE), False, (FRESHLY, AT_EASE), False),
        ((ALL, STRICT), False, (ALL, STRICT), True),
        ((ALL, STRICT), False, (ALL, AT_EASE), True),
        ((ALL, AT_EASE), False, (ALL, STRICT), False),
        ((ALL, PATIENT), False, (ALL, AT_EASE), False),
        ((ALL, FORGIVING), False, (ALL, AT_EASE), False),
        ((ALL, PATIENT), False, (ALL, PATIENT), True),
        ((ALL, PATIENT), False, (ALL, FORGIVING), False),
    ],
)
async def test_nobody_joins_what_could_land_more_than_they_take(
    there: tuple[Steps, Demand], departed: bool, asks: tuple[Steps, Demand], joins: bool
) -> None:
    """Who joins whom: by the steps, by what was asked of ages, and for no-cache by whether it has begun."""
    script = Scripted()
    landing = script.flights.board(KEYS[0], row(1), party(*there), 1.0)
    if departed:
        await asyncio.sleep(0)
    assert (script.flights.join(KEYS[0], party(*asks)) is landing) == joins
    script.word.set()
    await script.flights.drain(5)


def party(steps: Steps, demand: Demand) -> Party:
    return Party(PARTY.space, b"", "online", steps, demand)


async def test_a_spare_is_there_while_its_key_is_aloft() -> None:
    """The stale answer that came along with a row, for whoever can wait no longer; none before, none after."""
    script = Scripted()
    stale = Answer(predicted(9), "stale")
    script.flights.board(KEYS[0], row(1), PARTY, 1.0, None, Missed("expired", stale))
    script.flights.board(KEYS[1], row(2), PARTY, 1.0)
    assert script.flights.spare(KEYS[0]) is stale
    assert script.flights.spare(KEYS[1]) is None
    assert script.flights.spare(KEYS[2]) is None
    script.word.set()
    await script.flights.drain(5)
    assert script.flights.spare(KEYS[0]) is None


async def test_a_forgotten_key_is_joined_by_nobody_and_still_lands() -> None:
    """Those aboard keep their seats; the next asker boards anew."""
    script = Scripted()
    landing = script.flights.board(KEYS[0], row(1), PARTY, 1.0)
    script.flights.forget(KEYS[0])
    script.flights.forget(KEYS[1])
    assert script.flights.join(KEYS[0], PARTY) is None
    script.word.set()
    assert (await landing).source == "model"


async def test_a_new_cabin_is_empty() -> None:
    """No deadline, nobody aboard, not departed, no trace."""
    cabin = Cabin(PARTY)
    assert (cabin.deadline, cabin.departed, cabin.traceparent, cabin.seats, cabin.missed) == (0.0, False, None, {}, {})
