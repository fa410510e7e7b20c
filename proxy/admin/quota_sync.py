"""Once a second: a process's quotas and usage go to the state store, and its shares come back.

While the store does not answer the last shares stay in force, and the report is sent again until it is acknowledged;
what comes meanwhile waits for the next one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import structlog

from foreseen.errors import StateUnavailable
from foreseen.proxy.cache.generations import worker_name
from foreseen.proxy.predict.tenant_misses import NO_TENANTS, TenantMisses
from foreseen.telemetry.child_states import ChildState
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.tenants.keyring import Keyring
from foreseen.tenants.quota import Quotas, Shares, TenantReport
from foreseen.tenants.usage import Usage, UsageCounts, added

BEAT_SECONDS = 1.0
OTHER = "other"
MOST_LABELS = 100
"""Tenants with a label of their own in metrics: the first so many of the keys file."""
MOST_WAITING = 10_000
"""Of tenants and models whose usage waits for the store; more are dropped, and counted."""

log = structlog.get_logger()


class QuotaReports(Protocol):
    """The part of the state store that is needed here."""

    async def beat(
        self, worker: str, number: int, reports: Sequence[TenantReport], usage: Mapping[tuple[str, str], list[float]]
    ) -> dict[str, Shares]: ...
    async def close(self) -> None: ...


class QuotaSync:
    """Reconciles one process's quotas with those of the others."""

    def __init__(
        self,
        store: QuotaReports | None,
        worker: str,
        quotas: Quotas,
        usage: UsageCounts,
        names: Callable[[], Sequence[str]],
        metrics: ProxyMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`names` are the tenants in force, in the order of the keys file."""
        self.reachable = True
        self._store = store
        self._worker = worker
        self._quotas = quotas
        self._usage = usage
        self._names = names
        self._metrics = metrics
        self._number = 0
        self._sent: tuple[list[TenantReport], Usage] | None = None
        """What was sent and is not acknowledged."""
        self._waiting: Usage = {}
        self._clock = clock
        self._at = clock()
        quotas.refused = self.refused
        metrics.expect_tenants()

    async def follow(self) -> None:
        """Run until cancelled."""
        while True:
            await self.beat()
            await asyncio.sleep(BEAT_SECONDS)

    async def beat(self) -> None:
        """One report, or the last one again."""
        names = set(self._names())
        taken = {key: counts for key, counts in self._usage.take().items() if key[0] in names}  # not the supervisor's
        self._count(taken)
        if self._store is None:
            return
        added(self._waiting, taken)
        if self._sent is None:
            now = self._clock()
            reports = self._quotas.reports(now - self._at)
            self._at = now
            self._sent, self._waiting = (reports, self._waiting), {}
            self._number += 1
        reports, usage = self._sent
        if not reports and not usage:
            self._sent = None
            return
        try:
            shares = await self._store.beat(self._worker, self._number, reports, usage)
        except StateUnavailable:
            self._failed()
            return
        self._sent = None
        if not self.reachable:
            log.warning("quotas: the state store answers again")
        self.reachable = True
        self._metrics.quota_reports.labels("ok").inc()
        self._quotas.renew(shares)

    async def close(self) -> None:
        """A last report."""
        await self.beat()
        if self._store is not None:
            await self._store.close()

    def label(self, tenant: str) -> str:
        """A tenant's label in metrics."""
        return tenant if tenant in self._names()[:MOST_LABELS] else OTHER

    def refused(self, tenant: str, limit: str) -> None:
        """Count a refusal."""
        self._metrics.tenant_refused.labels(self.label(tenant), limit).inc()

    def _failed(self) -> None:
        if self.reachable:
            log.warning("quotas: the state store does not answer; the last shares stay in force")
        self.reachable = False
        self._metrics.quota_reports.labels("failed").inc()
        if len(self._waiting) > MOST_WAITING:
            self._metrics.quota_reports.labels("dropped").inc()
            self._waiting = {}

    def _count(self, usage: Usage) -> None:
        metrics = self._metrics
        for (tenant, model), (requests, rows, hits, seconds, saved) in usage.items():
            label = self.label(tenant)
            metrics.tenant_requests.labels(label, model).inc(requests)
            metrics.tenant_rows.labels(label, "hit").inc(hits)
            metrics.tenant_rows.labels(label, "miss").inc(max(0.0, rows - hits))
            metrics.tenant_model_seconds.labels(label).inc(seconds)
            metrics.tenant_saved_seconds.labels(label).inc(saved)


class TenantAccounts:
    """The quotas and the usage of all tenants in one process; without a keys file there are none."""

    def __init__(
        self,
        keyring: Keyring,
        store: QuotaReports | None,
        children: Callable[[], Sequence[ChildState]],
        metrics: ProxyMetrics,
    ) -> None:
        """`children` are those of this machine's supervisor: until the store has said, each proxy has as large a
        share of every quota."""
        self.quotas: Quotas | None = None
        self.usage: UsageCounts | None = None
        self.misses = NO_TENANTS
        self._sync: QuotaSync | None = None
        if keyring.is_open:
            return

        def first_share() -> float:
            return 1 / max(1, sum(child.name.startswith("proxy:") for child in children()))

        self.quotas, self.usage = Quotas(keyring.named, first_share), UsageCounts()
        self.misses = TenantMisses(self.quotas, self.usage)
        self._sync = QuotaSync(store, worker_name(), self.quotas, self.usage, keyring.names, metrics)

    async def follow(self) -> None:
        """Report once a second, until cancelled."""
        if self._sync is not None:
            await self._sync.follow()

    async def close(self) -> None:
        """A last report."""
        if self._sync is not None:
            await self._sync.close()
