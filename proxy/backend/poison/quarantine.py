"""Quarantine of poison rows: those that end a model's process are refused for a while.

A process that ends fails all requests under way, and only the proxy knows which rows those held. Each is asked again
alone: a row that gets an answer is cleared, and a row that ends the process alone twice is refused until its time is
up. What is kept of a row is a digest under a key that this process makes, never the row. Several proxies and workers in
front of one process suspect separately, and try one row at a time (`isolation.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from msgspec import Struct

from foreseen.errors import InputRejected
from foreseen.keys.key import Framer
from foreseen.types import Row

MAX_CRASHES = 2
"""Once may be an accident: a `kill`, memory that ran out for another reason."""
MAX_SUSPECTS = 4096


class SuspectedRow(Struct, frozen=True):
    crashes: int
    until: float


class Quarantine:
    """Of one model. Falsy while no row is suspected, which is nearly always: then it costs nothing."""

    def __init__(self, framer: Framer, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._framer = framer
        self._seconds = seconds
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._suspects: OrderedDict[bytes, SuspectedRow] = OrderedDict()
        self._turn = asyncio.Lock()
        self._under_way = 0
        self._trying = False
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._suspects)

    def __repr__(self) -> str:
        return f"<Quarantine {len(self)} suspects, {self._under_way} under way>"

    def crashes(self, row: Row, parameters: bytes) -> int:
        """How often the row has ended the process while it was alone."""
        suspect = self._known(self._name(row, parameters))
        return 0 if suspect is None else suspect.crashes

    def refusal(self, row: Row, parameters: bytes) -> InputRejected | None:
        """Why the row is refused, None where it is not."""
        suspect = self._known(self._name(row, parameters))
        if suspect is None or suspect.crashes < MAX_CRASHES:
            return None
        left = max(1, round(suspect.until - self._clock()))
        message = f"a row of this request has ended the model's process {suspect.crashes} times; it is refused for now"
        return InputRejected(message, retry_after=left)

    def crashed(self, row: Row, parameters: bytes) -> None:
        """The row ended the process while it was alone in it."""
        name = self._name(row, parameters)
        before = self._suspects.pop(name, None)
        crashes = 1 if before is None else before.crashes + 1
        self._suspects[name] = SuspectedRow(crashes, self._clock() + self._seconds)
        while len(self._suspects) > MAX_SUSPECTS:
            self._suspects.popitem(last=False)

    def cleared(self, row: Row, parameters: bytes) -> None:
        """The row has got its answer."""
        if self._suspects:
            self._suspects.pop(self._name(row, parameters), None)

    def clear(self) -> None:
        """Another version of the model need not share the fault."""
        self._suspects.clear()

    @property
    def is_trying(self) -> bool:
        """Whether a row is tried alone, or about to be: others wait."""
        return self._trying

    def among_others(self) -> _Among:
        """Under way beside other requests; not while a row is tried alone. An asynchronous context."""
        return _Among(self)

    async def enter(self) -> None:
        """Wait until no row is tried alone, and be under way."""
        while self._trying:
            await self._changed.wait()
        self._under_way += 1

    def leave(self) -> None:
        """Be under way no more."""
        self._under_way -= 1
        if self._trying:  # nobody else waits for this
            self._notify()

    @asynccontextmanager
    async def alone(self, elsewhere: AbstractAsyncContextManager[None]) -> AsyncIterator[None]:
        """The only request of this proxy process under way. `elsewhere` is the lock among other processes."""
        async with self._turn, elsewhere:
            self._trying = True
            try:
                while self._under_way:
                    await self._changed.wait()
                yield
            finally:
                self._trying = False
                self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _known(self, name: bytes) -> SuspectedRow | None:
        suspect = self._suspects.get(name)
        if suspect is not None and suspect.until <= self._clock():
            del self._suspects[name]
            return None
        return suspect

    def _name(self, row: Row, parameters: bytes) -> bytes:
        return hashlib.blake2b(self._framer.frame(row, parameters), key=self._secret, digest_size=16).digest()


class _Among:
    """One request under way; a class, as a generator costs four times as much."""

    __slots__ = ("_quarantine",)

    def __init__(self, quarantine: Quarantine) -> None:
        self._quarantine = quarantine

    async def __aenter__(self) -> None:
        await self._quarantine.enter()

    async def __aexit__(self, *_: object) -> None:
        self._quarantine.leave()
