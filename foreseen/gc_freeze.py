"""Excludes the objects made at the start from garbage collection (`gc.freeze`).

A full collection visits every object that can be part of a cycle. A proxy has 77,000 of them before its first request,
and each collection would stop it for 50 ms.
"""

from __future__ import annotations

import gc


def settle() -> None:
    """Collect once, then exclude all live objects from later collections. Called when a process is ready."""
    gc.collect()
    gc.freeze()
