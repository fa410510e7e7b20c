"""The shapes of a model's batches: ragged, of a fixed set, or one row each.

A kernel may round differently at another shape, so that a row's bits depend on its batch-mates. In a fixed set the
shape depends on the row's length alone: the smallest length of the set that holds it, and the number of rows of that
length. A batch that is not full is filled up with a neutral row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from foreseen.modelspec import made_up
from foreseen.modelspec.manifest import Manifest
from foreseen.modelspec.rows import tokens
from foreseen.types import Row

Kind = Literal["ragged", "fixed", "single"]


class Shapes(Struct, frozen=True):
    """`ragged`: padded to the longest row of the batch. `fixed`: one of these shapes. `single`: every row alone."""

    kind: Kind = "ragged"
    lengths: tuple[int, ...] = ()
    """Of a fixed set, ascending; empty where rows have one size."""
    rows: tuple[int, ...] = ()
    """How many rows a batch of each length has; one number where rows have one size."""

    def length(self, own: int) -> int:
        """The length that a row of its own length is padded to. Beyond the set it is the next power of two."""
        held = next((length for length in self.lengths if own <= length), None)
        return held if held is not None else 1 << max(own - 1, 0).bit_length() if self.lengths else own

    def count(self, length: int) -> int:
        """How many rows a batch of that length has."""
        if not self.lengths:
            return self.rows[0] if self.rows else 1
        return self.rows[self.lengths.index(length)] if length in self.lengths else 1

    @property
    def identity(self) -> str:
        """The part of the model digest: another set may give other bits. Empty where shapes change no answer."""
        if self.kind != "fixed":
            return ""
        return f"shapes fixed lengths={','.join(map(str, self.lengths))} rows={','.join(map(str, self.rows))}"


RAGGED, SINGLE = Shapes(), Shapes("single")


def neutral_row(manifest: Manifest) -> Row:
    """What fills up a batch: the shortest made-up row, the same in every process."""
    return Row(tuple(made_up.tensors(manifest, 1, seed=0).values()))


def open_dimension(manifest: Manifest) -> str | None:
    """The one dimension that rows differ in. Raises ValueError where there are several: no length is a row's own."""
    named = {dim for spec in manifest.model.keyed for dim in spec.shape[1:] if isinstance(dim, str)}
    if len(named) > 1:
        raise ValueError(f"rows differ in several dimensions ({', '.join(sorted(named))})")
    return next(iter(named), None)


def batches(rows: Sequence[Row], manifest: Manifest, shapes: Shapes) -> list[tuple[list[int], int, int]]:
    """Which rows run together in a fixed set: their places, the length they are padded to, the rows of the batch."""
    by_length: dict[int, list[int]] = {}
    for at, row in enumerate(rows):
        by_length.setdefault(shapes.length(tokens(row, manifest.model)), []).append(at)
    made = []
    for length, places in sorted(by_length.items()):
        count = shapes.count(length)
        made += [(places[at : at + count], length, count) for at in range(0, len(places), count)]
    return made
