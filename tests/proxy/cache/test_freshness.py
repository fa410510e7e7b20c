"""Ages, policies and wishes → decisions; the words of RFC 9111 and RFC 5861; a clock that does not jump."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreseen.modelspec.manifest.policy import Freshness
from foreseen.proxy.cache.clock import SLEW, SteadyClock
from foreseen.proxy.cache.freshness import (
    Control,
    Decision,
    Expired,
    Fresh,
    Policy,
    Recompute,
    Stale,
    age_of,
    control_of,
    decide,
    expiry_of,
    policy_of,
    steps_of,
    usable,
)
from foreseen.types import ALL_STEPS, ANY_AGE, MaxAge

POLICY = Policy(100.0, revalidate_seconds=50.0, if_error_seconds=80.0)
"""Fresh to 100 seconds of age, revalidating to 150, where the model fails to 180."""
SWR, MAX_STALE = Stale("stale-while-revalidate"), Stale("max-stale")


@pytest.mark.parametrize(
    ("age", "age_limits", "decision"),
    [
        (0, ANY_AGE, Fresh()),
        (99, ANY_AGE, Fresh()),
        (100, ANY_AGE, SWR),
        (150, ANY_AGE, SWR),
        (151, ANY_AGE, Recompute("expired", True)),
        (180, ANY_AGE, Expired()),
        (40, MaxAge(max_age=40), Fresh()),
        (41, MaxAge(max_age=40), Recompute("asked", True)),
        (41, MaxAge(max_age=40, stale_if_error=0), Recompute("asked", False)),
        (0.5, MaxAge(max_age=0), Recompute("asked", True)),
        (120, MaxAge(max_age=500), Recompute("expired", True)),  # who says how old takes nothing stale unless told so
        (120, MaxAge(max_age=500, max_stale=20), SWR),
        (45, MaxAge(max_age=40, max_stale=5), Fresh()),
        (46, MaxAge(max_age=40, max_stale=5), Recompute("asked", True)),
        (80, MaxAge(min_fresh=20), Fresh()),
        (81, MaxAge(min_fresh=20), Recompute("asked", True)),
        (110, MaxAge(max_stale=5), Recompute("expired", True)),
        (105, MaxAge(max_stale=5), SWR),
        (160, MaxAge(max_stale=math.inf), MAX_STALE),
        (180, MaxAge(max_stale=math.inf), Expired()),
        (160, MaxAge(stale_if_error=10), Recompute("expired", False)),
        (120, MaxAge(stale_if_error=0), SWR),
    ],
)
def test_decisions(age: float, age_limits: MaxAge, decision: Decision) -> None:
    """What may be done with an entry of this age for a request of this age_limits."""
    assert decide(1000.0, 1100.0, 1000.0 + age, POLICY, age_limits) == decision


@given(
    st.floats(-1e6, 1e6), st.floats(0, 1e5), st.floats(0, 1e5), st.floats(0, 1e5),
    st.builds(MaxAge, *[st.none() | st.floats(0, 1e5)] * 4),
)  # fmt: skip
def test_a_stricter_request_never_gets_more(
    age: float, fresh: float, revalidate: float, if_error: float, age_limits: MaxAge
) -> None:
    """max-age and min-fresh only narrow: what they get without asking, a request without them would have got too."""
    policy = Policy(fresh, revalidate, if_error)
    narrow = decide(0.0, fresh, age, policy, age_limits)
    wide = decide(0.0, fresh, age, policy, MaxAge(None, age_limits.max_stale, None, age_limits.stale_if_error))
    assert usable(wide) or not usable(narrow)


def test_the_policy_is_the_manifest_s_then_the_settings() -> None:
    """A soft TTL ends freshness, the hard one the time in which an entry is answered while it is refreshed."""
    week = Freshness(None, 604800.0, None, 86400.0)
    assert policy_of(Freshness(), week) == Policy(604800.0, 0.0, 86400.0, 604800.0)
    assert policy_of(Freshness(soft_seconds=60), week) == Policy(60.0, 604740.0, 86400.0, 604800.0)
    told = Freshness(soft_seconds=60, hard_seconds=90, stale_while_revalidate_seconds=10, stale_if_error_seconds=0)
    assert policy_of(told, week) == Policy(60.0, 10.0, 0.0, 90.0)
    assert policy_of(told, week).kept_seconds == 30.0


def test_lifetimes_are_spread() -> None:
    """Entries made together do not expire together: ±10 %."""
    lives = [expiry_of(0.0, Policy(1000.0)) for _ in range(200)]
    assert 900 <= min(lives) < 950 < 1050 < max(lives) <= 1100


@pytest.mark.parametrize(
    ("header", "control"),
    [
        ("", Control()),
        ("no-cache", Control(no_cache=True)),
        ("No-Store, ONLY-IF-CACHED", Control(no_store=True, only_if_cached=True)),
        ("max-age=5", Control(age_limits=MaxAge(max_age=5))),
        ('max-age="5"', Control(age_limits=MaxAge(max_age=5))),
        ("max-age=5, max-age=9", Control(age_limits=MaxAge(max_age=5))),
        ("max-stale", Control(age_limits=MaxAge(max_stale=math.inf))),
        ("max-stale=7,min-fresh=3 , stale-if-error=2", Control(age_limits=MaxAge(None, 7, 3, 2))),
        ("max-age=99999999999999999999", Control(age_limits=MaxAge(max_age=2**31))),
        ("max-age, max-age=-1, min-fresh=1.5, stale-if-error=x, max-stale=", Control()),
        ("max-age = 5", Control()),
        ('foo="a, no-store", bar, =, ,,;', Control()),
        ('foo="never closed, no-cache', Control()),
        ("x-no-cache, no-cachet", Control()),
    ],
)
def test_cache_control(header: str, control: Control) -> None:
    """Directives in any case, quoted or not; what is unknown or malformed is ignored."""
    assert control_of(header) == control


@given(st.text(max_size=200))
def test_any_header_is_read(header: str) -> None:
    """Whatever clients send, the worst is that nothing is asked for."""
    assert isinstance(control_of(header), Control)


def test_steps() -> None:
    """no-cache is {model, keep}; no-store all without keep; only-if-cached {near, far}."""
    assert steps_of(Control(no_cache=True), ALL_STEPS) == {"model", "keep"}
    assert steps_of(Control(no_store=True), ALL_STEPS) == {"near", "far", "model"}
    assert steps_of(Control(only_if_cached=True), ALL_STEPS) == {"near", "far"}
    assert steps_of(Control(no_store=True), frozenset(("model",))) == {"model"}


def test_nothing_is_younger_than_new() -> None:
    """An entry from a machine whose clock is ahead has age 0."""
    assert age_of(1000.0, 900.0) == 0.0


def test_a_clock_that_is_set_moves_nothing_by_a_jump() -> None:
    """An hour or three days to either side: a second later it is a second later, give or take the slew."""
    for jump in (-3600.0, 3600.0, -259200.0, 259200.0):
        wall, mono = [1_000_000.0], [50.0]
        clock = SteadyClock(lambda wall=wall: wall[0], lambda mono=mono: mono[0])  # type: ignore[misc]
        assert clock() == 1_000_000.0
        wall[0] += jump
        assert clock() == 1_000_000.0
        wall[0] += 1
        mono[0] += 1
        assert abs(clock() - 1_000_001.0) == pytest.approx(SLEW)


def test_a_clock_follows_in_the_end_and_never_goes_back() -> None:
    """A small correction is followed at once, a large one slowly; readings never fall."""
    wall, mono = [1000.0], [0.0]
    clock = SteadyClock(lambda: wall[0], lambda: mono[0])
    wall[0] += 0.2
    assert clock() == pytest.approx(1000.2)
    wall[0] -= 100.0
    readings = []
    for _ in range(300):
        wall[0] += 10
        mono[0] += 10
        readings.append(clock())
    assert readings == sorted(readings)
    assert readings[-1] == pytest.approx(wall[0])
