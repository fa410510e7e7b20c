"""The soak's judge: what grows is found, what only jumps is not."""

from __future__ import annotations

import random

from tests.chaos.soak import GROWTH_PER_HOUR, judged, slope


def test_a_leak_is_found_and_noise_is_not() -> None:
    """Growth of twice the bound in an hour, under noise of a MiB, against noise alone and against warming up."""
    noise = random.Random(1)
    seconds = [float(at) for at in range(600)]
    leak = [(at, 100 + 2 * GROWTH_PER_HOUR["MiB"] * at / 3600 + noise.random()) for at in seconds]
    flat = [(at, 100 + noise.random()) for at in seconds]
    warming = [(at, 100 + min(at, 190) + noise.random()) for at in seconds]
    told = judged({("a", "MiB"): leak, ("b", "MiB"): flat, ("c", "MiB"): warming}, 600)
    assert [well for *_, well in told] == [False, True, True]


def test_a_slope_is_that_of_the_line() -> None:
    assert slope([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]) == 2.0
    assert slope([(1.0, 1.0)]) == 0.0
