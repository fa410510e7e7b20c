"""`[batching]`, `[gates]` and `[freshness]` of a manifest: how rows run together, what a candidate has to reach,
and how long entries are fresh."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class Batching(Struct, frozen=True, forbid_unknown_fields=True):
    """How rows run together."""

    max_rows: int = 32
    """Most rows of one run."""
    max_tokens: int = 4096
    """Rows × longest row of one run, padding included; only for models with a named dimension."""
    wait_ms: float = 0.0
    """How long an idle session waits for more rows. 0 for CPUs: batching gains almost nothing there."""
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


class Gates(Struct, frozen=True, forbid_unknown_fields=True):
    """What a candidate must reach to be chosen. None leaves a gate out."""

    agreement: float | None = None
    """Least share of rows whose label agrees with fp32's, 0…1."""
    cosine: float | None = None
    """Least mean cosine with fp32 over the texts, 0…1. The report also shows the worst text's."""
    flips: float = 0.0
    """Largest share of rows whose label changes with its batch-mates."""
    max_difference: float | None = 0.0
    """Largest difference of any output element between a row alone and in any batch. 0 asserts bit equality."""


class Freshness(Struct, frozen=True, forbid_unknown_fields=True):
    """How long entries are fresh and how long they may be answered stale. What is None is taken from the settings.

    Refreshing a pure function wastes the GPU, so there is no soft TTL by default.
    """

    soft_seconds: float | None = None
    """Past this age an entry is answered while one refresh runs in the background."""
    hard_seconds: float | None = None
    """Past this age it is not answered without asking the model, but for the two windows below."""
    stale_while_revalidate_seconds: float | None = None
    """How long past its freshness an entry is answered while it is refreshed; None: from soft to hard."""
    stale_if_error_seconds: float | None = None
    """How long past its freshness an entry is answered where the model fails."""
