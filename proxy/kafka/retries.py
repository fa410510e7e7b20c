"""The retry policy for messages without an answer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class PausedRetries:
    """Messages that are tried again after a pause, or when another was answered: then there is room for one more, and
    a model that was only full must not be idle while they wait."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[asyncio.TimerHandle, Callable[[], None]]] = deque()

    def add(self, pause: float, again: Callable[[], None]) -> None:
        self._waiting.append((asyncio.get_running_loop().call_later(pause, again), again))

    def kick(self) -> None:
        """Try the one that has waited longest now."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            timer, again = self._waiting.popleft()
            if not timer.cancelled() and timer.when() > loop.time():
                timer.cancel()
                loop.call_soon(again)
                return
