"""A worker's heartbeat: sets gauges and flushes tallies once a second, measures event loop lag, writes `/metrics`.

Gauges are set here and not at a scrape: with several workers one of them answers the scrape for all.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence, Sized
from math import inf
from pathlib import Path
from typing import Protocol

import structlog

from foreseen.errors import QueueUnavailable
from foreseen.proxy.predict.pipeline import Pipeline
from foreseen.telemetry.callers import CallerCounts
from foreseen.telemetry.child_states import ChildState
from foreseen.telemetry.exposition import exposition
from foreseen.telemetry.metrics import UPSTREAM_PROBLEMS, ProxyMetrics
from foreseen.types import AWAY, FarState, QueueStatus

BEAT_SECONDS = 0.25
"""How often the event loop is asked whether it wakes in time."""
BEATS_PER_TAKE = 4
QUEUE_SECONDS = 1.0
"""How long a scrape waits for the queue."""
STALL_SECONDS, RECOVERY_SECONDS = 1.0, 2.0
"""An event loop that woke so late is no place to send requests to, until it has been in time for so long."""
log = structlog.get_logger()
_STATM = Path("/proc/self/statm")


class ReadyModel(Protocol):
    @property
    def ready(self) -> bool: ...
    @property
    def absent(self) -> Sized: ...


class Heartbeat:
    """The heartbeat of one proxy process. `far_state` asks Redis for its state; None where there is no far tier."""

    def __init__(
        self,
        pipeline: Pipeline,
        served: Mapping[str, ReadyModel],
        metrics: ProxyMetrics,
        *,
        breaker_open: Callable[[], bool],
        far_state: Callable[[], Awaitable[FarState]] | None,
        far_foreign: Callable[[], bool] = lambda: False,
        versions: Callable[[], Mapping[str, str]] | None = None,
        connections: Callable[[], int] = lambda: 0,
        queue: Callable[[], Awaitable[QueueStatus]] | None = None,
        callers: CallerCounts | None = None,
        children: Callable[[], Sequence[ChildState]] = tuple,
        upstream_problems: Callable[[], Mapping[str, int]] | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._served = served
        self._metrics = metrics
        self._breaker_open = breaker_open
        self._far_state = far_state
        self._far_foreign = far_foreign
        self._versions = versions
        self._connections = connections
        self._queue = queue
        self._callers = callers
        self._children = children
        self._upstream_problems = upstream_problems
        self._scraping = asyncio.Lock()
        self._cpu_seconds = 0.0
        self._expected: set[str] = set()
        self._due = inf
        self._stalled_until = 0.0

    @property
    def stalled(self) -> bool:
        """Whether the event loop is, or was a moment ago, more than a second late."""
        now = time.monotonic()
        return now < self._stalled_until or now - self._due > STALL_SECONDS

    async def beat(self) -> None:
        """Run until cancelled."""
        while True:
            self.take()
            for _ in range(BEATS_PER_TAKE):
                self._due = time.monotonic() + BEAT_SECONDS
                await asyncio.sleep(BEAT_SECONDS)
                now = time.monotonic()
                self._metrics.loop_lag.add(max(0.0, now - self._due))
                if now - self._due > STALL_SECONDS:
                    log.warning("stalled", seconds=round(now - self._due, 3))
                    self._stalled_until = now + RECOVERY_SECONDS

    def take(self) -> None:
        """Set the gauges and flush the tallies."""
        metrics, tiers = self._metrics, self._pipeline.tiers
        metrics.near_bytes.set(tiers.near.bytes)
        metrics.near_entries.set(len(tiers.near))
        metrics.connections.set(self._connections())
        metrics.tasks.set(len(asyncio.all_tasks()))
        metrics.in_flight.set(len(self._pipeline.flights))
        metrics.far_pending.set(tiers.pending_bytes)
        metrics.breaker_open.set(self._breaker_open())
        metrics.far_foreign.set(self._far_foreign())
        new = set(self._served) - self._expected  # those of an upstream come later
        metrics.expect(new)
        self._expected |= new
        for name, served in self._served.items():
            metrics.model_ready.labels(name).set(served.ready)
            metrics.absent_rows.labels(name).set(len(served.absent))
        if self._upstream_problems is not None:
            found = self._upstream_problems()
            for problem in UPSTREAM_PROBLEMS:
                metrics.upstream_problems.labels(problem).set(found.get(problem, 0))
        cpu_seconds = time.process_time()
        metrics.cpu_seconds.inc(cpu_seconds - self._cpu_seconds)
        self._cpu_seconds = cpu_seconds
        metrics.resident.set(_resident_bytes())
        if self._callers is not None:
            self._callers.beat()
        metrics.flush()

    async def exposition(self) -> bytes:
        """The Prometheus text, exact at this moment: every answer that was sent is counted in it. One at a time, in a
        thread: many scrapers take their turn and not the event loop's."""
        async with self._scraping:
            self.take()
            far = await self._far_state() if self._far_state is not None else None
            versions = self._versions() if self._versions is not None else None
            queue = await self._standing()
            models = tuple(self._served)
            callers = None if self._callers is None else self._callers.heaviest()
            return await asyncio.to_thread(
                lambda: exposition(self._metrics.registry, far, versions, queue, models, self._children(), callers)
            )

    async def _standing(self) -> QueueStatus | None:
        """The queue's status, None where there is no queue; AWAY if it does not answer in time for a scrape."""
        if self._queue is None:
            return None
        try:
            async with asyncio.timeout(QUEUE_SECONDS):
                return await self._queue()
        except (QueueUnavailable, TimeoutError):
            return AWAY


def _resident_bytes() -> int:
    try:
        return int(_STATM.read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
