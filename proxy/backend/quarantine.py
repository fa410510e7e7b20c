"""Rows that were aboard when a model's process ended → who did it, and who is not let aboard for a while.

A process that ends takes the questions of everybody aboard with it, and only the proxy knows who that was. So those
are asked again one by one, each with nobody else aboard: who gets an answer is cleared, and who ends the process alone
twice is refused until its time is up. What is kept of a row is a digest under a key that this process makes, never the
row. Several proxies and workers in front of one process suspect for themselves, and try one at a time (`trials.py`).
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
"""Once may be an accident: somebody's `kill`, memory that ran out for another reason."""
MAX_SUSPECTS = 4096


class SuspectedRow(Struct, frozen=True):
    crashes: int
    until: float


class Quarantine:
    """Of one model. Falsy while nobody is suspected, which is nearly always: then it costs nothing."""

    def __init__(self, framer: Framer, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._framer = framer
        self._seconds = seconds
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._suspects: OrderedDict[bytes, SuspectedRow] = OrderedDict()
        self._turn = asyncio.Lock()
        self._aboard = 0
        self._trying = False
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._suspects)

    def __repr__(self) -> str:
        return f"<Quarantine {len(self)} suspects, {self._aboard} aboard>"

    def crashes(self, row: Row, parameters: bytes) -> int:
        """How often the row has ended the process while it was alone."""
        suspect = self._known(self._name(row, parameters))
        return 0 if suspect is None else suspect.crashes

    def refusal(self, row: Row, parameters: bytes) -> InputRejected | None:
        """Why the row is not let aboard, None where it is."""
        suspect = self._known(self._name(row, parameters))
        if suspect is None or suspect.crashes < MAX_CRASHES:
            return None
        left = max(1, round(suspect.until - self._clock()))
        message = f"a row of this request has ended the model's process {suspect.crashes} times; it is refused for now"
        return InputRejected(message, retry_after=left)

    def crashed(self, row: Row, parameters: bytes) -> None:
        """The row ended the process while it was alone aboard."""
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

    def among_others(self) -> _Among:
        """Aboard with whoever else is; not while somebody is tried. An asynchronous context."""
        return _Among(self)

    async def board(self) -> None:
        """Wait until nobody is tried, and be aboard."""
        while self._trying:
            await self._changed.wait()
        self._aboard += 1

    def leave(self) -> None:
        """Be aboard no more."""
        self._aboard -= 1
        self._tell()

    @asynccontextmanager
    async def alone(self, elsewhere: AbstractAsyncContextManager[None]) -> AsyncIterator[None]:
        """Aboard with nobody else of this proxy process. `elsewhere` is the turn among other processes."""
        async with self._turn, elsewhere:
            self._trying = True
            try:
                while self._aboard:
                    await self._changed.wait()
                yield
            finally:
                self._trying = False
                self._tell()

    def _tell(self) -> None:
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
    """Somebody aboard; not a generator, which costs four times as much."""

    __slots__ = ("_quarantine",)

    def __init__(self, quarantine: Quarantine) -> None:
        self._quarantine = quarantine

    async def __aenter__(self) -> None:
        await self._quarantine.board()

    async def __aexit__(self, *_: object) -> None:
        self._quarantine.leave()
