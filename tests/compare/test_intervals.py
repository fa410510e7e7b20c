"""Clopper-Pearson intervals."""

from __future__ import annotations

import pytest

from foreseen.compare.intervals import interval, upper_bound


@pytest.mark.parametrize(
    ("different", "audited", "bound"),
    [
        (0, 48_312, 6.2006e-05),
        (0, 59, 0.049508),  # 1 - 0.05 ** (1 / 59)
        (0, 1, 0.95),
        (1, 10, 0.394163),  # qbeta(0.95, k + 1, n - k) of R, as the next
        (3, 100, 0.075711),
        (50, 100, 0.586378),
        (9, 10, 0.994884),
        (10, 10, 1.0),
        (0, 0, 1.0),
    ],
)
def test_the_bound_is_clopper_and_pearsons(different: int, audited: int, bound: float) -> None:
    """Known values."""
    assert upper_bound(different, audited, 0.95) == pytest.approx(bound, rel=2e-5)


@pytest.mark.parametrize(
    ("count", "rows", "low", "high"),
    [
        (0, 10, 0.0, 0.308497),  # scipy.stats.beta.ppf, as the next
        (1, 10, 0.002529, 0.445016),
        (5, 10, 0.187086, 0.812914),
        (30, 1000, 0.020330, 0.042551),
        (10, 10, 0.691503, 1.0),
    ],
)
def test_both_ends_of_the_interval(count: int, rows: int, low: float, high: float) -> None:
    """Known values at 95 %; with nothing tried, everything is possible."""
    assert interval(count, rows, 0.95) == pytest.approx((low, high), abs=2e-6)
    assert interval(0, 0, 0.95) == (0.0, 1.0)
