"""When a look in far is left out: pure counting with readings and a clock of the test's own."""

from __future__ import annotations

from foreseen.proxy.cache.far_skip import LEAST_LOOKS, SLOW_SECONDS, TRY_SECONDS, FarSkipPolicy


def slow(far: float = 0.04, model: float = 0.002) -> FarSkipPolicy:
    far_skip = FarSkipPolicy()
    for _ in range(10 * LEAST_LOOKS):
        far_skip.far_took(far)
        far_skip.model_took("m", model)
    return far_skip


def test_a_far_that_is_slower_than_the_model_is_left_out_and_tried_twice_a_second() -> None:
    """One look in half a second; the rest goes straight to the model."""
    far_skip = slow()
    told = [far_skip.skips("m", 100 + at * TRY_SECONDS / 10) for at in range(21)]
    assert told.count(False) == 3


def test_a_far_that_recovers_is_asked_again_after_a_few_tries() -> None:
    """Three quick answers are enough."""
    far_skip = slow()
    for _ in range(3):
        far_skip.far_took(0.0005)
    assert not any(far_skip.skips("m", 100 + at / 1000) for at in range(10))


def test_it_is_asked_where_the_model_is_slower_still_or_unknown_or_failing() -> None:
    """A slow model, one that was never asked, one that fails; and a far that is quick, however quick the model is."""
    assert not slow(model=0.03).skips("m", 0.0)
    assert not slow().skips("another", 100.0)
    failing = slow()
    failing.model_failed("m")
    assert not any(failing.skips("m", 100 + at / 1000) for at in range(10))
    quick = slow(far=SLOW_SECONDS / 2, model=0.0001)
    assert not any(quick.skips("m", 100 + at / 1000) for at in range(10))


def test_one_slow_look_is_no_slow_far() -> None:
    """A single reading of a whole budget does not turn it off."""
    far_skip = slow(far=0.0005)
    far_skip.far_took(0.05)
    assert not any(far_skip.skips("m", 100 + at / 1000) for at in range(10))
