"""Keeps garbage collection from stopping a process for long: objects made at the start are excluded (`gc.freeze`), and
those of a long body while it is decoded.

A full collection visits every object that can be part of a cycle. A proxy has 77,000 of them before its first request,
and each collection would stop it for 50 ms.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator


def settle() -> None:
    """Collect once, then exclude all live objects from later collections. Called when a process is ready."""
    gc.collect()
    gc.freeze()


class _CollectionPauses:
    """How many threads want no collection now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted = 0
        self._was_on = False

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        with self._lock:
            if not self._wanted:
                self._was_on = gc.isenabled()
                gc.disable()
            self._wanted += 1
        try:
            yield
        finally:
            with self._lock:
                self._wanted -= 1
                if not self._wanted and self._was_on:
                    gc.enable()


paused = _CollectionPauses().pause
"""While a long body is decoded: its objects are in no cycle, and a collection that visits them stops every thread."""
