"""Stops runs that take too long; if a run does not stop, the process exits and its supervisor starts another.

Python cannot kill a thread that hangs in native code. So there are two stages: ask the runtime to stop between two
nodes; if the run continues after a grace period, exit the process.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

_log = structlog.get_logger()

EXIT_HUNG = 70
"""Exit status of a process with a run that would not stop: EX_SOFTWARE of sysexits.h."""


class _Watched:
    __slots__ = ("since", "stop", "stop_requested")

    def __init__(self, since: float, stop: Callable[[], None]) -> None:
        self.since = since
        self.stop = stop
        self.stop_requested = False


def _exit() -> None:
    os._exit(EXIT_HUNG)  # an orderly exit would wait for the hung thread


class Watchdog:
    """Watches any number of runs with one thread, which checks four times per limit: a run makes no system call.

    A run is stopped between `seconds` and 1.25 × `seconds` after its start; `give_up` is called once, at most
    `grace` later by the same measure.
    """

    def __init__(self, seconds: float, grace: float = 5.0, give_up: Callable[[], None] = _exit) -> None:
        self._seconds = seconds
        self._grace = grace
        self._give_up = give_up
        self._watched: set[_Watched] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watchdog", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<Watchdog {self._seconds} s + {self._grace} s, {len(self._watched)} runs>"

    @contextmanager
    def watch(self, stop: Callable[[], None]) -> Iterator[None]:
        """Watch the run that happens inside; `stop` is called from the watchdog's thread and must not block."""
        watched = _Watched(time.monotonic(), stop)
        with self._lock:
            self._watched.add(watched)
        try:
            yield
        finally:
            with self._lock:
                self._watched.discard(watched)

    def close(self) -> None:
        """Stop watching. Runs in progress are no longer stopped."""
        self._closed.set()
        self._thread.join()

    def _look(self) -> None:
        pause = min(self._seconds, self._grace) / 4
        while not self._closed.wait(pause):
            now = time.monotonic()
            with self._lock:
                late = [w for w in self._watched if now - w.since > self._seconds]
            for watched in late:
                taken = now - watched.since
                if not watched.stop_requested:
                    watched.stop_requested = True
                    _log.error("run hung", seconds=round(taken, 3))
                    watched.stop()
                elif taken > self._seconds + self._grace:
                    _log.critical("run still hung, exiting the process", seconds=round(taken, 3))
                    self._closed.set()
                    self._give_up()
                    return
