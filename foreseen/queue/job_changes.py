"""The channel on which the state store's scripts publish every change of a job."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from redis import exceptions as gone
from redis.asyncio import Redis

from foreseen.errors import QueueUnavailable
from foreseen.queue.queue_calls import QueueCalls
from foreseen.queue.records import JOB_BYTES
from foreseen.queue.scripts import BASE
from foreseen.stores.master_locator import moves_of

CHANNEL = f"{BASE}.news"
SILENCE_SECONDS = 1.0
"""How long one call listens to the channel."""

NextChange = Callable[[], Awaitable[tuple[bytes, bool] | None]]
"""Waits for the next change: the job, and whether it has ended for one of its tickets. None after a silence."""


@contextlib.asynccontextmanager
async def job_changes(client: Redis, calls: QueueCalls) -> AsyncIterator[NextChange]:
    """The changes from now on. Raises QueueUnavailable, also where the queue has moved to another server."""
    channel = client.pubsub(ignore_subscribe_messages=True)
    try:
        await calls.call(channel.subscribe(CHANNEL))
        moves = moves_of(client)

        async def following() -> tuple[bytes, bool] | None:
            message = await calls.call(channel.get_message(timeout=SILENCE_SECONDS))
            if moves_of(client) != moves:
                raise QueueUnavailable("the queue is on another server now")
            return None if message is None else (message["data"][:JOB_BYTES], len(message["data"]) == JOB_BYTES)

        yield following
    finally:
        with contextlib.suppress(gone.RedisError, OSError, RuntimeError):
            await channel.aclose()  # type: ignore[no-untyped-call]
