"""The far tier, used only while its check value matches our root secret.

A Redis with another check value is foreign: proxies with another root secret filled it or claimed it after a flush, or
another client has overwritten the value. All our reads would miss, and our writes would evict foreign entries, so the
tier neither reads nor writes until the value matches again or is deleted. It checks the value every `LOOK_SECONDS`.
Redis never decides whether Foreseen answers: a foreign one costs hits, not answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog

from foreseen.errors import FarError
from foreseen.stores.commands import Command, Entries
from foreseen.types import FarState, Key

LOOK_SECONDS = 2.0
"""Between two checks of the value: one small read per process."""

log = structlog.get_logger()


class OwnedEntries(Entries):
    """Entries of one root secret. Raises FarError("foreign") at once while Redis holds another check value."""

    def __init__(self, entries: Entries, check: bytes, look_seconds: float = LOOK_SECONDS) -> None:
        self.foreign = False
        self._entries = entries
        self._check = check
        self._look_seconds = look_seconds

    @property
    def open(self) -> bool:
        return self._entries.open

    async def get(self, keys: Sequence[Key]) -> list[bytes | FarError | None]:
        self._admit()
        return await self._entries.get(keys)

    async def put(self, entries: Sequence[tuple[Key, bytes, int]]) -> None:
        self._admit()
        await self._entries.put(entries)

    async def each(self, commands: Sequence[Command], *, stores: bool = False) -> list[Any]:
        self._admit()
        return await self._entries.each(commands, stores=stores)

    async def lease(self, keys: Sequence[Key], token: bytes, milliseconds: int) -> list[bool]:
        self._admit()
        return await self._entries.lease(keys, token, milliseconds)

    async def extend(self, keys: Sequence[Key], token: bytes, milliseconds: int) -> None:
        self._admit()
        await self._entries.extend(keys, token, milliseconds)

    async def release(self, keys: Sequence[Key], token: bytes) -> None:
        self._admit()
        await self._entries.release(keys, token)

    async def forget(self, keys: Sequence[Key]) -> int:
        self._admit()
        return await self._entries.forget(keys)

    async def states(self) -> list[FarState]:
        return await self._entries.states()

    async def time(self) -> float:
        return await self._entries.time()

    async def close(self) -> None:
        await self._entries.close()

    async def look(self) -> None:
        """Read the check value, and claim a Redis that has none. Raises FarError; then nothing changes."""
        foreign = not await self._entries.claim(self._check)
        if foreign and not self.foreign:
            log.error(
                "far: foreign check value; not used until it matches again",
                fix="give --secret-file of the other proxies, or FLUSHALL this Redis if it has no others",
            )
        elif self.foreign and not foreign:
            log.warning("far: check value matches again")
        self.foreign = foreign

    async def follow(self) -> None:
        """Check the value every `LOOK_SECONDS`, until cancelled."""
        while True:
            await asyncio.sleep(self._look_seconds)
            try:
                await self.look()
            except FarError as error:
                log.debug("far: check value not read", kind=error.kind)

    def _admit(self) -> None:
        if self.foreign:
            raise FarError("foreign")
