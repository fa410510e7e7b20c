"""`[batching]` of a manifest: how many rows run together, and in which shapes."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class Batching(Struct, frozen=True, forbid_unknown_fields=True):
    max_rows: int = 32
    max_tokens: int = 4096
    """Rows × longest row of one run, padding included; only for models with a named dimension."""
    wait_ms: float = 0.0
    """How long an idle session waits for company. 0 for CPUs: batching there gains next to nothing."""
    single: bool = False
    """Run every row alone: the declared way to cache a model whose rows are not independent. As shapes = "single"."""
    shapes: Literal["ragged", "fixed", "single", "auto"] = "ragged"
    """`ragged`: padded to the longest row of the batch. `fixed`: shapes of a fixed set, so that a row's bits depend on
    the row alone. `single`: every row alone. `auto`: the build measures all three, the fastest that is exact wins."""
    lengths: tuple[int, ...] = ()
    """Of a fixed set; empty: from the measured cost."""
    fixed_rows: int | None = None
    """Rows of every batch of a fixed set; None: from the measured cost."""

    @property
    def alone(self) -> bool:
        """Whether every row is run alone, by declaration."""
        return self.single or self.shapes == "single"
