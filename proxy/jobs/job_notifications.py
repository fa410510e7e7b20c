"""Notifications of job changes: one Redis channel wakes the waiters of this process.

All waiters share one connection. A notification may be lost (the store may restart), so a waiter also polls: every
LOOK_SECONDS, and every LOOK_SECONDS_WITHOUT while the channel is not connected.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterator

import structlog

from foreseen.errors import Overloaded, QueueUnavailable
from foreseen.queue.queue import Queue
from foreseen.tasks import end

LOOK_SECONDS = 5.0
LOOK_SECONDS_WITHOUT = 0.25
AGAIN_SECONDS = 0.2
MOST_WAITERS = 4096

log = structlog.get_logger()


class JobSubscription:
    """One waiter's subscription to one job; only to its end if `end_alone`."""

    def __init__(self, news: JobNotifications, end_alone: bool) -> None:
        self._news = news
        self.end_alone = end_alone
        self.changed = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Until the job changes, or ends, or it is time to look again."""
        most = LOOK_SECONDS if self._news.listening else LOOK_SECONDS_WITHOUT
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(seconds, most))):
                await self.changed.wait()
        self.changed.clear()


class JobNotifications:
    """The subscriptions of this process, by job."""

    def __init__(self, queue: Queue) -> None:
        self.listening = False
        self.closing = False
        self._queue = queue
        self._watches = defaultdict[bytes, set[JobSubscription]](set)
        self._waiters = 0
        self._follower: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def of(self, job: bytes, *, end_alone: bool = False) -> Iterator[JobSubscription]:
        """Watch a job, or its end; begin before looking, so that no change falls in between. Raises Overloaded."""
        if self._waiters >= MOST_WAITERS:
            raise Overloaded(f"{MOST_WAITERS} callers wait for predictions already")
        if self._follower is None:
            self._follower = asyncio.get_running_loop().create_task(self._follow())
        watch = JobSubscription(self, end_alone)
        self._watches[job].add(watch)
        self._waiters += 1
        try:
            yield watch
        finally:
            self._waiters -= 1
            self._watches[job].discard(watch)
            if not self._watches[job]:
                del self._watches[job]

    async def close(self) -> None:
        """Wake all waiters and stop."""
        self.closing = True
        self._wake_all()
        if self._follower is not None:
            await end(self._follower)

    async def _follow(self) -> None:
        while not self.closing:
            try:
                async with self._queue.news() as following:
                    self.listening = True
                    self._wake_all()
                    while not self.closing:
                        job, over = await following() or (b"", False)
                        for watch in self._watches.get(job, ()):
                            if over or not watch.end_alone:
                                watch.changed.set()
            except QueueUnavailable:
                log.debug("job notifications: not reachable")
            finally:
                self.listening = False
            await asyncio.sleep(AGAIN_SECONDS)

    def _wake_all(self) -> None:
        for watches in self._watches.values():
            for watch in watches:
                watch.changed.set()
