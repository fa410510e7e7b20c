"""Replies → the broker, exactly once: a partition's replies and its offset are in one transaction.

Each partition of the requests has a transactional id of its own, so that its next owner shuts out the one before it,
also one that was only slow (what KIP-447 calls the producer per partition). Any failure ends the membership: the
transaction is aborted, and the messages are read again from the committed offset.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from foreseen.proxy.kafka.ports import BrokerError, Place, Processed, Transactions
from foreseen.telemetry.metrics import ProxyMetrics

MOST_RECORDS = 1000
"""Of one transaction."""


class TransactionalOutbox:
    """What is put in for a partition has no gap to what was put in for it before."""

    commits = True

    def __init__(self, transactions: Callable[[Place], Transactions], metrics: ProxyMetrics) -> None:
        self._new, self._metrics = transactions, metrics
        self._open: dict[Place, Transactions] = {}
        self._queues: dict[Place, list[Processed]] = {}
        self._ready = asyncio.Event()
        self._sending: dict[Place, asyncio.Task[None]] = {}
        self._failed: BrokerError | None = None

    def put(self, one: Processed) -> None:
        self._queues.setdefault(one.place, []).append(one)
        self._ready.set()

    async def run(self, delivered: Callable[[Processed], None]) -> None:
        while True:
            await self._ready.wait()
            self._ready.clear()
            if self._failed is not None:
                raise self._failed
            for place in [place for place, queue in self._queues.items() if queue and place in self._open]:
                if place not in self._sending:
                    self._sending[place] = asyncio.create_task(self._transact(place, delivered))

    async def assigned(self, places: Sequence[Place]) -> None:
        """Shut out the owners before, and begin. A failure is raised by `run`, since it ends the membership."""
        for place in places:
            one = self._open[place] = self._new(place)
            try:
                await one.start()
            except BrokerError as error:
                self._fail(error)

    async def revoked(self, places: Sequence[Place]) -> None:
        """Abort what is not committed by now."""
        for place in places:
            self._queues.pop(place, None)
            task, one = self._sending.pop(place, None), self._open.pop(place, None)
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
            if one is not None:
                try:
                    await one.stop()
                except BrokerError as error:
                    self._fail(error)

    async def close(self) -> None:
        await self.revoked(list({*self._open, *self._queues, *self._sending}))

    async def _transact(self, place: Place, delivered: Callable[[Processed], None]) -> None:
        queue = self._queues[place]
        try:
            while batch := queue[:MOST_RECORDS]:
                await self._open[place].transact([one.out for one in batch], batch[-1].record.offset + 1)
                del queue[: len(batch)]
                for one in batch:
                    self._metrics.kafka_messages.labels(one.outcome).inc()
                    delivered(one)
        except BrokerError as error:
            self._fail(error)
        finally:
            self._sending.pop(place, None)

    def _fail(self, error: BrokerError) -> None:
        self._failed = error
        self._ready.set()
