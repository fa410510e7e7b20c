"""Work on large bodies, off the event loop: in two threads, and large bodies one by one to bound memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from foreseen.web.bodies import MEDIUM_BYTES

T = TypeVar("T")

OFF_LOOP_BYTES = 32 * 1024
"""A larger body is parsed and prepared off the event loop; a smaller one costs less than the hop to a thread."""
OFF_LOOP_TEXT_BYTES = 4 * 1024
"""The same for text that goes through a tokenizer, which costs about 30 µs for a short sentence."""


def on_loop_bytes(is_heavy: bool) -> int:
    """The largest body that is prepared on the event loop, with steps that are heavy or without."""
    return OFF_LOOP_TEXT_BYTES if is_heavy else OFF_LOOP_BYTES


class Heavy:
    """The threads of one proxy process. One of them is free for medium bodies while the other has a large one."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="prepare")
        self._large = asyncio.Semaphore()

    async def run(self, work: Callable[[], T], size: int, limit: int = OFF_LOOP_BYTES) -> T:
        """Run the work of a body: on the event loop up to `limit` bytes, else in a thread."""
        if size <= limit:
            return work()
        if size <= MEDIUM_BYTES:
            return await self.off_loop(work)
        async with self._large:
            return await self.off_loop(work)

    async def off_loop(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        self._threads.shutdown(wait=False)
