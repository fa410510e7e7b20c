"""Isolation lock: proxies and workers on one Redis try the suspected poison rows of a model one at a time.

A row that is tried while another process tries the real poison row goes down with it and would be counted as poison:
both wait for the model to come back and begin at the same moment, so with a slow model they meet twice, and twice is
enough to be refused. A lease in Redis makes a trial the only one. Rows that are not suspected yet may still end the
process, once each. If Redis fails, every process tries by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import AsyncIterator

from foreseen.errors import FarError
from foreseen.keys.key import key_of, space_key
from foreseen.proxy.cache.lease import LEASE_SECONDS, Lease, LeaseTier
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.types import Key, Scope, Space

_TRIAL = Scope("trial")
"""Of locks, not of entries: what is isolated here is a process that all tenants share."""
PAUSE_SECONDS = (0.01, 0.05)
"""Between two attempts to get the lease."""


class IsolationLock:
    """Of one process. Before `among`, a row has to be alone in this process only."""

    def __init__(self) -> None:
        self._far: LeaseTier | None = None
        self._root = b""
        self._metrics = ProxyMetrics(on=False)

    def among(self, far: LeaseTier | None, root: bytes, metrics: ProxyMetrics) -> None:
        """All processes with this Redis and this root secret try one suspect of a model at a time."""
        self._far, self._root, self._metrics = far, root, metrics

    @contextlib.asynccontextmanager
    async def turn(self, model: str) -> AsyncIterator[None]:
        """Wait for the lease, and hold it. The caller bounds the wait by its deadline."""
        if self._far is None:
            yield
            return
        lease = Lease(self._far, LEASE_SECONDS, math.inf, self._metrics)
        extending: asyncio.Task[None] | None = None
        try:
            await self._until_ours(lease, key_of(space_key(self._root, Space(_TRIAL, model, "")), b""))
            extending = asyncio.create_task(lease.extend_until_released())
            yield
        finally:
            if extending is not None:
                extending.cancel()
            await lease.release()

    async def _until_ours(self, lease: Lease, key: Key) -> None:
        while True:
            try:
                if await lease.ask([key]):
                    return
            except FarError as error:
                self._metrics.far_errors.labels(error.kind).inc()
                return
            await asyncio.sleep(random.uniform(*PAUSE_SECONDS))  # noqa: S311 - so that waiters do not look in step
