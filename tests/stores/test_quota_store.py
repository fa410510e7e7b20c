"""Quotas in a real state store: shares of several processes, what is counted once, usage by the hour."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from foreseen.errors import QuotaExceeded, StateUnavailable
from foreseen.proxy.admin.quota_sync import MOST_LABELS, OTHER, QuotaSync
from foreseen.stores.quota_store import KEPT_SECONDS, QUOTA_TAG, QuotaStore, connect_quota_store
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.tenants.quota import Quotas, TenantReport
from foreseen.tenants.tenant import Tenant, TenantLimits, own_scope, owner_of
from foreseen.tenants.usage import UsageCounts


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[QuotaStore, Redis]]:
    store, client = connect_quota_store(url), Redis.from_url(url)
    await client.flushall()
    try:
        yield store, client
    finally:
        await store.close()
        await client.aclose()


def report(
    rows: float, used: float = 0.0, misses: float = 0.0, seconds: float = 0.0, *, counts_seconds: bool = False
) -> TenantReport:
    """Of one process that asked for so many rows in a second, of 100 in all."""
    return TenantReport("t", (0.0, 100.0, misses), (0.0, rows, rows), (0.0, used), seconds, counts_seconds)


async def test_shares_are_by_what_is_asked_for(state_url: str) -> None:
    """Where all fits each has that and a part of the rest; else in proportion; all of them make the limit."""
    async with opened(state_url) as (store, _):
        await store.beat("a", 1, [report(10.0)], {})
        shares = await store.beat("b", 1, [report(30.0)], {})
        assert shares["t"].rows == pytest.approx(1.25 * (30 + 60 / 2), rel=0.01)  # nothing was used: a quarter more
        for number in (2, 3):
            first = (await store.beat("a", number, [report(300.0, 1000.0)], {}))["t"].rows
            second = (await store.beat("b", number, [report(100.0)], {}))["t"].rows
        assert first / second == pytest.approx(3, rel=0.05)
        assert first + second <= 100 * 0.3  # far more than the limit was used


async def test_a_report_is_counted_once_however_often_it_is_sent(state_url: str) -> None:
    """The level, the day's seconds and the usage; the next number counts again."""
    async with opened(state_url) as (store, client):
        usage = {("t", "m"): [3.0, 12.0, 4.0, 1.5, 0.5]}
        for number in (1, 1, 1, 2):
            shares = await store.beat("a", number, [report(1.0, 5.0, seconds=1.5, counts_seconds=True)], usage)
        assert shares["t"].used_seconds == pytest.approx(3.0)
        assert await store.usage(3600) == {("t", "m"): [6.0, 24.0, 8.0, 3.0, 1.0]}
        assert await store.usage(3600, "another") == {}
        (hour,) = await client.keys(f"{QUOTA_TAG}.usage:*")
        assert KEPT_SECONDS <= await client.ttl(hour) <= KEPT_SECONDS + 3600


async def test_rows_at_a_time_are_shared(state_url: str) -> None:
    """They are no rate: nothing is used up."""
    async with opened(state_url) as (store, _):
        await store.beat("a", 1, [report(60.0, misses=100.0)], {})
        shares = await store.beat("b", 1, [report(240.0, misses=100.0)], {})
        assert shares["t"].misses == pytest.approx(80.0)


async def test_a_process_that_has_ended_has_no_share(state_url: str) -> None:
    """Five seconds after its last report."""
    async with opened(state_url) as (store, client):
        await store.beat("a", 1, [report(300.0)], {})
        await client.hset(f"{QUOTA_TAG}.tenant:t", "w:a", "1000.0 0 300 300")
        shares = await store.beat("b", 1, [report(100.0)], {})
        assert shares["t"].rows == pytest.approx(125.0)
        assert not await client.hexists(f"{QUOTA_TAG}.tenant:t", "w:a")


