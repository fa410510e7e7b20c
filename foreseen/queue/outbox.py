"""Pending webhook deliveries, in the state store: claimed like jobs, so that a worker that crashes loses none.

    {fsj1}.hooks  zset  job ‖ nonce of a ticket that has ended → Unix ms from which on a worker may claim it
    {fsj1}.tries  hash  the same → how often it was claimed

The script that ends a job adds its tickets; the job's hash holds the URL of each ticket's webhook. Deleting a job
deletes its undelivered webhooks. A claim postpones a delivery by a lease. A worker that settles a delivery passes the
number of its claim, so that an expired claim settles nothing. Delivery is at least once: if a worker crashes after the
receiver's 200, another sends the webhook again under the same webhook-id.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Literal

import structlog
from msgspec import Struct
from redis import exceptions as gone
from redis.asyncio import Redis

from foreseen.errors import QueueUnavailable
from foreseen.lua_scripts import lua_script
from foreseen.queue.records import JOB_BYTES
from foreseen.queue.scripts import BASE

HOOKS, TRIES, COUNTS = f"{BASE}.hooks", f"{BASE}.tries", f"{BASE}.counts"
Outcome = Literal["delivered", "failed", "refused", "exhausted"]
"""Outcomes of a call: delivered; failed, to be retried; refused permanently; exhausted, the last retry failed."""

log = structlog.get_logger()

_CLAIM = lua_script("foreseen.queue", "hook_claim")
_SETTLE = lua_script("foreseen.queue", "hook_settle")
_PUT_OFF = lua_script("foreseen.queue", "hook_put_off")


class Claimed(Struct, frozen=True):
    """A delivery that this process has claimed until the lease is over; `hook` is a sealed record."""

    job: bytes
    nonce: bytes
    hook: bytes
    tries: int

    @property
    def member(self) -> bytes:
        return self.job + self.nonce


class Outbox:
    """The deliveries in a state store, over the queue's connections. Everything raises QueueUnavailable."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def claim(self, most: int, lease_seconds: float) -> list[Claimed]:
        """What is due, oldest first."""
        args = (str(most), str(int(lease_seconds * 1000)), str(JOB_BYTES), f"{BASE}.job:")
        return [Claimed(*one) for one in await self._call(self._client.eval(_CLAIM, 2, HOOKS, TRIES, *args))]

    async def settle(self, claimed: Claimed, outcome: Outcome | None) -> bool:
        """Remove a delivery, and count its outcome; False where another worker has claimed it meanwhile."""
        args: Any = (claimed.member, str(claimed.tries), outcome or "")
        return bool(await self._call(self._client.eval(_SETTLE, 3, HOOKS, TRIES, COUNTS, *args)))

    async def put_off(self, claimed: Claimed, seconds: float, *, failed: bool) -> bool:
        """Retry a delivery in so many seconds. `failed`: it was tried; otherwise the claim does not count as a try."""
        args: Any = (claimed.member, str(claimed.tries), str(int(seconds * 1000)), str(int(failed)))
        return bool(await self._call(self._client.eval(_PUT_OFF, 3, HOOKS, TRIES, COUNTS, *args)))

    async def _call(self, call: Awaitable[Any] | Any) -> Any:
        try:
            return await call
        except (gone.RedisError, OSError, TimeoutError, RuntimeError) as error:  # the last is uvloop's of a closed one
            log.debug("outbox", error=type(error).__name__)
            raise QueueUnavailable("the state store does not answer") from None
