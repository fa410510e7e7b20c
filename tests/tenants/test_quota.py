"""Quotas of one process: what is let in, what is refused and for how long, what is reported."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from msgspec import structs

from foreseen.errors import QuotaExceeded
from foreseen.tenants.quota import DAY_SECONDS, Quotas, Shares, TenantQuota
from foreseen.tenants.tenant import Tenant, TenantLimits, own_scope, owner_of


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def tenant(name: str = "t", generation: int = 1, **limits: Any) -> Tenant:
    return Tenant(name, own_scope(name), owner_of(name), limits=TenantLimits(**limits), generation=generation)


def quotas_of(*tenants: Tenant, share: float = 1.0) -> tuple[Quotas, Clock, list[tuple[str, str]]]:
    clock, refused = Clock(), list[tuple[str, str]]()
    named = {one.name: one for one in tenants}
    return Quotas(named.get, lambda: share, lambda *one: refused.append(one), clock), clock, refused


def let_in(quotas: Quotas, one: Tenant, times: int, rows: int = 1) -> int:
    count = 0
    for _ in range(times):
        with contextlib.suppress(QuotaExceeded):
            quotas.admit(one, 1, rows)
            count += 1
    return count


def test_requests_and_rows_are_let_in_by_their_rates() -> None:
    """A second's worth at once, then the rate; each limit by itself; what is refused is counted."""
    by_requests, by_rows = tenant("a", requests_per_second=10.0), tenant("b", rows_per_second=10.0)
    quotas, clock, refused = quotas_of(by_requests, by_rows)
    assert let_in(quotas, by_requests, 30, rows=100) == 10
    assert let_in(quotas, by_rows, 30) == 10
    assert set(refused) == {("a", "requests"), ("b", "rows")}
    clock.now += 0.5
    assert let_in(quotas, by_requests, 30) == 5
    assert let_in(quotas, by_rows, 30) == 5


def test_a_wide_request_leaves_a_debt() -> None:
    """It is let in whole where the bucket is not empty, and the next one waits until it is paid for."""
    one = tenant(rows_per_second=10.0)
    quotas, clock, _ = quotas_of(one)
    assert let_in(quotas, one, 1, rows=50) == 1
    with pytest.raises(QuotaExceeded) as refused:
        quotas.admit(one, 1, 1)
    assert refused.value.retry_after == 5
    clock.now += 4.15
    assert let_in(quotas, one, 30) == 1


def test_a_tenant_without_limits_is_never_refused() -> None:
    """And is reported as one that uses something."""
    one = tenant()
    quotas, _, _ = quotas_of(one)
    assert let_in(quotas, one, 1000, rows=1000) == 1000
    assert quotas.refusal_of_miss("t", 10**6) is None


def test_misses_are_refused_by_rows_at_a_time_and_by_the_days_seconds() -> None:
    """At least one row may be computed whatever the share; the day's seconds are known a day at a time."""
    one = tenant(concurrent_misses=8, model_seconds_per_day=10.0)
    quotas, _, refused = quotas_of(one, share=0.5)
    assert quotas.refusal_of_miss("t", 3) is None
    told = quotas.refusal_of_miss("t", 4)
    assert told is not None
    assert told.status == 429
    quotas.renew({"t": Shares(0.0, 0.0, 0.01, 4.0)})
    assert quotas.refusal_of_miss("t", 0) is None
    assert quotas.refusal_of_miss("t", 1) is not None
    assert quotas.charge("t", 6.0)
    told = quotas.refusal_of_miss("t", 0)
    assert told is not None
    assert 0 < (told.retry_after or 0) <= DAY_SECONDS
    assert refused[-1] == ("t", "model-seconds")
    assert not quotas.charge("unknown", 6.0)
    assert quotas.refusal_of_miss("unknown", 10**6) is None


def test_reports_say_what_was_asked_and_used_and_shares_come_into_force() -> None:
    """Each amount once; what is refused is asked for, too; a debt of more than a second is the store's to remember."""
    one = tenant(requests_per_second=10.0, rows_per_second=100.0, model_seconds_per_day=5.0)
    quotas, clock, _ = quotas_of(one)
    assert let_in(quotas, one, 20, rows=2) == 10
    quotas.charge("t", 1.5)
    (report,) = quotas.reports(1.0)
    assert report.used == (10.0, 20.0)
    assert report.demands[0] == 10.0  # half of what was asked for now, half of before
    assert (report.seconds, report.counts_seconds, report.limits) == (1.5, True, (10.0, 100.0, 0.0))
    (report,) = quotas.reports(1.0)
    assert (report.used, report.seconds) == ((0.0, 0.0), 0.0)
    quotas.renew({"t": Shares(5.0, 1000.0, 0.0, 0.0), "gone": Shares(1.0, 1.0, 1.0, 1.0)})
    clock.now += 1.0
    assert let_in(quotas, one, 20, rows=900) == 2  # 1,000 rows are there; the second leaves a debt
    quotas.renew({"t": Shares(5.0, 10.0, 0.0, 0.0)})
    clock.now += 1.2
    assert let_in(quotas, one, 1) == 1


def test_a_changed_file_changes_limits_and_keeps_what_was_counted() -> None:
    """Another reading of the same limits changes nothing; a tenant that is gone is forgotten."""
    one = tenant(requests_per_second=10.0, model_seconds_per_day=5.0)
    named = {"t": one}
    quotas = Quotas(named.get, lambda: 1.0, clock=Clock())
    assert let_in(quotas, one, 20) == 10
    quotas.charge("t", 2.0)
    assert let_in(quotas, structs.replace(one, generation=2), 20) == 0
    named["t"] = tenant(generation=3, requests_per_second=20.0, model_seconds_per_day=5.0)
    assert let_in(quotas, named["t"], 40) == 20
    assert quotas.reports(1.0)[0].seconds == 2.0
    named.clear()
    assert quotas.reports(1.0) == []


def test_idle_tenants_are_not_reported() -> None:
    """After a minute."""
    one = tenant(requests_per_second=10.0)
    quota = TenantQuota(one, 1.0, 0.0)
    assert [quota.report(1.0, 0.0) is None for _ in range(61)].count(True) == 1
