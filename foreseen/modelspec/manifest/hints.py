"""`[samples]` of a manifest: which sizes, numbers and texts its graph takes, for rows that are made up.

Made-up rows serve measurements, the self-test and the readiness check. Changing the hints changes no answer and no key.
"""

from __future__ import annotations

from msgspec import Struct


class Samples(Struct, frozen=True, forbid_unknown_fields=True):
    """Contents of generated rows, for a graph that does not accept every size, number or text."""

    sizes: dict[str, tuple[int, ...]] = {}
    """Named dimension → its sizes. A row uses the same position of every list."""
    values: dict[str, tuple[float, float]] = {}
    """Numeric input → range [first, second) that its numbers are drawn from."""
    texts: dict[str, tuple[str, ...]] = {}
    """Text input → the texts to draw from."""

    def place(self, length: int) -> int | None:
        """The place in the lists of sizes that is nearest to a length; None where there are no lists."""
        lists = list(self.sizes.values())
        if not lists:
            return None
        return min(range(len(lists[0])), key=lambda at: abs(lists[0][at] - length))


def problem(samples: Samples) -> str | None:
    """What is wrong with the hints, or None."""
    lengths = {len(sizes) for sizes in samples.sizes.values()}
    if 0 in lengths or len(lengths) > 1:
        return "samples.sizes: every dimension needs a list of the same length, of one size at least"
    if any(size < 0 for sizes in samples.sizes.values() for size in sizes):
        return "samples.sizes: a size is not below 0"
    for name, (low, high) in samples.values.items():
        if not low < high:
            return f"samples.values.{name}: the lower end comes first"
    empty = next((name for name, texts in samples.texts.items() if not texts), None)
    return f"samples.texts.{empty}: needs one text at least" if empty is not None else None
