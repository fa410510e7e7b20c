"""Old and new answers, row by row → a report, in memory that does not grow with the rows."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Collection

from foreseen.compare.intervals import interval
from foreseen.compare.report import ComparisonReport, ShareEstimate, WorstRow
from foreseen.compare.row_difference import RowDifference, difference, embedding_of
from foreseen.compare.samples import EmbeddingSample, ValueSample
from foreseen.types import Prediction

CONFIDENCE = 0.99
TOLERANCE = 1e-3
WORST_ROWS = 10
KEY_DIGITS = 16


class Comparison:
    """Add pairs of answers, then ask for the report; more may be added after it. Not safe between threads."""

    def __init__(
        self,
        labelled: Collection[str] = (),
        tolerance: float = TOLERANCE,
        seed: int = 0,
        min_cosine: float | None = None,
    ) -> None:
        """`labelled`: the outputs whose last axis is classes. `seed`: of the samples. A row counts as changed where its
        top label differs or its cosine is below `min_cosine`; where it has neither, where a number is beyond the
        tolerance."""
        source = random.Random(seed)  # noqa: S311 - which rows are sampled is no secret
        self._labelled, self._tolerance, self._min_cosine = tuple(labelled), tolerance, min_cosine
        self._changed = self._rows = self._bits = self._beyond = self._not_comparable = 0
        self._labels = self._label_rows = 0
        self.failed_old = self.failed_new = 0
        self.cosines, self.differences = ValueSample(source), ValueSample(source)
        self.seconds_old, self.seconds_new = ValueSample(source), ValueSample(source)
        self._embeddings = EmbeddingSample(source)
        self._worst: list[tuple[float, int, WorstRow]] = []
        self._numbers = itertools.count()

    @property
    def rows(self) -> int:
        return self._rows

    def add(
        self,
        key: bytes,
        old: Prediction,
        new: Prediction,
        seconds_old: float | None = None,
        seconds_new: float | None = None,
    ) -> RowDifference:
        """Compare a row's answers. `seconds_…` are how long an answer took; None where that is not known."""
        found = difference(old, new, self._tolerance, self._labelled)
        self._rows += 1
        self._bits += found.bits
        self._beyond += found.beyond
        self._changed += self.changed(found)
        self._not_comparable += not found.comparable
        if found.label is not None:
            self._label_rows += 1
            self._labels += found.label
        if found.cosine is not None:
            self.cosines.add(found.cosine)
        if found.max_abs is not None:
            self.differences.add(found.max_abs)
        if seconds_old is not None:
            self.seconds_old.add(seconds_old)
        if seconds_new is not None:
            self.seconds_new.add(seconds_new)
        if found.comparable:
            self._sample(old, new)
        if found.bits:
            self._note(key, found)
        return found

    def changed(self, found: RowDifference) -> bool:
        """Whether a row counts as changed."""
        if not found.comparable:
            return True
        by_cosine = self._min_cosine is not None and found.cosine is not None
        if found.label is None and not by_cosine:
            return found.beyond
        return bool(found.label) or (by_cosine and found.cosine < self._min_cosine)  # type: ignore[operator]

    def report(self, *, neighbours: bool = True) -> ComparisonReport:
        """What was found up to now. `neighbours`: compare the neighbours of embeddings too, which takes a second."""
        label = self._share(self._labels, self._label_rows) if self._labelled else None
        return ComparisonReport(
            rows=self._rows,
            confidence=CONFIDENCE,
            tolerance=self._tolerance,
            changed_by=self._changed_by(),
            changed=self._share(self._changed, self._rows),
            bits=self._share(self._bits, self._rows),
            beyond_tolerance=self._share(self._beyond, self._rows),
            label=label,
            not_comparable=self._not_comparable,
            failed_old=self.failed_old,
            failed_new=self.failed_new,
            cosine=self.cosines.spread(),
            max_abs=self.differences.spread(),
            neighbours=self._embeddings.overlap() if neighbours else None,
            seconds_old=self.seconds_old.spread(),
            seconds_new=self.seconds_new.spread(),
            worst=tuple(row for _, _, row in sorted(self._worst, reverse=True)),
        )

    def _changed_by(self) -> str:
        by = ["top label differs"] if self._labelled else []
        by += [] if self._min_cosine is None else [f"cosine below {self._min_cosine:g}"]
        return " or ".join(by) or f"a number beyond {self._tolerance:g}"

    def _sample(self, old: Prediction, new: Prediction) -> None:
        before, after = (embedding_of(one, self._labelled) for one in (old, new))
        if before is not None and after is not None:
            self._embeddings.add(before, after)

    def _note(self, key: bytes, found: RowDifference) -> None:
        """Keep the row while it is among the worst: not comparable, another label, then by cosine or difference."""
        gap = 1 - found.cosine if found.cosine is not None else min(found.max_abs or 0.0, 1e300) / 1e300
        badness = 8.0 * (not found.comparable) + 4.0 * bool(found.label) + gap
        row = WorstRow(key.hex()[:KEY_DIGITS], found.cosine, found.max_abs, found.label, found.comparable)
        put = heapq.heappush if len(self._worst) < WORST_ROWS else heapq.heappushpop
        put(self._worst, (badness, next(self._numbers), row))

    def _share(self, count: int, rows: int) -> ShareEstimate:
        low, high = interval(count, rows, CONFIDENCE)
        return ShareEstimate(count, rows, count / rows if rows else 0.0, low, high)
