"""Single-flight between proxies: a lease in Redis decides which proxy computes a row that several of them miss.

A lease is `SET NX PX` with a random token, one for each row; within a process `flight.py` does the same. The leader
computes the row, stores it, and releases the lease once Redis has the entry. The other proxies poll for the entry. A
leader that dies stops extending its lease, which expires, and the next proxy that asks takes it over. Two leaders do no
harm: they write the same entry. If Redis fails, every proxy computes the row itself.

A lease costs two round trips before the model is asked, so it is used only for models that take far longer. A model's
speed is measured from its answers; until it has given one, it counts as slow.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from typing import Any, Protocol

from foreseen.errors import DeadlineExceeded, FarError
from foreseen.proxy.cache.flight import FlightBatch
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.types import Key, Prediction, Steps

LEASE_SECONDS = 5.0
"""How long the death of a leader goes unnoticed. A live leader extends its lease, however long the model takes, as long
as its event loop runs: it stalled for four seconds and more when 1,250 clients connected at once to a busy machine."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.005, 0.1
TRIES = 3
"""Timeouts of Redis in a row before it counts as failed. A machine with ten thousand new clients is late for a moment,
and without retries every proxy would compute the row."""
SHARE_WAITED = 0.2
"""A waiter looks again after this share of the time that it has waited, so it adds no more than that to the wait."""
NEWEST_SHARE = 0.3
"""Weight of the newest answer in a model's moving average of seconds a row."""

SHARED_STEPS: Steps = frozenset(("far", "model", "keep"))
"""Steps that a request must allow for its rows to be shared with other proxies."""

Look = Callable[[Sequence[Key]], Awaitable[Sequence[Key] | None]]
"""Resolves the keys that far has; returns the others. None if far did not answer."""
Compute = Callable[[Sequence[Key], Callable[[], None]], Awaitable[None]]
"""Computes these keys with the model and stores the answers. Calls back once far has them or the store failed."""


class LeaseTier(Protocol):
    """The part of Redis that leases need. All methods raise FarError."""

    async def lease(self, keys: Sequence[Key], token: bytes, milliseconds: int) -> list[bool]: ...
    async def extend(self, keys: Sequence[Key], token: bytes, milliseconds: int) -> None: ...
    async def release(self, keys: Sequence[Key], token: bytes) -> None: ...


