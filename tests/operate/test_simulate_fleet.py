"""The simulation of a fleet: what hashing and a fleet that changes must come to, on a trace of a few thousand keys."""

from __future__ import annotations

import numpy as np
import pytest

from bench.fleet import BOUND, ROUTINGS, Costs, Outcome, Ring, Routing, capacity, simulate

KEYS = [int(key) for key in np.unique(np.random.default_rng(1).zipf(1.3, 6000) % 2000, return_inverse=True)[1]]


def run(proxies: int, routing: Routing, *, autoscaling: bool = False) -> Outcome:
    return simulate(KEYS, proxies, 3, routing=routing, autoscaling=autoscaling, near=0.05, far=1.0)


def test_shares_sum_to_one_and_far_keeps_what_fits() -> None:
    """Where far holds everything, the model computes each distinct row once, however requests are spread."""
    distinct = len(set(KEYS)) / len(KEYS)
    for routing in ROUTINGS:
        for proxies in (1, 4, 16):
            one = run(proxies, routing)
            assert one.near + one.far + one.model == pytest.approx(1)
            assert one.model == pytest.approx(distinct)


def test_hashing_keeps_equal_requests_together() -> None:
    """More of near, less far traffic, and the more so the larger the fleet; the price is a busier proxy."""
    gains = []
    for proxies in (2, 8, 32):
        spread, hashed = run(proxies, "any"), run(proxies, "hashed")
        assert hashed.near > spread.near
        assert hashed.far_operations < spread.far_operations
        assert hashed.busiest_proxy > spread.busiest_proxy
        gains.append(hashed.near - spread.near)
    assert gains == sorted(gains)


def test_a_bound_keeps_most_of_it_without_a_busy_proxy() -> None:
    for proxies in (8, 32):
        spread, hashed, bounded = (run(proxies, routing) for routing in ROUTINGS)
        assert bounded.busiest_proxy <= BOUND * 1.05
        assert hashed.busiest_proxy > BOUND
        assert spread.near < bounded.near <= hashed.near


def test_a_fleet_that_changes_costs_near_and_not_the_models() -> None:
    for routing in ROUTINGS:
        fixed, changing = run(8, routing), run(8, routing, autoscaling=True)
        assert changing.model == pytest.approx(fixed.model)
        assert changing.near <= fixed.near + 0.05


def test_a_ring_moves_few_keys() -> None:
    """A ninth proxy takes about a ninth of the keys, and none moves between the others."""
    before, after = Ring(range(8)), Ring(range(9))
    moved = [(before.of(key << 52), after.of(key << 52)) for key in range(4096)]
    changed = [new for old, new in moved if old != new]
    assert set(changed) == {8}
    assert len(changed) / len(moved) < 0.2


def test_what_ends_first_is_by_the_costs() -> None:
    one = Outcome(4, "hashed", False, near=0.5, far=0.4, model=0.1, busiest_proxy=1.0, busiest_shard=1.0)
    costs = Costs(near_micros=10, far_micros=100, miss_micros=1000, redis_get_micros=10, redis_set_micros=20)
    ends = capacity(one, 3, costs)
    assert ends["proxies"] == pytest.approx(4e6 / (5 + 40 + 100))
    assert ends["Redis CPU"] == pytest.approx(3e6 / (0.5 * 10 + 0.1 * 20))
    assert min(ends, key=lambda name: ends[name]) == "proxies"
