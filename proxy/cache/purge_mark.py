"""The last purge's generation, stored in the cache's Redis too, to detect a state store that has lost purges.

If the state store starts empty, or from an older copy, purged entries would be served again: they are still in the
cache. The mark is stored beside them, under a MAC of the root secret, so that a process that may write to the cache can
neither raise it (which would purge everything) nor forge one. Without a mark, or without the cache, nothing is known.

    fsn1.purged   string   the generation, 20 digits ‖ MAC 16
"""

from __future__ import annotations

from foreseen.errors import FarError
from foreseen.keys.key import opened_generation, sealed_generation
from foreseen.stores.commands import Entries

NAME = b"fsn1.purged"


class PurgeMark:
    """The mark in the far tier. If Redis fails, there is no mark; nothing here raises."""

    def __init__(self, far: Entries | None, root: bytes) -> None:
        self._far = far
        self._root = root

    async def read(self) -> int | None:
        """The generation; 0 if there is no valid mark, None if Redis failed."""
        if self._far is None:
            return None
        try:
            ((value,),) = await self._far.each([("MGET", NAME)])
        except (FarError, TypeError, ValueError):
            return None
        return opened_generation(self._root, value or b"") or 0

    async def raise_to(self, generation: int) -> None:
        """Write it. Of two that do so at one time the lower may win: each looks again, and the higher does so again."""
        if self._far is None:
            return
        try:
            await self._far.each([("SET", NAME, sealed_generation(self._root, generation))], stores=True)
        except FarError:
            return
