"""The ordinary miss in one coroutine: one row that a request asks for by itself, from far to the answer.

`pipeline.py` does the same for any number of rows, by steps that know of leases, quotas, traces, several requests and
partial answers. What a lone row costs is mostly the code that it runs through (a miss that comes after a rest fetches
all of it into the processor's caches), so here is only what such a row needs. Whatever needs more leaves for the
pipeline's own steps: before it begins (`suits`), or with the error that it ends with. The row is in flight meanwhile as
any other, so that later requests join it; its entry goes to far when the answer is on its way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from foreseen.errors import DigestMoved, ForeseenError, RowsRefused
from foreseen.proxy.backend.turns.model_turns import ModelTurns
from foreseen.proxy.cache.far_skip import FarSkipPolicy
from foreseen.proxy.cache.flight import FlightBatch, Flights
from foreseen.proxy.cache.freshness import Policy, expiry_of
from foreseen.proxy.cache.lease import Leases
from foreseen.proxy.cache.look_result import LookResult, far_row
from foreseen.proxy.cache.tiers import Tiers
from foreseen.proxy.predict.tenant_misses import TenantMisses
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.types import ALL_STEPS, ANY_AGE, Answer, Key, Prediction, RequestOptions, TierSeconds

TakeFar = Callable[[FlightBatch, LookResult], Sequence[Key]]
"""Resolves what far had, fresh or stale; the keys that are left."""


class FreshModel(Protocol):
    """What is needed to know of a model."""

    freshness: Policy


class LoneMiss:
    """Processes the flights of one row, of all models of one proxy process."""

    def __init__(
        self, take_far: TakeFar, tiers: Tiers, models: Mapping[str, FreshModel], turns: ModelTurns, flights: Flights,
        leases: Leases, far_skip: FarSkipPolicy, tenants: TenantMisses, metrics: ProxyMetrics,
    ) -> None:  # fmt: skip
        self._take_far, self._tiers, self._models, self._turns, self._flights = take_far, tiers, models, turns, flights
        self._leases, self._far_skip, self._tenants, self._metrics = leases, far_skip, tenants, metrics

    def suits(self, batch: FlightBatch) -> bool:
        """Whether nothing but the ordinary steps may be needed."""
        _, parameters, _, steps, age_limits = key = batch.flight_key
        if len(batch.waiters) != 1 or parameters or steps != ALL_STEPS or age_limits is not ANY_AGE:
            return False
        if batch.missed or batch.traceparent is not None or self._tenants.quotas is not None:
            return False
        return not self._leases.shares(key.space.model, 1)

    async def fly(self, batch: FlightBatch) -> None:
        """far, model, keep. Raises what the model raises, DigestMoved; then the row is not resolved."""
        ((key, waiter),) = batch.waiters.items()
        space, _, lane, steps, _ = batch.flight_key
        name, policy, metrics = space.model, self._models[space.model].freshness, self._metrics
        far_seconds: float | None = None
        if self._far_skip.skips(name, asyncio.get_running_loop().time()):
            metrics.misses.labels(name, "far-slow").inc()
        else:
            found, far_seconds = await self._tiers.look_far_row(space, key)
            if isinstance(found, Prediction):
                if not self._take_far(batch, far_row(key, found, self._tiers.clock(), policy, far_seconds)):
                    return
            else:
                if far_seconds is not None:
                    self._far_skip.far_took(far_seconds)
                batch.missed[key] = found
                metrics.misses.labels(name, found.reason).inc()
        options = RequestOptions(batch.deadline, lane, steps, caller=waiter.caller, scope=space.scope)
        started = time.perf_counter()
        try:
            (made,) = await self._turns.predict(name, (waiter.row,), b"", options)
        except RowsRefused as some:
            self._far_skip.model_failed(name)
            self._flights.fail_refused(batch, (key,), some.outcomes)
            return
        except ForeseenError as error:
            self._far_skip.model_failed(name)
            self._flights.fall_back(batch, key, error)
            raise
        asked = time.perf_counter()
        self._far_skip.model_took(name, asked - started)
        if made.digest != space.digest:
            raise DigestMoved(made.digest)
        self._leases.took(name, (made,))
        now = self._tiers.clock()
        made = Prediction(made.outputs, made.data, made.digest, now, expiry_of(now, policy), made.seconds)
        stored, size = self._tiers.keep_row(key, made, batch.began)
        metrics.stages.add("keep", time.perf_counter() - asked)
        self._flights.resolve(batch, key, Answer(made, "model", stored, TierSeconds(far_seconds, asked - started)))
        if size:
            await self._tiers.store_row(key, made, policy, size)
