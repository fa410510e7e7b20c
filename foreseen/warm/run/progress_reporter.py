"""Reports a run's progress to the state store, from where every proxy exports it as metrics. It never delays the run.

No proxy sees a run that writes to Redis directly, and the run has no port to be scraped at: it may last a minute, run
on any machine, and end before Prometheus discovers it. The run uses the state store anyway, to read purges. If the
store is not reachable, only the metrics are missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading

from foreseen.errors import QueueUnavailable, SetupError
from foreseen.queue.queue import Queue, connect_queue
from foreseen.queue.queue_types import Bounds
from foreseen.queue.warm_progress import WarmRun
from foreseen.stores.redis_urls import BY_ADDRESS, Access
from foreseen.warm.checkpoint import Progress

BEAT_SECONDS = 1.0
NOTHING = Bounds(0, 0, 0.0, 0.0)
"""A reporter puts no jobs into the queue."""


class ProgressReporter:
    """Reports one run once a second, in a thread of its own. Without an address it reports nothing."""

    def __init__(self, url: str | None, run: str, model: str, access: Access = BY_ADDRESS) -> None:
        self._url, self._run, self._model, self._access = url, run, model, access
        self._rows: int | None = None
        self._reported: list[int] = []
        self._now = WarmRun(model, None, [])
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def started(self, rows: int | None, done: Progress) -> None:
        """Report from here on: an earlier attempt has reported its own rows."""
        self._rows = rows
        self._reported = _counts(done)
        self.moved(done)
        if self._url is not None:
            self._thread = threading.Thread(target=self._keep_reporting, args=(self._url,), name="report", daemon=True)
            self._thread.start()

    def moved(self, done: Progress) -> None:
        self._now = WarmRun(self._model, None if self._rows is None else max(0, self._rows - done.rows), _counts(done))

    def close(self) -> None:
        if self._thread is not None:
            self._over.set()
            self._thread.join()
            self._thread = None

    def _keep_reporting(self, url: str) -> None:
        with asyncio.Runner() as runner, contextlib.suppress(SetupError):
            queue = connect_queue(url, NOTHING, self._access)
            over = False
            while not over:
                over = self._over.wait(BEAT_SECONDS)
                runner.run(self.report(queue, over=over))
            runner.run(queue.close())

    async def report(self, queue: Queue, *, over: bool = False) -> None:
        """Report once, if the store is reachable."""
        now = self._now
        with contextlib.suppress(QueueUnavailable):
            await queue.warms(self._run, now, self._reported, over=over)
            self._reported = now.rows


def _counts(done: Progress) -> list[int]:
    return [done.hit, done.computed, done.imported, done.failed]
