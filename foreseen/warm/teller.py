"""A run's progress → the state store, from where every proxy tells it in its metrics. It is never in the run's way.

A run that writes to Redis itself is seen by no proxy, and it has no port of its own to be scraped at: it may last a
minute, run on any machine, and be gone before Prometheus has heard of it. The store is there anyway: purges are read
from it. A store that is away costs the run nothing but this.
"""

from __future__ import annotations

import contextlib
import threading

import msgspec

from foreseen.errors import SetupError
from foreseen.warm.checkpoint import Progress
from foreseen.warm.pipe import Pipe
from foreseen.warming import ROWS, RUNS, TELL, Run

BEAT_SECONDS = 1.0
BUDGET_SECONDS = 2.0
"""How long the store may take."""


class Teller:
    """Tells of one run, once a second, in a thread of its own. Without an address it tells nobody."""

    def __init__(self, url: str | None, run: str, model: str, beat_seconds: float = BEAT_SECONDS) -> None:
        self._url, self._run, self._model, self._beat_seconds = url, run, model, beat_seconds
        self._rows: int | None = None
        self._told: list[int] = []
        self._now = Run(model, None, [])
        self._pipe: Pipe | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def started(self, rows: int | None, done: Progress) -> None:
        """From here on. What an attempt before this one did was told by it."""
        self._rows = rows
        self._told = _counts(done)
        self.moved(done)
        if self._url is not None:
            self._thread = threading.Thread(target=self._keep_telling, name="tell", daemon=True)
            self._thread.start()

    def moved(self, done: Progress) -> None:
        self._now = Run(self._model, None if self._rows is None else max(0, self._rows - done.rows), _counts(done))

    def close(self) -> None:
        if self._thread is not None:
            self._over.set()
            self._thread.join()
            self._thread = None

    def _keep_telling(self) -> None:
        over = False
        while not over:
            over = self._over.wait(self._beat_seconds)
            self._tell(over=over)
        if self._pipe is not None:
            self._pipe.close()

    def _tell(self, *, over: bool) -> None:
        now = self._now
        with contextlib.suppress(SetupError):
            try:
                if self._pipe is None:
                    assert self._url is not None
                    self._pipe = Pipe(self._url, BUDGET_SECONDS)
                words = (self._run.encode(), msgspec.json.encode(now), b"01"[over : over + 1])
                self._pipe.eval(TELL, (RUNS, ROWS), (*words, msgspec.json.encode(self._told)))
                self._told = now.rows
            except SetupError:
                if self._pipe is not None:
                    self._pipe.close()
                    self._pipe = None
                raise


def _counts(done: Progress) -> list[int]:
    return [done.hit, done.computed, done.imported, done.failed]
