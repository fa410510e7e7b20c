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
from foreseen.types import AT_EASE, Answer, Demand, Key, Lane, Missed, Row, Space, Steps

Landing = asyncio.Future[Answer]


class Party(NamedTuple):
    """Who may share a cabin: rows that differ in one of these are asked apart."""

    space: Space
    parameters: bytes
    lane: Lane
    steps: Steps
    demand: Demand = AT_EASE

    @property
    def computes(self) -> bool:
        """Whether all it lands is computed after it began: `no-cache` takes nothing else."""
        return not self.steps & {"near", "far"}


class Seat(Struct, frozen=True):
    row: Row
    landing: Landing
    asker: int
    """Equal of rows that somebody asks for together."""


class Cabin:
    """Those that leave together. `deadline` is the latest aboard, on the event loop's clock; `missed` is
    what tiers said of its keys so far."""

    __slots__ = ("began", "deadline", "departed", "missed", "party", "seats", "traceparent")

    def __init__(self, party: Party) -> None:
        self.party = party
        self.deadline = 0.0
        self.began = asyncio.get_running_loop().time()
        self.departed = False
        self.traceparent: str | None = None
        self.seats: dict[Key, Seat] = {}
        self.missed: dict[Key, Missed] = {}

    def __repr__(self) -> str:
        return f"<Cabin {self.party.space.model} {self.party.lane} {len(self.seats)} rows>"


class Flights:
    """What is aloft. `fly` carries one cabin and lands its keys; what it leaves aloft, or raises, crashes."""

    def __init__(self, fly: Callable[[Cabin], Awaitable[None]]) -> None:
        self._fly = fly
        self.forgotten = 0
        """How many keys were forgotten, ever."""
        self._aloft: dict[Key, Cabin] = {}
        self._boarding: dict[Party, Cabin] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._askers = itertools.count()

    def join(self, key: Key, party: Party) -> Landing | None:
        """The landing of a key that is already aloft or boarding, where it suits this party."""
        cabin = self._aloft.get(key)
        return cabin.seats[key].landing if cabin is not None and _suits(cabin, party) else None

    def spare(self, key: Key) -> Answer | None:
        """The stale answer of a key that is aloft, for somebody who cannot wait any longer."""
        cabin = self._aloft.get(key)
        missed = None if cabin is None else cabin.missed.get(key)
        return None if missed is None else missed.spare

    def board(
        self,
        key: Key,
        row: Row,
        party: Party,
        deadline: float,
        traceparent: str | None = None,
        missed: Missed | None = None,
    ) -> Landing:
        """Take a row aboard; it leaves at the end of this turn of the event loop.

        A key that is already aloft gets a second flight (`no-cache` asks for that); later ones join the newer, unless
        that one asks no model.
        """
        return self.board_all({key: row}, party, deadline, traceparent, {} if missed is None else {key: missed})[0]

    def board_all(
        self,
        rows: Mapping[Key, Row],
        party: Party,
        deadline: float,
        traceparent: str | None,
        missed: Mapping[Key, Missed],
    ) -> list[Landing]:
        """The same of many rows; `missed` is what tiers have said of some."""
        loop = asyncio.get_running_loop()
        aloft, asks_model, landings = self._aloft, "model" in party.steps, []
        cabin, asker = self._boarding.get(party), next(self._askers)
        for key, row in rows.items():
            if cabin is None or key in cabin.seats:
                cabin = self._boarding[party] = Cabin(party)
                loop.call_soon(self._depart, cabin)
            landing: Landing = loop.create_future()
            landings.append(landing)
            cabin.seats[key] = Seat(row, landing, asker)
            if asks_model or key not in aloft:
                aloft[key] = cabin
            if key in missed:
                cabin.missed[key] = missed[key]
            cabin.deadline = max(cabin.deadline, deadline)
            cabin.traceparent = cabin.traceparent or traceparent
        return landings

    def land(self, cabin: Cabin, key: Key, answer: Answer) -> None:
        """Hand a key's answer to everybody aboard."""
        landing = self._leave(cabin, key)
        if not landing.done():
            landing.set_result(answer)

    def crash(self, cabin: Cabin, keys: Iterable[Key], error: Exception) -> None:
        """Hand an error to everybody aboard of these keys; the next asker starts anew."""
        for key in keys:
            landing = self._leave(cabin, key)
            if not landing.done():
                landing.set_exception(error)
                landing.exception()  # mark it seen: where everybody has left, nobody would

    def forget(self, key: Key) -> None:
        """Nobody joins a flight of this key from now on; those aboard keep their seats."""
        self.forgotten += 1
        self._aloft.pop(key, None)

    async def drain(self, seconds: float) -> None:
        """Wait for what is aloft, at most so long, then end it."""
        await asyncio.sleep(0)  # let those boarding depart: that is the last callback of their turn
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=seconds)
            for task in late:
                task.cancel()

    def __len__(self) -> int:
        return len(self._aloft)

    def __repr__(self) -> str:
        return f"<Flights {len(self._aloft)} keys aloft, {len(self._tasks)} tasks>"

    def _leave(self, cabin: Cabin, key: Key) -> Landing:
        if self._aloft.get(key) is cabin:
            del self._aloft[key]
        return cabin.seats[key].landing

    def _depart(self, cabin: Cabin) -> None:
        if self._boarding.get(cabin.party) is cabin:
            del self._boarding[cabin.party]
        cabin.departed = True
        task = asyncio.get_running_loop().create_task(self._carry(cabin))
        self._tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, cabin: Cabin) -> None:
        error: Exception = ModelUnavailable("the proxy is stopping")
        try:
            await self._fly(cabin)
        except Exception as raised:  # noqa: BLE001 - whatever it was belongs to those aboard
            error = raised
        finally:
            self.crash(cabin, [key for key, seat in cabin.seats.items() if not seat.landing.done()], error)


def _suits(cabin: Cabin, party: Party) -> bool:
    """Whether all that a flight may land is what the party would take."""
    there = cabin.party
    if there == party:
        return not (cabin.departed and there.computes)
    if ("model" in there.steps) != ("model" in party.steps):  # only-if-cached waits for no model, nor ends others' wait
        return False
    if there.computes:
        return not (party.computes and cabin.departed)
    if party.computes:
        return False
    strict = there.demand.max_stale is None and there.demand.stale_if_error is None
    return there.demand == party.demand or (party.demand == AT_EASE and strict)
