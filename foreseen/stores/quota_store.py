"""Quotas and usage in the state store: one script a second and process; usage by the hour, for 90 days."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import structlog
from redis import exceptions as gone
from redis.asyncio import Redis

from foreseen.errors import StateUnavailable
from foreseen.lua_scripts import lua_script
from foreseen.stores.master_locator import client_at
from foreseen.stores.redis_urls import BY_ADDRESS, Access
from foreseen.tenants.quota import Shares, TenantReport
from foreseen.tenants.usage import USAGE_KINDS, Usage, added

QUOTA_TAG = "{fsq1}"
"""One hash tag: all keys are in one slot of a Cluster."""
BUDGET_SECONDS = 2.0
ALIVE_SECONDS = 5.0
"""A process that has not reported within this time has no share."""
HOUR_SECONDS = 3600
KEPT_SECONDS = 90 * 86_400
MOST_TENANTS = 200
"""Of one call; a script must not keep the store from others."""

log = structlog.get_logger()

_BEAT = lua_script("foreseen.stores", "quota_beat")


class QuotaStore:
    """Everything raises StateUnavailable where the store does not answer."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def beat(
        self, worker: str, number: int, reports: Sequence[TenantReport], usage: Mapping[tuple[str, str], list[float]]
    ) -> dict[str, Shares]:
        """Report demand and usage; returns the shares of these tenants. A report may be sent again with the same
        number; it counts once."""
        asked = {
            "worker": worker,
            "number": number,
            "alive": ALIVE_SECONDS,
            "keep": KEPT_SECONDS + HOUR_SECONDS,
            "tenants": [
                (one.name, one.limits, one.demands, one.used, one.seconds, one.counts_seconds) for one in reports
            ],
            "usage": [
                (f"{tenant}\n{model}\n{kind}", amount)
                for (tenant, model), counts in usage.items()
                for kind, amount in zip(USAGE_KINDS, counts, strict=True)
                if amount
            ],
        }
        reply = await self._call(self._client.eval(_BEAT, 1, QUOTA_TAG, orjson.dumps(asked).decode()))
        return {name: Shares(*map(float, shares)) for name, shares in dict(orjson.loads(reply) or {}).items()}

    async def usage(self, seconds: float, tenant: str | None = None) -> Usage:
        """The usage in the hours that overlap the last `seconds`."""
        last = int(time.time() // HOUR_SECONDS)
        first = int((time.time() - min(seconds, KEPT_SECONDS)) // HOUR_SECONDS)
        total: Usage = {}
        for hour in range(first, last + 1):
            found: dict[bytes, bytes] = await self._call(self._client.hgetall(f"{QUOTA_TAG}.usage:{hour}"))
            for field, amount in found.items():
                who, model, kind = field.decode().split("\n")
                if tenant in (None, who) and kind in USAGE_KINDS:
                    counts = [0.0] * len(USAGE_KINDS)
                    counts[USAGE_KINDS.index(kind)] = float(amount)
                    added(total, {(who, model): counts})
        return total

    async def close(self) -> None:
        await self._client.aclose()

    async def _call(self, call: Any) -> Any:
        try:
            return await call
        except (gone.RedisError, OSError, TimeoutError, RuntimeError) as error:  # the last is uvloop's of a closed one
            log.debug("quota store", error=type(error).__name__)
            raise StateUnavailable("the state store does not answer") from None


def connect_quota_store(url: str, access: Access = BY_ADDRESS) -> QuotaStore:
    """The quotas in a state store, by its address. Opens no connection yet. Raises SetupError for no address."""
    return QuotaStore(client_at(url, f"{QUOTA_TAG}.seen", BUDGET_SECONDS, access))
