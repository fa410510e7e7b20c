"""Cancels background tasks and waits until they have ended."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

AGAIN_SECONDS = 0.05


async def all_of(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do all of them at a time."""
    await asyncio.gather(*works)


async def end(*tasks: asyncio.Task[None]) -> None:
    """Cancel tasks, again and again until they have ended.

    Once is not enough for what asks Redis: redis-py sends with `asyncio.wait_for`, which before CPython 3.12 loses a
    cancellation that comes in the same moment as the end of what it waits for. A worker was seen to wait for ever.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN_SECONDS)
