"""Quotas of tenants in one process: token buckets whose rates are this process's shares of each limit. No I/O.

A hit costs a request and its rows, a miss the seconds of computation too. All is admitted before the cache is asked.
Once a second `quota_sync.py` reports to the state store what was asked for and what was let in, and gets new shares;
while the store does not answer the last shares stay in force, so all processes together stay near the limit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from msgspec import Struct

from foreseen.errors import QuotaExceeded
from foreseen.tenants.tenant import Tenant, TenantLimits

BURST_SECONDS = 1.0
"""What a tenant that was quiet may ask at once: what its rate makes in so long."""
DAY_SECONDS = 86_400
IDLE_BEATS = 60
"""A tenant that has asked for nothing in so many beats is not reported."""
NEWEST_SHARE = 0.5
"""Weight of the newest beat in what a tenant asks for."""


class Shares(Struct, frozen=True):
    """What one process may let in of a tenant, as the store says: rates in one second, rows computed at a time, and
    the model seconds that all processes have used today. A limit that there is not has any share."""

    requests: float
    rows: float
    misses: float
    used_seconds: float


class TenantReport(Struct, frozen=True):
    """What one process reports of a tenant: limits, what was asked for in a second, what was let in since the last
    report. Limits and demands of requests, rows, and rows computed at a time; 0: no limit."""

    name: str
    limits: tuple[float, float, float]
    demands: tuple[float, float, float]
    used: tuple[float, float]
    seconds: float
    counts_seconds: bool


class RateShare:
    """A token bucket: its rate is this process's share. What needs more than there is leaves it in debt.

    Tokens are added only where too few are left, and once a second, so that to take some needs no clock.
    """

    __slots__ = ("_at", "_before", "_demand", "_gained", "_refused", "limit", "rate", "tokens")

    def __init__(self, limit: float | None, rate: float, now: float) -> None:
        self.limit = limit
        self.rate = rate
        self.tokens = math.inf if limit is None else max(rate * BURST_SECONDS, 1.0)
        """At least one has to be there; infinite without a limit."""
        self._before = self.tokens
        self._gained = self._refused = self._demand = 0.0
        self._at = now

    def refill(self, now: float) -> None:
        """Add what the rate has made since the last time."""
        if self.limit is not None:
            room = max(self.rate * BURST_SECONDS, 1.0) - self.tokens
            more = max(0.0, min(room, (now - self._at) * self.rate))
            self.tokens += more
            self._gained += more
        self._at = now

    def refuse(self, amount: float) -> float:
        """So much is not let in: the seconds until it may be."""
        self._refused += amount
        return 1.0 if self.rate <= 0.0 else (1.0 - self.tokens) / self.rate

    def report(self, seconds: float) -> tuple[float, float]:
        """What was asked for in a second, of late, and what was let in since the last report."""
        if self.limit is None:
            return 0.0, 0.0
        used = max(0.0, self._before + self._gained - self.tokens)
        asked = (used + self._refused) / max(seconds, 0.1)
        self._before, self._gained, self._refused = self.tokens, 0.0, 0.0
        self._demand += NEWEST_SHARE * (asked - self._demand)
        return self._demand, used

    def renew(self, rate: float) -> None:
        """A new share. The store remembers a debt of more than a second's worth, and takes it out of all shares."""
        self.rate = rate
        forgiven = max(0.0, -rate * BURST_SECONDS - self.tokens)
        self.tokens += forgiven
        self._gained += forgiven


class TenantQuota:
    """One tenant's shares in this process."""

    __slots__ = (
        "_held", "_most_held", "has_rates", "idle", "limits", "misses", "name", "requests", "rows", "seconds",
        "tenant_generation", "used_seconds",
    )  # fmt: skip

    def __init__(self, tenant: Tenant, first_share: float, now: float) -> None:
        limits = tenant.limits
        self.name = tenant.name
        self.tenant_generation = tenant.generation
        self.limits: TenantLimits = limits
        self.has_rates = limits.has_rates
        self.requests = RateShare(limits.requests_per_second, (limits.requests_per_second or 0.0) * first_share, now)
        self.rows = RateShare(limits.rows_per_second, (limits.rows_per_second or 0.0) * first_share, now)
        self.misses = (limits.concurrent_misses or math.inf) * first_share
        self.used_seconds = 0.0
        self.seconds = 0.0
        self._held = self._most_held = 0.0
        self.idle = 0

    def admit(self, requests: int, rows: int, now: float) -> tuple[str, float] | None:
        """Let in so much, once tokens are added; else what there is too much of, and the seconds to wait."""
        self.requests.refill(now)
        self.rows.refill(now)
        if requests and self.requests.tokens < 1.0:
            return "requests", self.requests.refuse(requests)
        if rows and self.rows.tokens < 1.0:
            return "rows", self.rows.refuse(rows)
        self.requests.tokens -= requests
        self.rows.tokens -= rows
        return None

    def admit_miss(self, held: int, now: float) -> tuple[str, float] | None:
        """Let rows be computed, where so many of the tenant are already; `now` are Unix seconds."""
        limits = self.limits
        of_day = limits.model_seconds_per_day
        if of_day is not None and self.used_seconds + self.seconds >= of_day:
            return "model-seconds", DAY_SECONDS - now % DAY_SECONDS
        if limits.concurrent_misses is not None:
            self._most_held = max(self._most_held, held + 1)
            if held >= max(1.0, self.misses):
                return "misses", 1.0
        return None

    def report(self, seconds: float, now: float) -> TenantReport | None:
        """What happened since the last report, so many seconds ago; None where there is nothing to say."""
        self.requests.refill(now)
        self.rows.refill(now)
        asked_requests, used_requests = self.requests.report(seconds)
        asked_rows, used_rows = self.rows.report(seconds)
        self.idle = 0 if used_requests or used_rows or self.seconds or self._most_held else self.idle + 1
        if self.idle > IDLE_BEATS:
            return None
        limits = self.limits
        self._held += NEWEST_SHARE * (self._most_held - self._held)
        self._most_held = 0.0
        demands, used = (asked_requests, asked_rows, self._held), (used_requests, used_rows)
        computed, self.seconds = self.seconds, 0.0
        self.used_seconds += computed
        most = limits.requests_per_second or 0.0, limits.rows_per_second or 0.0, float(limits.concurrent_misses or 0)
        return TenantReport(self.name, most, demands, used, computed, limits.model_seconds_per_day is not None)

    def renew(self, shares: Shares) -> None:
        self.requests.renew(shares.requests)
        self.rows.renew(shares.rows)
        self.misses = shares.misses
        self.used_seconds = shares.used_seconds


