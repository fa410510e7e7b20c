"""Clopper-Pearson intervals of a share (Clopper and Pearson, 1934): exact, and never too narrow.

Terms of the binomial sum are added up directly, so that nothing but the standard library is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

_BISECTIONS = 200
_NEGLIGIBLE = 1e-17


def interval(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """The two-sided interval; (0, 1) where nothing was tried."""
    each = (1 + confidence) / 2
    return lower_bound(successes, trials, each), upper_bound(successes, trials, each)


def lower_bound(successes: int, trials: int, confidence: float) -> float:
    """The lower end of the one-sided interval; 0 where nothing was tried."""
    return 1 - upper_bound(trials - successes, trials, confidence) if successes and trials else 0.0


def upper_bound(successes: int, trials: int, confidence: float) -> float:
    """The upper end of the one-sided interval; 1 where nothing was tried."""
    if successes >= trials:
        return 1.0
    if successes == 0:
        return -math.expm1(math.log(1 - confidence) / trials)
    return _bisected(lambda share: _at_most(successes, trials, share) > 1 - confidence, successes / trials)


def _bisected(too_low: Callable[[float], bool], low: float) -> float:
    high = 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if too_low(middle) else (low, middle)
    return high


def _at_most(successes: int, trials: int, share: float) -> float:
    """The probability of so many successes or fewer. Terms go from the largest to where they are nothing."""
    term = math.exp(
        math.lgamma(trials + 1) - math.lgamma(successes + 1) - math.lgamma(trials - successes + 1)
        + successes * math.log(share) + (trials - successes) * math.log1p(-share)
    )  # fmt: skip
    total, odds = term, (1 - share) / share
    for count in range(successes, 0, -1):  # below the mean, so that each term is smaller than the one before
        term *= count / (trials - count + 1) * odds
        total += term
        if term < total * _NEGLIGIBLE:
            break
    return total
