"""Webhooks that are to be delivered, in the state store: claimed like jobs, so that a dead worker loses none.

    {fsj1}.hooks  zset  job ‖ nonce of a ticket that has ended → Unix ms from which on anybody may claim it
    {fsj1}.tries  hash  the same → how often it was claimed

What ends a job puts its tickets in (`transitions`), and where a ticket's webhook goes stands in the job's own hash:
when the job is forgotten, so is what was never delivered. A claim puts a delivery off by a lease; who settles it shows
the try that it claimed, so that a claim which has passed on to somebody else settles nothing. At least once: a worker
that dies behind the receiver's 200 has it sent again, under the same webhook-id.
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
"""Of a call: delivered; failed, and may be tried again; refused for good. Exhausted: failed for the last time."""

log = structlog.get_logger()

_CLAIM = lua_script("foreseen.queue", "hook_claim")
_SETTLE = lua_script("foreseen.queue", "hook_settle")
_PUT_OFF = lua_script("foreseen.queue", "hook_put_off")


class Claimed(Struct, frozen=True):
    """A ticket whose end is this process's to tell until the lease is over; `hook` is a sealed record."""

    job: bytes
    nonce: bytes
    hook: bytes
    tries: int

    @property
    def member(self) -> bytes:
        return self.job + self.nonce


class Outbox:
    """The outbox of a state store, by the queue's connections. Everything raises QueueUnavailable where it is away."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def claim(self, most: int, lease_seconds: float) -> list[Claimed]:
        """What is due, oldest first."""
        args = (str(most), str(int(lease_seconds * 1000)), str(JOB_BYTES), f"{BASE}.job:")
        return [Claimed(*one) for one in await self._call(self._client.eval(_CLAIM, 2, HOOKS, TRIES, *args))]

    async def settle(self, claimed: Claimed, outcome: Outcome | None) -> bool:
        """It is done with, and counted where it was sent; False where somebody else has claimed it meanwhile."""
        args: Any = (claimed.member, str(claimed.tries), outcome or "")
        return bool(await self._call(self._client.eval(_SETTLE, 3, HOOKS, TRIES, COUNTS, *args)))

    async def put_off(self, claimed: Claimed, seconds: float, *, failed: bool) -> bool:
        """It is due again in so many seconds. `failed`: it was tried; else the claim does not count as a try."""
        args: Any = (claimed.member, str(claimed.tries), str(int(seconds * 1000)), str(int(failed)))
        return bool(await self._call(self._client.eval(_PUT_OFF, 3, HOOKS, TRIES, COUNTS, *args)))

    async def _call(self, call: Awaitable[Any] | Any) -> Any:
        try:
            return await call
        except (gone.RedisError, OSError, TimeoutError, RuntimeError) as error:  # the last is uvloop's of a closed one
            log.debug("outbox", error=type(error).__name__)
            raise QueueUnavailable("the state store does not answer") from None
