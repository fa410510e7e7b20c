"""What runs in the background ends when it is told to, also where a library loses the first word."""

from __future__ import annotations

import asyncio

from foreseen.tasks import end


async def test_a_cancellation_that_is_lost_is_said_again() -> None:
    """One that ends at once, one that swallows two cancellations, one that has ended already."""
    heard = 0

    async def deaf() -> None:
        nonlocal heard
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                heard += 1
                if heard == 3:
                    raise

    async def prompt() -> None:
        await asyncio.sleep(60)

    async def over() -> None:
        return

    tasks = [asyncio.create_task(one()) for one in (deaf, prompt, over)]
    await asyncio.sleep(0)
    await end(*tasks)
    assert heard == 3
    assert [task.cancelled() for task in tasks] == [True, True, False]
    await end()
