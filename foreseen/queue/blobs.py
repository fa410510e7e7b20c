"""Files that clients upload (OpenAI's batches), kept in the state store beside the jobs."""

from __future__ import annotations

from foreseen.errors import QueueFull
from foreseen.queue.queue_calls import QueueCalls
from foreseen.queue.scripts import BASE


class Blobs:
    """Named contents that expire with the jobs that could need them. Everything raises QueueUnavailable."""

    def __init__(self, calls: QueueCalls, job_seconds: float) -> None:
        self._calls = calls
        self._seconds = int(job_seconds) + 1

    async def keep(self, name: str, content: bytes, most: int) -> None:
        """Keep a blob for as long as a job may wait; of all of them at most so many bytes. Raises QueueFull,
        QueueUnavailable."""
        sizes, now, kept = f"{BASE}.blobs", await self._calls.now(), 0
        listed = await self._calls.ask("HGETALL", sizes)
        pairs = listed.items() if isinstance(listed, dict) else zip(listed[::2], listed[1::2], strict=True)
        for known, entry in pairs:
            size, _, until = entry.partition(b" ")
            if float(until) < now:
                await self._calls.ask("HDEL", sizes, known)
            else:
                kept += int(size)
        if kept + len(content) > most:
            raise QueueFull(f"files: {most} bytes are kept at most", retry_after=60)
        await self._calls.ask("HSET", sizes, name, f"{len(content)} {now + self._seconds:.0f}")
        await self._calls.ask("SET", f"{BASE}.blob:{name}", content, "EX", self._seconds)

    async def read(self, name: str) -> bytes | None:
        """A blob, None where there is none. Raises QueueUnavailable."""
        content: bytes | None = await self._calls.ask("GET", f"{BASE}.blob:{name}")
        return content

    async def forget(self, name: str) -> None:
        """Forget a blob."""
        await self._calls.ask("DEL", f"{BASE}.blob:{name}")
        await self._calls.ask("HDEL", f"{BASE}.blobs", name)
