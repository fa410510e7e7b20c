"""The waiting rows of a lane: every row is taken once, the most urgent first, within the limits."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np
import pytest

from foreseen.inference.batching.queued import BatchLimits, BatchOrder, QueuedRequest
from foreseen.inference.batching.waiting import Waiting
from foreseen.types import Row

ROW = Row((np.zeros(1),))


def request(lane: Waiting, lengths: list[int], deadline: float, caller: str = "") -> QueuedRequest:
    future: Any = asyncio.Future  # never awaited here
    asked = QueuedRequest(future, BatchOrder(deadline, caller=caller), len(lengths), 0.0)
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
