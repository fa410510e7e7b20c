"""Figures of a candidate and the manifest's gates → why it may not be chosen, or that it may."""

from __future__ import annotations

from msgspec import Struct

from foreseen.modelspec.manifest import Manifest


class Figures(Struct, frozen=True):
    """What was measured of one candidate. None was not measured."""

    cosine: float | None = None
    """Mean cosine with fp32 over all rows. The gate uses the mean, because the minimum falls with the number of
    rows."""
    least_cosine: float | None = None
    """Of the worst row: shown, not gated."""
    flips: float | None = None
    """Share of comparisons in which batch-mates change the label, 0…1."""
    max_difference: float | None = None
    """Largest change that batch-mates make to any element of any output."""
    changed_lengths: tuple[int, ...] = ()
    """Of a model declared exact: the lengths at which batch-mates or padding change a bit."""
    agreement: float | None = None
    """Share of rows with fp32's label, 0…1."""
    fp32_difference: float | None = None
    """Largest difference of any element from fp32's."""


def runs_alone(manifest: Manifest) -> bool:
    """Whether every row is run without batch-mates, by declaration; there is nothing to be invariant to then."""
    return manifest.batching.alone or manifest.rows == "together"


def reasons(manifest: Manifest, figures: Figures) -> list[str]:
    """Every gate that the candidate does not pass, in words; empty when it passes."""
    gates = manifest.gates
    failed = []
    if gates.cosine is not None and figures.cosine is not None and figures.cosine < gates.cosine:
        failed.append(f"cosine {figures.cosine:.4f} is below {gates.cosine:g}")
    if gates.agreement is not None and figures.agreement is not None and figures.agreement < gates.agreement:
        failed.append(f"agreement {figures.agreement:.4f} is below {gates.agreement:g}")
    return failed + invariance_reasons(manifest, figures)


def invariance_reasons(manifest: Manifest, figures: Figures) -> list[str]:
    """What keeps rows from being independent of their batch-mates; empty when nothing does."""
    gates = manifest.gates
    failed = []
    if figures.flips is not None and figures.flips > gates.flips:
        failed.append(f"batch-mates flip {figures.flips:.2%} of the labels, allowed {gates.flips:.2%}")
    allowed = 0.0 if manifest.exact else gates.max_difference
    if allowed is not None and figures.max_difference is not None and figures.max_difference > allowed:
        failed.append(f"batch-mates change an answer by {figures.max_difference:.2g}, allowed {allowed:g}")
    if figures.changed_lengths:
        failed.append(f"batch-mates or padding change bits at {len(figures.changed_lengths)} of the lengths 4 to 62")
    return failed
