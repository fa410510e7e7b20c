"""The waiting rows of a lane: every row is taken once, the most urgent first, within the limits."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np
import pytest

from foreseen.inference.batching.neighbours import COMPANY_SECONDS
from foreseen.inference.batching.queued import BatchLimits, BatchOrder, PendingRow, QueuedRequest
from foreseen.inference.batching.waiting import Lanes, Waiting
from foreseen.types import Row

ROW = Row((np.zeros(1),))


def request(lane: Waiting, lengths: list[int], deadline: float, caller: str = "") -> QueuedRequest:
    asked = QueuedRequest(NEVER, BatchOrder(deadline, caller=caller), len(lengths), 0.0)
    lane.add(asked, [ROW] * len(lengths), lengths)
    return asked


@pytest.mark.parametrize("seed", range(20))
def test_every_row_is_taken_once_or_dropped(seed: int) -> None:
    """Whatever comes, leaves and runs in whatever order: no row is lost, none runs twice, limits hold."""
    dice = random.Random(seed)
    limits = BatchLimits(
        max_rows=dice.randint(1, 9), max_tokens=dice.randint(10, 200), start_tokens=dice.randint(0, 20)
    )
    lane, expected, alive = Waiting(), set[tuple[int, int]](), list[QueuedRequest]()
    for _ in range(300):
        what = dice.random()
        if what < 0.5:
            lengths = [dice.randint(1, 40) for _ in range(dice.randint(1, 6))]
            asked = request(lane, lengths, dice.random(), dice.choice("aab"))
            alive.append(asked)
            expected |= {(id(asked), index) for index in range(len(lengths))}
        elif what < 0.6 and alive:
            asked = alive[dice.randrange(len(alive))]
            expected -= {(id(asked), entry[3].index) for entry in asked.waiting.values()}
            lane.drop(asked)
        else:
            turn = lane.order.next()
            urgent = min((a.rank for a in alive if a.waiting and a.order.caller == turn), default=None)
            ranks = {id(a): a.rank for a in alive}
            batch = lane.take(limits)
            if urgent is None:
                assert batch == []
                continue
            taken = {(id(item.asked), item.index) for item in batch}
            assert taken <= expected
            assert len(taken) == len(batch) <= limits.max_rows
            expected -= taken
            assert urgent in {ranks[id(item.asked)] for item in batch}
            lengths = [item.length for item in batch]
            assert len(batch) == 1 or len(batch) * max(lengths) <= limits.max_tokens
        assert len(lane) == len(expected)


def test_finished_requests_do_not_pile_up() -> None:
    """A request that ran as somebody's neighbour is forgotten although its deadline is far away."""
    lane = Waiting()
    request(lane, [500], 0.5)  # too long for company; it never runs here, so nothing behind it reaches the heap's top
    for number in range(5000):
        asked = request(lane, [1], 10.0 + number)
        lane.drop(asked)
    assert len(lane) == 1
    assert len(list(lane._by_deadline)) <= 2 * 1 + 64


def test_an_empty_lane_gives_an_empty_batch() -> None:
    """Absence is an empty batch."""
    assert Waiting().take(BatchLimits()) == []


NEVER: Any = asyncio.Future
"""Stands for the future of a request that is not awaited here."""


def shared(**limits: Any) -> Lanes:
    """Lanes of a model that takes 0.1 ms a token, so that a short run is one of 100 tokens."""
    chosen: dict[str, Any] = {"max_rows": 32, "start_tokens": 4, "piece_seconds": 0.01, **limits}
    lanes = Lanes(BatchLimits(**chosen))
    lanes.token_seconds = 0.0001
    return lanes


def waits(lanes: Lanes, caller: str, rows: int, since: float = 0.0) -> QueuedRequest:
    asked = QueuedRequest(NEVER, BatchOrder(1000.0, caller=caller), rows, since)
    lanes.add(asked, [ROW] * rows, [10] * rows)
    return asked


def taken(lanes: Lanes, now: float = 0.0) -> list[PendingRow]:
    return lanes.take(now, lambda: None).batch


def test_runs_are_short_while_several_callers_ask() -> None:
    """One caller alone has full batches; from another's first row on, and for ten seconds after its last, a run is 100
    tokens at most, and the other's row runs without the wide caller's."""
    lanes = shared()
    waits(lanes, "wide", 200)
    assert len(taken(lanes)) == 32
    narrow = waits(lanes, "narrow", 1)
    assert [item.asked for item in taken(lanes)] == [narrow]
    waits(lanes, "wide", 1, 5.0)
    assert len(taken(lanes, 5.0)) == 10
    assert len(taken(lanes, COMPANY_SECONDS + 5.1)) == 32


def test_single_rows_of_many_callers_fill_a_batch() -> None:
    """Nobody holds another up with one row."""
    lanes = shared()
    for number in range(40):
        waits(lanes, str(number), 1)
    assert len(taken(lanes)) == 32


def test_narrow_callers_share_short_runs_beside_a_wide_one() -> None:
    """Their rows run together, ten at a time, without the wide caller's; every row runs once."""
    lanes = shared()
    wide = waits(lanes, "wide", 64)
    narrow = [waits(lanes, str(number), 1) for number in range(15)]
    runs = []
    while batch := taken(lanes):
        runs.append([item.asked for item in batch])
    of_narrow = [run for run in runs if wide not in run]
    assert [len(run) for run in of_narrow] == [10, 5]
    assert {asked for run in of_narrow for asked in run} == set(narrow)
    assert [len(run) for run in runs if wide in run] == [10] * 6 + [4]


def test_a_narrow_row_is_not_padded_to_the_length_of_wide_rows() -> None:
    """It runs with the narrow rows around it, though a wide caller's row is nearer in length."""
    lanes = shared()
    for caller, lengths in (("wide", [11] * 64), ("a", [10]), ("b", [14])):
        asked = QueuedRequest(NEVER, BatchOrder(1000.0, caller=caller), len(lengths), 0.0)
        lanes.add(asked, [ROW] * len(lengths), lengths)
    runs = [taken(lanes) for _ in range(8)]
    assert [10, 14] in [[item.length for item in run] for run in runs]


@pytest.mark.parametrize(("limits", "rows"), [({"start_tokens": 40}, 24), ({"piece_seconds": 0}, 32), ({}, 10)])
def test_a_short_run_is_worth_starting(limits: dict[str, float], rows: int) -> None:
    """It costs at least six starts; without a bound it is a batch like any other."""
    lanes = shared(**limits)
    waits(lanes, "narrow", 1)
    waits(lanes, "wide", 64)
    runs = [taken(lanes), taken(lanes)]
    assert max(map(len, runs)) == rows


def test_before_the_first_run_nothing_is_known_of_its_length() -> None:
    """A batch is full then."""
    lanes = shared()
    lanes.token_seconds = 0.0
    waits(lanes, "narrow", 1)
    waits(lanes, "wide", 64)
    assert len(taken(lanes)) == 32


def test_a_single_row_has_its_turn_within_two_short_runs() -> None:
    """Also where its caller asks all the time: its credit is that of others."""
    lanes, rounds = shared(), []
    waits(lanes, "narrow", 1)
    taken(lanes)
    for _ in range(200):
        waits(lanes, "wide", 40)
        narrow = waits(lanes, "narrow", 1)
        rounds.append(next(turn for turn in range(1, 9) if narrow in {item.asked for item in taken(lanes)}))
    assert max(rounds) <= 2