class Process:
    """One process with its quotas; `store` may go away."""

    def __init__(self, name: str, store: Any, clock: Any, tenant: Tenant) -> None:
        self.tenant = tenant
        self.quotas = Quotas({tenant.name: tenant}.get, lambda: 0.25, clock=clock)
        self.usage = UsageCounts()
        self.sync = QuotaSync(store, name, self.quotas, self.usage, lambda: [tenant.name], ProxyMetrics(), clock)

    def ask(self) -> int:
        """One row; whether it was let in."""
        try:
            self.quotas.admit(self.tenant, 1, 1)
        except QuotaExceeded:
            return 0
        return 1


class Flaky:
    """A store that answers, or not."""

    def __init__(self, store: QuotaStore) -> None:
        self.store, self.away = store, False

    async def beat(self, *what: Any) -> Any:
        reply = await self.store.beat(*what)
        if self.away:
            raise StateUnavailable("away")  # after it was counted, as where the answer is lost
        return reply

    async def close(self) -> None: ...


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_eight_processes_keep_to_one_limit(state_url: str) -> None:
    """100 rows a second over four workers of two proxies, unevenly asked: a minute lets in 6,000, five in a hundred
    more or less. With the store away the last shares stay in force."""
    limit, clock = 100.0, Clock()
    tenant = Tenant("t", own_scope("t"), owner_of("t"), limits=TenantLimits(rows_per_second=limit))
    async with opened(state_url) as (store, client):
        flaky = Flaky(store)
        processes = [Process(f"p{number}", flaky, clock, tenant) for number in range(8)]

        async def minute() -> float:
            """Rows let in, by what the store's clock makes of a minute: it goes on while this computes."""
            let_in, began = 0, asyncio.get_running_loop().time()
            for _ in range(60):
                for _ in range(20):
                    clock.now += 0.05
                    let_in += sum(one.ask() for number, one in enumerate(processes) for _ in range(number * 2))
                for one in processes:
                    await one.sync.beat()
                    await _move(client, 1.0 / len(processes))
            return let_in * 60 / (60 + asyncio.get_running_loop().time() - began)

        assert await minute() == pytest.approx(60 * limit, rel=0.05)
        flaky.away = True
        assert await minute() <= 2 * 60 * limit
        assert not processes[1].sync.reachable


async def _move(client: Redis, seconds: float) -> None:
    """The store's clock is real: as if so many seconds had passed since the last report."""
    key = f"{QUOTA_TAG}.tenant:t"
    at = await client.hget(key, "at")
    if at is not None:
        await client.hset(key, "at", f"{float(at) - seconds:.3f}")


async def test_usage_waits_for_the_store_and_is_counted_once(state_url: str) -> None:
    """What was sent and not acknowledged is sent again as it was; what came meanwhile follows."""
    tenant = Tenant("t", own_scope("t"), owner_of("t"))
    async with opened(state_url) as (store, _):
        flaky = Flaky(store)
        flaky.away = True
        process = Process("p", flaky, Clock(), tenant)
        for _ in range(3):
            process.usage.add("t", "m", 4, 6, 0.5)
            process.usage.add("foreseen", "m", 1, 0, 0.0)  # the supervisor's own
            await process.sync.beat()
        flaky.away = False
        for _ in range(2):
            await process.sync.beat()
        assert await store.usage(3600) == {("t", "m"): [3.0, 30.0, 12.0, 0.0, 1.5]}


async def test_labels_are_bounded() -> None:
    """The first tenants of the file have their own, the others share one."""
    names = [f"t{number}" for number in range(MOST_LABELS + 5)]
    sync = QuotaSync(None, "p", Quotas({}.get, lambda: 1.0), UsageCounts(), lambda: names, ProxyMetrics())
    assert [sync.label(names[0]), sync.label(names[MOST_LABELS - 1])] == [names[0], names[MOST_LABELS - 1]]
    assert {sync.label(name) for name in names[MOST_LABELS:]} == {OTHER}
    await asyncio.sleep(0)
