"""The far tier as `tiers.py` uses it, and how much it gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from foreseen.errors import FarError
from foreseen.keys.entry import MAX_FAR_VALUE_BYTES
from foreseen.types import Key

MAX_FAR_PENDING_BYTES = 64 * 2**20


class FarTier(Protocol):
    """The part of the far tier that is needed here. All raise FarError; `get` may also return one for single keys."""

    async def get(self, keys: Sequence[Key]) -> list[bytes | FarError | None]: ...
    async def put(self, entries: Sequence[tuple[Key, bytes, int]]) -> None: ...
    async def forget(self, keys: Sequence[Key]) -> int: ...


class TierLimits(Struct, frozen=True):
    """How much the far tier gets."""

    far_value_bytes: int = MAX_FAR_VALUE_BYTES
    far_pending_bytes: int = MAX_FAR_PENDING_BYTES
    """Entries on their way; more are dropped."""