class Quotas:
    """The quotas of one process. `refused` is called with a tenant and the limit that it met."""

    def __init__(
        self,
        named: Callable[[str], Tenant | None],
        first_share: Callable[[], float],
        refused: Callable[[str, str], None] = lambda _tenant, _limit: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`named` finds a tenant in force; `first_share` of each limit is this process's until the store has said."""
        self.refused = refused
        self._named = named
        self._first_share = first_share
        self._clock = clock
        self._quotas: dict[str, TenantQuota] = {}

    def admit(self, tenant: Tenant, requests: int, rows: int) -> None:
        """Raises QuotaExceeded where a tenant has asked for more than it may."""
        if not self.may(tenant, rows, requests):
            quota = self._quotas[tenant.name]
            refusal = quota.admit(requests, rows, self._clock())
            if refusal is not None:
                raise self._refusal(quota, *refusal)

    def may(self, tenant: Tenant, rows: int, requests: int = 1) -> bool:
        """The same, as far as no clock has to be asked; what is not let in is to be asked for by `admit`."""
        quota = self._quotas.get(tenant.name)
        if quota is None or quota.tenant_generation != tenant.generation:
            quota = self._renewed(tenant)
        if not quota.has_rates:
            return True
        of_requests, of_rows = quota.requests, quota.rows
        if of_requests.tokens >= 1.0 and of_rows.tokens >= 1.0:
            of_requests.tokens -= requests
            of_rows.tokens -= rows
            return True
        return False

    def refusal_of_miss(self, name: str, held: int) -> QuotaExceeded | None:
        """Why no more rows of a tenant may be computed now, where so many are; None where they may."""
        tenant = self._named(name)
        if tenant is None:
            return None
        quota = self._quotas.get(name) or self._renewed(tenant)
        refusal = quota.admit_miss(held, time.time())
        return None if refusal is None else self._refusal(quota, *refusal)

    def charge(self, name: str, seconds: float) -> bool:
        """A model has computed so long for a tenant; whether there is this tenant."""
        tenant = self._named(name)
        if tenant is None:
            return False
        quota = self._quotas.get(name) or self._renewed(tenant)
        quota.seconds += seconds
        return True

    def priority(self, name: str) -> int:
        """A tenant's weight in fair queueing; 1 of any other caller."""
        tenant = self._named(name)
        return 1 if tenant is None else tenant.priority

    def reports(self, seconds: float) -> list[TenantReport]:
        """What to report of all tenants that have asked of late. Those that are gone are forgotten."""
        for name in [name for name in self._quotas if self._named(name) is None]:
            del self._quotas[name]
        now = self._clock()
        found = (quota.report(seconds, now) for quota in self._quotas.values())
        return [report for report in found if report is not None]

    def renew(self, shares: Mapping[str, Shares]) -> None:
        """The shares that the store says."""
        for name, share in shares.items():
            if name in self._quotas:
                self._quotas[name].renew(share)

    def _renewed(self, tenant: Tenant) -> TenantQuota:
        """A quota by the limits in force; what was counted stays, and shares stay where limits are the same."""
        before = self._quotas.get(tenant.name)
        if before is not None and before.limits == tenant.limits:
            before.tenant_generation = tenant.generation
            return before
        made = self._quotas[tenant.name] = TenantQuota(tenant, self._first_share(), self._clock())
        if before is not None:
            made.seconds, made.used_seconds = before.seconds, before.used_seconds
        return made

    def _refusal(self, quota: TenantQuota, limit: str, wait: float) -> QuotaExceeded:
        self.refused(quota.name, limit)
        return QuotaExceeded(f"the tenant's quota of {_WORDS[limit]} is used up", retry_after=max(1, math.ceil(wait)))


_WORDS = {
    "requests": "requests in a second",
    "rows": "rows in a second",
    "misses": "rows computed at a time",
    "model-seconds": "model seconds in a day",
}
QUOTA_LIMITS = tuple(_WORDS)
