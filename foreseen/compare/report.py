"""What a comparison reports: values, ready for JSON."""

from __future__ import annotations

from msgspec import Struct


class ShareEstimate(Struct, frozen=True):
    """A share of rows with the two-sided Clopper-Pearson interval."""

    count: int
    rows: int
    share: float
    low: float
    high: float


class Spread(Struct, frozen=True):
    """How values are spread: extremes of all, quantiles of a uniform sample."""

    rows: int
    least: float
    p01: float
    p05: float
    p50: float
    p95: float
    p99: float
    most: float


class NeighbourOverlap(Struct, frozen=True):
    """Of a sample of embeddings: how many of the nearest rows by the old answers are nearest by the new ones, too."""

    rows: int
    """In the sample."""
    nearest: int
    mean: float
    least: float


class WorstRow(Struct, frozen=True):
    """A row whose answers differ most, by its key: no input is in a report."""

    key: str
    """Hex, its first digits."""
    cosine: float | None
    max_abs: float | None
    label_changed: bool | None
    comparable: bool = True


class ComparisonReport(Struct, frozen=True):
    """Old and new answers to the same rows. `changed` is what a budget is about; `changed_by` says what counts."""

    rows: int
    confidence: float
    tolerance: float
    changed_by: str
    changed: ShareEstimate
    bits: ShareEstimate
    beyond_tolerance: ShareEstimate
    label: ShareEstimate | None
    not_comparable: int
    """Rows with other outputs, datatypes or shapes; they count as changed."""
    failed_old: int
    """Rows that the old side did not answer; they are not among `rows`."""
    failed_new: int
    """Rows that only the new side did not answer; they are not among `rows`."""
    cosine: Spread | None
    max_abs: Spread | None
    neighbours: NeighbourOverlap | None
    seconds_old: Spread | None
    seconds_new: Spread | None
    worst: tuple[WorstRow, ...]


class ChangeBudget(Struct, frozen=True):
    """How much may change. None: that is not asked."""

    max_changed: float | None = None
    """The share of rows that may count as changed; none, where only a least cosine is given."""
    min_cosine: float | None = None
    """Rows below it count as changed."""

    def reasons(self, report: ComparisonReport) -> list[str]:
        """Why a report is outside of the budget; empty where it is inside."""
        found = ["no row was compared"] if report.rows == 0 else []
        most = self.most_changed
        if most is not None and report.changed.share > most:
            found.append(f"{report.changed.share:.4%} of rows changed, more than {most:.4%}")
        if self.min_cosine is not None and report.rows and report.cosine is None:
            found.append("the answers have no float vectors, so there is no cosine to compare")
        if report.failed_new:
            found.append(f"{report.failed_new:,} rows got no answer from the new side alone")
        return found

    @property
    def most_changed(self) -> float | None:
        return 0.0 if self.max_changed is None and self.min_cosine is not None else self.max_changed
