"""Deficit round robin: callers have as many rows computed, new ones first, and nothing is remembered for ever."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from foreseen.fair_order import SPARE_CALLERS, FairOrder, has_room, rows_before


def take(order: FairOrder, rows: int) -> str | None:
    caller = order.next()
    if caller is not None:
        rows = min(rows, order.waiting[caller])
        order.charge(caller, rows)
        order.remove(caller, rows)
    return caller


@pytest.mark.parametrize("seed", range(10))
def test_callers_that_always_wait_have_as_many_rows(seed: int) -> None:
    """Whatever the width of what they ask for, within a quantum and one request."""
    dice, order, had = random.Random(seed), FairOrder(64), Counter[str]()
    widths = {"a": 1, "b": dice.randint(2, 60), "c": dice.randint(61, 256)}
    for caller in widths:
        order.add(caller, 1_000_000)
    for _ in range(5000):
        caller = order.next()
        assert caller is not None
        order.charge(caller, widths[caller])
        order.remove(caller, widths[caller])
        had[caller] += widths[caller]
    assert max(had.values()) - min(had.values()) <= 2 * (64 + 256)


def test_a_caller_that_had_nothing_waiting_is_next() -> None:
    """Once: if it asks for more it has its turn after those that waited."""
    order = FairOrder(64)
    order.add("wide", 10_000)
    take(order, 64)
    order.add("new", 200)
    assert [take(order, 64) for _ in range(4)] == ["new", "wide", "new", "wide"]


def test_rows_that_went_along_are_paid_for() -> None:
    """Rows that filled another caller's batch count against their own caller's next turns."""
    order = FairOrder(10)
    order.add("a", 1000)
    order.add("b", 1000)
    order.charge("b", 30)
    order.remove("b", 30)
    assert [take(order, 10) for _ in range(5)] == ["a", "a", "a", "a", "b"]


def test_a_caller_has_its_weight_times_the_rows() -> None:
    """Of two that always wait, one of weight 3 and one of weight 1."""
    order = FairOrder(10)
    order.add("a", 10_000, 3)
    order.add("b", 10_000)
    had = Counter(take(order, 10) for _ in range(400))
    assert had == {"a": 300, "b": 100}


def test_a_blocked_caller_is_passed_over() -> None:
    """And none is found where all are."""
    order = FairOrder(10)
    for caller in "abc":
        order.add(caller, 10)
    assert order.next({"a", "c"}.__contains__) == "b"
    assert order.next({"a", "b", "c"}.__contains__) is None
    assert FairOrder().next() is None


def test_callers_are_forgotten() -> None:
    """Those with nothing waiting, though another one waits all the time; all of them where none waits."""
    order = FairOrder(10)
    order.add("stays", 10**9)
    for number in range(10_000):
        order.add(str(number), 1)
        while take(order, 1) != str(number):
            pass
    assert len(order) <= 2 + SPARE_CALLERS
    order.remove("stays", order.waiting["stays"])
    assert len(order) == 0


def test_shares_and_estimates() -> None:
    """Two thirds for one caller; the last of my rows waits for as many of each other caller's as I have."""
    assert has_room(0, 90, 90)
    assert not has_room(0, 91, 90)
    assert has_room(50, 10, 40)
    assert not has_room(60, 1, 30)
    assert rows_before(5, 5, [1, 100]) == 5 + 1 + 10
