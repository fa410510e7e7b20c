"""Keys and entries → commands of one key each, wherever they go: one server (`far.py`), or several (`cluster.py`).

Key names in Redis:  `fsn1:` + the 32 bytes of a key  → entry;   `fsn1.secret` → the check value of the root secret;
`fsn1.lease:` + the 32 bytes of a key → the token of the proxy that computes it just now.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from foreseen.errors import FarError
from foreseen.lua_scripts import lua_script
from foreseen.types import DOWN, FarState, Key

PREFIX = b"fsn1:"
SECRET_CHECK = b"fsn1.secret"
LEASE = b"fsn1.lease:"
EXTEND_LEASE = lua_script("foreseen.stores", "lease_extend")
RELEASE_LEASE = lua_script("foreseen.stores", "lease_release")
COMMANDS_PER_CALL = 256

Command = tuple[Any, ...]
"""A command of one key: its name and its words. The key is the first of them, of a script the third."""


class Entries(ABC):
    """Entries by their keys, on one server or several. Everything raises FarError."""

    @property
    @abstractmethod
    def open(self) -> bool:
        """Whether the breaker of at least one server is open, or no server is known yet."""

    @abstractmethod
    async def each(self, commands: Sequence[Command], *, stores: bool = False) -> list[Any]:
        """The reply to each command, pipelined; a FarError in its place where it alone failed. `stores`: the commands
        write; after a refusal (full, read-only) writes pause."""

    @abstractmethod
    async def get(self, keys: Sequence[Key]) -> list[bytes | FarError | None]:
        """The entries of keys, in order: None for a missing entry, the FarError if the key's part of Redis failed."""

    @abstractmethod
    async def states(self) -> list[FarState]:
        """What each server reports in INFO; DOWN where it does not reply within the budget."""

    @abstractmethod
    async def time(self) -> float:
        """Redis' own clock, Unix seconds."""

    @abstractmethod
    async def close(self) -> None: ...

    async def state(self) -> FarState:
        """The sums over the servers, the least time that one has run; DOWN where one does not answer."""
        states = await self.states()
        if DOWN in states or not states:
            return DOWN
        return FarState(
            memory=sum(one.memory for one in states),
            memory_limit=sum(one.memory_limit for one in states) if all(one.memory_limit for one in states) else 0,
            keys=sum(one.keys for one in states),
            evicted=sum(one.evicted for one in states),
            expired=sum(one.expired for one in states),
            policy=min(one.policy for one in states),
            version=min(one.version for one in states),
            append_only=any(one.append_only for one in states),
            uptime=min(one.uptime for one in states),
            replicas=min(one.replicas for one in states),
        )

    async def put(self, entries: Sequence[tuple[Key, bytes, int]]) -> None:
        """Store (key, entry, milliseconds to live), pipelined."""
        commands = [("SET", PREFIX + key, value, "PX", max(1, milliseconds)) for key, value, milliseconds in entries]
        await self._all(commands, stores=True)

    async def lease(self, keys: Sequence[Key], token: bytes, milliseconds: int) -> list[bool]:
        """Take the leases of keys for this token; whether each was free."""
        replies = await self._in_steps(
            [("SET", LEASE + key, token, "NX", "PX", milliseconds) for key in keys], stores=True
        )
        return [bool(reply) for reply in replies]

    async def extend(self, keys: Sequence[Key], token: bytes, milliseconds: int) -> None:
        """Extend the leases that this token still holds."""
        await self._in_steps([("EVAL", EXTEND_LEASE, 1, LEASE + key, token, milliseconds) for key in keys])

    async def release(self, keys: Sequence[Key], token: bytes) -> None:
        """Release the leases that this token still holds."""
        await self._in_steps([("EVAL", RELEASE_LEASE, 1, LEASE + key, token) for key in keys])

    async def forget(self, keys: Sequence[Key]) -> int:
        """Delete entries; how many there were."""
        return sum(await self._all([("DEL", PREFIX + key) for key in keys]))

    async def claim(self, check: bytes) -> bool:
        """Whether this Redis was filled under the root secret of this check value. If it has no value, this one is
        written, so that proxies with another root secret detect it. False also if the name does not hold a string."""
        known = await self.knows(check)
        if known is None:
            await self._all([("SET", SECRET_CHECK, check, "NX")], stores=True)
            known = await self.knows(check)
        return known is True

    async def knows(self, check: bytes) -> bool | None:
        """Whether this Redis was filled under the root secret of this check value; None where it has no value."""
        ((found,),) = await self._all([("MGET", SECRET_CHECK)])  # unlike GET: nil for what is no string
        return None if found is None else bool(found == check)

    async def _in_steps(self, commands: Sequence[Command], *, stores: bool = False) -> list[Any]:
        steps = range(0, len(commands), COMMANDS_PER_CALL)
        parts = [await self._all(commands[at : at + COMMANDS_PER_CALL], stores=stores) for at in steps]
        return [reply for part in parts for reply in part]

    async def _all(self, commands: Sequence[Command], *, stores: bool = False) -> list[Any]:
        replies = await self.each(commands, stores=stores)
        for reply in replies:
            if isinstance(reply, FarError):
                raise reply
        return replies
