"""Files that clients upload (OpenAI's batches), kept in the state store beside the jobs."""

from __future__ import annotations

from foreseen.errors import QueueFull
from foreseen.queue.queue_calls import QueueCalls
from foreseen.queue.queue_types import Bounds
from foreseen.queue.scripts import BASE


class Blobs:
    """Named contents that expire with the jobs that could need them. Everything raises QueueUnavailable."""

    def __init__(self, calls: QueueCalls, bounds: Bounds) -> None:
        self._calls = calls
        self._bounds = bounds

    async def keep(self, name: str, content: bytes, most: int, caller: bytes = b"") -> None:
        """Keep a blob for as long as a job may wait; of all of them at most so many bytes, and of one caller its share
        of that. Raises QueueFull, QueueUnavailable."""
        bounds = self._bounds
        seconds = int(bounds.job_seconds) + 1
        full = await self._calls.run("keep", name, most, seconds, caller, f"{bounds.weight:g}", content)
        if full == b"share":
            raise QueueFull(f"files: one caller keeps {bounds.share:.0%} of {most} bytes at most", retry_after=60)
        if full:
            raise QueueFull(f"files: {most} bytes are kept at most", retry_after=60)

    async def read(self, name: str) -> bytes | None:
        """A blob, None where there is none. Raises QueueUnavailable."""
        content: bytes | None = await self._calls.ask("GET", f"{BASE}.blob:{name}")
        return content

    async def forget(self, name: str) -> None:
        """Forget a blob."""
        await self._calls.ask("DEL", f"{BASE}.blob:{name}")
        await self._calls.ask("HDEL", f"{BASE}.blobs", name)
        await self._calls.ask("HDEL", f"{BASE}.blobs.callers", name)
