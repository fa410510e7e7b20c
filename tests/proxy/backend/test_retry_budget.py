"""Repetitions are a share of what is sent, whatever happens."""

from __future__ import annotations

from foreseen.proxy.backend.retry_budget import BURST, SHARE, RetryBudget


def test_at_most_a_tenth_is_sent_twice() -> None:
    """Where everything breaks, the burst is spent and then every tenth request is repeated."""
    budget, repeated = RetryBudget(), 0
    for _ in range(1000):
        budget.sent()
        repeated += budget.spend()
    assert repeated <= BURST + 1000 * SHARE
    assert repeated >= 1000 * SHARE


def test_what_is_saved_up_is_bounded() -> None:
    """A long time without trouble allows no storm."""
    budget = RetryBudget()
    for _ in range(10_000):
        budget.sent()
    assert sum(budget.spend() for _ in range(100)) == BURST
