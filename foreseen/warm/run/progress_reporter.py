"""A run's progress → the state store, from where every proxy tells it in its metrics. It is never in the run's way.

A run that writes to Redis itself is seen by no proxy, and it has no port of its own to be scraped at: it may last a
minute, run on any machine, and be gone before Prometheus has heard of it. The store is there anyway: purges are read
from it. A store that is away costs the run nothing but this.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading

from foreseen.errors import QueueUnavailable, SetupError
from foreseen.queue.queue import Queue, connect_queue
from foreseen.queue.queue_types import Bounds
from foreseen.queue.warm_progress import Run
from foreseen.stores.redis_urls import BY_ADDRESS, Access
from foreseen.warm.run.checkpoint import Progress

BEAT_SECONDS = 1.0
NOTHING = Bounds(0, 0, 0.0, 0.0)
"""Whoever only tells puts no job into the queue."""


class ProgressReporter:
    """Tells of one run, once a second, in a thread of its own. Without an address it tells nobody."""

    def __init__(self, url: str | None, run: str, model: str, access: Access = BY_ADDRESS) -> None:
        self._url, self._run, self._model, self._access = url, run, model, access
        self._rows: int | None = None
        self._told: list[int] = []
        self._now = Run(model, None, [])
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def started(self, rows: int | None, done: Progress) -> None:
        """From here on. What an attempt before this one did was told by it."""
        self._rows = rows
        self._told = _counts(done)
        self.moved(done)
        if self._url is not None:
            self._thread = threading.Thread(target=self._keep_telling, args=(self._url,), name="tell", daemon=True)
            self._thread.start()

    def moved(self, done: Progress) -> None:
        self._now = Run(self._model, None if self._rows is None else max(0, self._rows - done.rows), _counts(done))

    def close(self) -> None:
        if self._thread is not None:
            self._over.set()
            self._thread.join()
            self._thread = None

    def _keep_telling(self, url: str) -> None:
        with asyncio.Runner() as runner, contextlib.suppress(SetupError):
            queue = connect_queue(url, NOTHING, self._access)
            over = False
            while not over:
                over = self._over.wait(BEAT_SECONDS)
                runner.run(self.tell(queue, over=over))
            runner.run(queue.close())

    async def tell(self, queue: Queue, *, over: bool = False) -> None:
        """Tell once, if the store is there."""
        now = self._now
        with contextlib.suppress(QueueUnavailable):
            await queue.warms(self._run, now, self._told, over=over)
            self._told = now.rows


def _counts(done: Progress) -> list[int]:
    return [done.hit, done.computed, done.imported, done.failed]
