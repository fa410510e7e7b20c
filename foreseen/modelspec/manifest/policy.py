"""`[batching]`, `[gates]` and `[freshness]` of a manifest: how rows run together, what a candidate has to reach,
and how long entries are fresh."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class Batching(Struct, frozen=True, forbid_unknown_fields=True):
    """How rows run together."""

    max_rows: int = 32
    """Maximum rows of one run."""
    max_tokens: int = 4096
    """Maximum of rows × longest row of one run, including padding; only for models with a named dimension."""
    wait_ms: float = 0.0
    """How long an idle session waits for more rows. 0 for CPUs: batching gains almost nothing there."""
    single: bool = False
    """Run every row alone, so that a model whose rows are not independent can be cached. Same as shapes = "single"."""
    shapes: Literal["ragged", "fixed", "single", "auto"] = "ragged"
    """`ragged`: padded to the longest row of the batch. `fixed`: shapes of a fixed set, so that a row's bits depend on
    the row alone. `single`: every row alone. `auto`: the build measures all three and chooses the fastest that is
    exact."""
    lengths: tuple[int, ...] = ()
    """Lengths of a fixed set of shapes. Empty: from the measured cost."""
    fixed_rows: int | None = None
    """Rows of every batch of a fixed set of shapes. None: from the measured cost."""

    @property
    def alone(self) -> bool:
        """Whether every row is run alone, by declaration."""
        return self.single or self.shapes == "single"


class Gates(Struct, frozen=True, forbid_unknown_fields=True):
    """Requirements that a candidate must meet to be chosen. None disables a gate."""

    agreement: float | None = None
    """Minimum share of rows whose label equals fp32's, 0…1."""
    cosine: float | None = None
    """Minimum mean cosine with fp32 over the texts, 0…1. The report also shows the worst text's."""
    flips: float = 0.0
    """Maximum share of rows whose label changes with the other rows of the batch."""
    max_difference: float | None = 0.0
    """Maximum difference of any output element between a row alone and in any batch. 0 asserts bit equality."""


class Freshness(Struct, frozen=True, forbid_unknown_fields=True):
    """How long entries are fresh and how long they may be answered stale. Fields that are None are taken from the
    settings.

    Refreshing a pure function wastes the GPU, so there is no soft TTL by default.
    """

    soft_seconds: float | None = None
    """Age after which an entry is served while one refresh runs in the background."""
    hard_seconds: float | None = None
    """Age after which an entry is no longer served, except in the two windows below."""
    stale_while_revalidate_seconds: float | None = None
    """How long after its freshness ends an entry is served while it is refreshed. None: from soft to hard."""
    stale_if_error_seconds: float | None = None
    """How long after its freshness ends an entry is served if the model fails."""