class Leases:
    """Divides missed rows between proxies. `slow_seconds`: work that takes less is not worth a lease."""

    def __init__(
        self, far: LeaseTier | None, metrics: ProxyMetrics, slow_seconds: float, lease_seconds: float = LEASE_SECONDS
    ) -> None:
        self._far = far
        self._metrics = metrics
        self._slow_seconds = slow_seconds
        self._lease_seconds = lease_seconds
        self._row_seconds: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def divide(self, batch: FlightBatch, keys: Sequence[Key], look: Look, compute: Compute) -> None:
        """Resolve all keys: by `compute`, or by `look` when another proxy has computed them.

        Raises DeadlineExceeded at the batch's deadline, and what `compute` raises.
        """
        model, shared = batch.flight_key.space.model, batch.flight_key.steps >= SHARED_STEPS
        if self._far is None or not shared or not self.shares(model, len(keys)):
            return await compute(keys, _nothing)
        left, pauses, count, tries = list(keys), _Pauses(batch.deadline), self._metrics.leases.labels, TRIES
        while True:
            lease = Lease(self._far, self._lease_seconds, batch.deadline, self._metrics)
            won, tries = await self._asked(lease, left, tries)
            before = len(left)
            # After the lease, since that may have been let go with the entry there.
            there = None if won is None else await look(left)
            if won is None or there is None:
                tries -= 1
                if tries > 0:
                    await lease.release()  # before it is asked for again
                    continue
                self._later(lease.release())
                count(model, "failed").inc(len(left))
                return await compute(left, _nothing)
            left, tries = list(there), TRIES
            count(model, "waited").inc(before - len(left))
            mine = [key for key in left if key in won]
            if mine:
                count(model, "taken-over" if pauses.waited else "won").inc(len(mine))
                await self._compute(lease, mine, compute)
                left = [key for key in left if key not in won]
            else:
                self._later(lease.release())
            if not left:
                return None
            await pauses.next()

    def shares(self, model: str, rows: int) -> bool:
        """Whether leases are used for this number of rows of a model."""
        return self._far is not None and self.worth(model, rows)

    def worth(self, model: str, rows: int) -> bool:
        """Whether this number of rows of a model takes longer than the lease threshold."""
        each = self._row_seconds.get(model)
        return self._slow_seconds < inf if each is None else each * rows >= self._slow_seconds

    def row_seconds(self, model: str) -> float:
        """Seconds a row of a model takes, measured from its answers; 0 until it has given one."""
        return self._row_seconds.get(model, 0.0)

    def took(self, model: str, predictions: Sequence[Prediction]) -> None:
        """Record a model's speed from its answers."""
        if not predictions:
            return
        each = sum(prediction.seconds for prediction in predictions) / len(predictions)
        before = self._row_seconds.get(model, each)
        self._row_seconds[model] = before + NEWEST_SHARE * (each - before)

    async def close(self, seconds: float) -> None:
        """Release the held leases within `seconds`; the rest expire by themselves."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=seconds)
            for task in late:
                task.cancel()

    async def _asked(self, lease: Lease, keys: Sequence[Key], tries: int) -> tuple[set[Key] | None, int]:
        """The rows that this proxy has to compute, None if Redis failed; and how many attempts are left."""
        try:
            return await lease.ask(keys), tries
        except FarError as error:
            self._metrics.far_errors.labels(error.kind).inc()
            return None, tries if error.kind == "timeout" else 0

    async def _compute(self, lease: Lease, mine: Sequence[Key], compute: Compute) -> None:
        """Compute under a lease, extend it meanwhile, and release it when far has the entries."""
        extending = self._later(lease.extend_until_released())

        def let_go() -> None:
            extending.cancel()
            self._later(lease.release())

        try:
            await compute(mine, let_go)
        except BaseException:
            let_go()
            raise

    def _later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)
        return task


class Lease:
    """One proxy's leases on some rows. If a release fails, they expire by themselves."""

    def __init__(self, far: LeaseTier, seconds: float, deadline: float, metrics: ProxyMetrics) -> None:
        self._far = far
        self._seconds = seconds
        self._deadline = deadline
        self._metrics = metrics
        self._token = secrets.token_bytes(16)
        self._held: list[Key] = []

    async def ask(self, keys: Sequence[Key]) -> set[Key]:
        """The keys whose lease this proxy holds. Raises FarError."""
        self._held = list(keys)  # until the reply is known: Redis may have granted any of them
        got = await self._far.lease(keys, self._token, self._milliseconds)
        self._held = [key for key, won in zip(keys, got, strict=True) if won]
        return set(self._held)

    async def extend_until_released(self) -> None:
        while self._held and asyncio.get_running_loop().time() < self._deadline:
            await asyncio.sleep(self._seconds / 3)
            with self._counted():
                await self._far.extend(self._held, self._token, self._milliseconds)

    async def release(self) -> None:
        held, self._held = self._held, []
        if held:
            with self._counted():
                await self._far.release(held, self._token)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except FarError as error:
            self._metrics.far_errors.labels(error.kind).inc()

    @property
    def _milliseconds(self) -> int:
        return int(self._seconds * 1000)


class _Pauses:
    """Growing pauses between looks, up to a deadline."""

    def __init__(self, deadline: float) -> None:
        self.waited = False
        self._began = asyncio.get_running_loop().time()
        self._deadline = deadline

    async def next(self) -> None:
        """Raises DeadlineExceeded where there is no time for another."""
        now = asyncio.get_running_loop().time()
        pause = max(FIRST_PAUSE_SECONDS, min(LONGEST_PAUSE_SECONDS, SHARE_WAITED * (now - self._began)))
        if now + pause >= self._deadline:
            raise DeadlineExceeded("the proxy that computes this row did not finish before the deadline")
        self.waited = True
        await asyncio.sleep(pause)


def _nothing() -> None:
    """Used where no other proxy waits for these rows."""
