"""Quotas of cache misses: rows that a tenant may not have computed now, and the model seconds that it is charged."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from foreseen.errors import QuotaExceeded
from foreseen.proxy.cache.flight import FlightBatch, Waiter
from foreseen.proxy.cache.request_splitting import one_caller
from foreseen.tenants.quota import Quotas
from foreseen.tenants.tenant import Tenant
from foreseen.tenants.usage import UsageCounts
from foreseen.types import Key, Prediction


class TenantMisses:
    """Of one process. Rows are charged to the tenant that asked for them first."""

    def __init__(self, quotas: Quotas | None, usage: UsageCounts) -> None:
        """Without quotas nothing is refused or counted."""
        self.quotas = quotas
        self._usage = usage

    def admit(self, tenant: Tenant, requests: int, rows: int) -> None:
        """Raises QuotaExceeded where a tenant has asked for more than it may; before the cache is asked."""
        if self.quotas is not None:
            self.quotas.admit(tenant, requests, rows)

    def admit_job(self, tenant: Tenant, rows: int, *, of_batch: bool = False) -> None:
        """A request of so many rows, or a batch of them, that is computed in the background. Raises QuotaExceeded, also
        where the day's model seconds are used up. A line of a batch was admitted with the batch."""
        if self.quotas is None or of_batch:
            return
        refusal = self.quotas.refusal_of_miss(tenant.name, 0)
        if refusal is not None:
            raise refusal
        self.quotas.admit(tenant, 1, rows)

    def refused(
        self, batch: FlightBatch, missing: Sequence[Key], held: Callable[[str], int]
    ) -> Mapping[Key, QuotaExceeded]:
        """The rows that no tier has and that may not be computed now. `held` says how many rows a caller has in
        flight, with those of this batch. Rows of the background lane were admitted with their job."""
        quotas = self.quotas
        if quotas is None or batch.flight_key.lane == "background":
            return {}
        counts = Counter(batch.waiters[key].caller for key in missing)
        refusals = {caller: quotas.refusal_of_miss(caller, held(caller) - counts[caller]) for caller in counts}
        by_key = ((key, refusals[batch.waiters[key].caller]) for key in missing)
        return {key: refusal for key, refusal in by_key if refusal is not None}

    def charged(self, waiters: Sequence[Waiter]) -> tuple[str, int]:
        """Whose turn these rows take, and the weight of that caller in fair queueing."""
        caller = one_caller(waiters)
        return caller, 1 if self.quotas is None else self.quotas.priority(caller)

    def computed(self, caller: str, model: str, predictions: Sequence[Prediction]) -> None:
        """A caller had rows computed past the cache."""
        self._charge(caller, model, sum(prediction.seconds for prediction in predictions))

    def computed_batch(self, batch: FlightBatch, keys: Sequence[Key], predictions: Sequence[Prediction]) -> None:
        """The rows of a batch were computed."""
        if self.quotas is None:
            return
        seconds = defaultdict[str, float](float)
        for key, prediction in zip(keys, predictions, strict=True):
            seconds[batch.waiters[key].caller] += prediction.seconds
        for caller, took in seconds.items():
            self._charge(caller, batch.flight_key.space.model, took)

    def _charge(self, caller: str, model: str, seconds: float) -> None:
        if self.quotas is not None and self.quotas.charge(caller, seconds):
            self._usage.computed(caller, model, seconds)


NO_TENANTS = TenantMisses(None, UsageCounts())
"""Of a proxy without a keys file."""
