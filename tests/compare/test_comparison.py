"""Old and new answers → a report, a table and a plot."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import msgspec
import numpy as np
import pytest

from foreseen.compare.comparison import WORST_ROWS, Comparison
from foreseen.compare.plot import draw
from foreseen.compare.report import ChangeBudget, ComparisonReport
from foreseen.compare.row_difference import difference
from foreseen.compare.table import lines
from foreseen.types import Array, Output, Prediction

WRONG = 0.03


def prediction(*arrays: tuple[str, str, Array]) -> Prediction:
    heads = tuple(Output(name, datatype, array.shape) for name, datatype, array in arrays)
    return Prediction(heads, tuple(array.tobytes() for _, _, array in arrays), "d", 0.0, 1.0, 0.0)


def scores(*values: float) -> Prediction:
    return prediction(("p", "FP32", np.array(values, "<f4")))


def vector(values: Array) -> Prediction:
    return prediction(("embedding", "FP32", values.astype("<f4")))


def test_equal_answers_differ_in_nothing() -> None:
    """Also NaN and infinities: the same bits are the same answer."""
    odd = scores(np.nan, np.inf, -1.0)
    found = difference(odd, odd, 0.0, ("p",))
    assert (found.bits, found.label, found.beyond, found.cosine, found.max_abs) == (False, False, False, 1.0, 0.0)


def test_what_is_measured_of_a_row() -> None:
    """Bits, label, tolerance, cosine and the largest difference, each by itself."""
    found = difference(scores(0.0, 3.0), scores(0.0, 3.5), 1e-3, ("p",))
    assert found.bits
    assert found.beyond
    assert found.label is False
    assert found.cosine == pytest.approx(1.0)
    assert found.max_abs == 0.5
    assert difference(scores(0.2, 0.8), scores(0.8, 0.2), 1e-3, ("p",)).label is True
    near = difference(scores(1.0, 2.0), scores(1.0, 2.0001), 1e-3)
    assert near.bits
    assert not near.beyond
    assert near.label is None
    assert difference(scores(0.4), scores(0.6), 1.0, ("p",)).label is True  # a single score crosses one half


@pytest.mark.parametrize("other", [scores(1.0), prediction(("q", "FP32", np.ones(2, "<f4")))])
def test_answers_of_another_form_count_as_changed(other: Prediction) -> None:
    """Another shape or name: there is nothing to measure, and it is no silent match."""
    found = difference(scores(1.0, 2.0), other, 1e9, ("p",))
    assert found.bits
    assert found.beyond
    assert found.label
    assert not found.comparable


def test_a_number_that_became_none_is_infinitely_far() -> None:
    """NaN is beyond every tolerance and has the worst cosine."""
    found = difference(scores(1.0, 2.0), scores(np.nan, 2.0), 1e9)
    assert found.beyond
    assert found.max_abs == np.inf
    assert found.cosine == -1.0


def test_texts_are_compared_as_they_are() -> None:
    """BYTES have no tolerance."""
    one, other = (Prediction((Output("t", "BYTES", (1,)),), (raw,), "d", 0.0, 1.0, 0.0) for raw in (b"\1aa", b"\1ab"))
    assert difference(one, other, 1e9).beyond
    assert not difference(one, one, 1e9).beyond


@pytest.mark.parametrize("seed", range(20))
def test_three_per_cent_of_flips_are_refused_at_one(seed: int) -> None:
    """A model that flips 3 % of rows is outside of a budget of 1 %, and 3 % lies in the stated interval, 20 times."""
    source, comparison = random.Random(seed), Comparison(("p",), seed=seed)
    for row in range(2_000):
        new = scores(0.9, 0.1) if source.random() < WRONG else scores(0.1, 0.9)
        comparison.add(row.to_bytes(8, "little"), scores(0.1, 0.9), new)
    report = comparison.report()
    assert report.changed_by == "top label differs"
    assert report.changed.low <= WRONG <= report.changed.high
    assert ChangeBudget(0.01).reasons(report)
    assert not ChangeBudget(0.06).reasons(report)


def noisy(noise: float, rows: int = 300, min_cosine: float | None = None) -> Comparison:
    dice, comparison = np.random.default_rng(1), Comparison(min_cosine=min_cosine)
    for row in range(rows):
        old = dice.normal(size=32)
        comparison.add(row.to_bytes(8, "big"), vector(old), vector(old + noise * dice.normal(size=32)), 0.002, 0.001)
    return comparison


def test_neighbours_of_equal_embeddings_are_the_same() -> None:
    """All of them; of small noise nearly all; of unrelated answers few."""
    overlaps = []
    for noise in (0.0, 0.02, 100.0):
        neighbours = noisy(noise).report().neighbours
        assert neighbours is not None
        assert neighbours.rows == 300
        overlaps.append(neighbours.mean)
    assert overlaps[0] == 1.0
    assert 0.8 < overlaps[1] < 1.0
    assert overlaps[2] < 0.2


def test_worst_rows_come_first() -> None:
    """By cosine, as many as are kept, and none that is equal."""
    report = noisy(0.3).report(neighbours=False)
    cosines = [row.cosine for row in report.worst]
    assert len(cosines) == WORST_ROWS
    assert cosines == sorted(cosines, key=lambda one: one or 0.0)
    assert report.cosine is not None
    assert cosines[0] == report.cosine.least
    assert report.neighbours is None
    assert noisy(0.0).report().worst == ()


def test_a_budget_says_all_that_it_refuses() -> None:
    """Share, cosine, missing answers, and a comparison of nothing."""
    comparison = noisy(0.3)
    comparison.failed_new = 2
    reasons = ChangeBudget(0.0, 0.999).reasons(comparison.report())
    assert [reason.split()[-1] for reason in reasons] == ["0.0000%", "alone"]
    assert ChangeBudget().reasons(Comparison().report()) == ["no row was compared"]
    assert ChangeBudget(min_cosine=0.9).reasons(_integers()) == [
        "the answers have no float vectors, so there is no cosine to compare"
    ]


def test_a_least_cosine_says_which_rows_have_changed() -> None:
    """Rows below it count as changed, and no row may where no share is given."""
    report = noisy(0.02, min_cosine=0.9).report()
    assert (report.changed.count, report.beyond_tolerance.count) == (0, 300)
    assert report.changed_by == "cosine below 0.9"
    assert not ChangeBudget(min_cosine=0.9).reasons(report)
    strict = noisy(0.02, min_cosine=0.9998).report()
    assert 0 < strict.changed.count < 300
    assert ChangeBudget(min_cosine=0.9998).reasons(strict)
    assert not ChangeBudget(1.0, 0.9998).reasons(strict)


def _integers() -> ComparisonReport:
    comparison = Comparison()
    one = prediction(("n", "INT64", np.array([7], "<i8")))
    comparison.add(b"k", one, one)
    return comparison.report()


def test_the_report_as_json_table_and_plot(tmp_path: Path) -> None:
    """JSON reads back, the table names both sides, the plot is well-formed and has a panel for each spread."""
    comparison = noisy(0.1)
    report = comparison.report()
    assert msgspec.json.decode(msgspec.json.encode(report), type=ComparisonReport) == report
    text = "\n".join(lines(report, "fp32", "int8"))
    assert "fp32 → int8: 300 rows compared" in text
    assert "neighbours:" in text
    assert "ms a row, new" in text
    draw(comparison, tmp_path / "plot.svg", "a <b> & c", "fp32", "int8")
    texts = [one.text for one in ElementTree.parse(tmp_path / "plot.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert {"a <b> & c", "cosine distance", "largest difference", "latency", "fp32"} <= set(texts)
    assert "0 rows compared" in lines(Comparison().report())[0]


def test_memory_does_not_grow_with_the_rows() -> None:
    """Quantiles of a long stream come from a sample, its extremes from all of it."""
    comparison = Comparison()
    one = scores(1.0)
    for row in range(70_000):
        comparison.seconds_new.add(row / 70_000)
    comparison.add(b"k", one, one)
    spread = comparison.report().seconds_new
    assert spread is not None
    assert (spread.rows, spread.least, spread.most) == (70_000, 0.0, 69_999 / 70_000)
    assert spread.p50 == pytest.approx(0.5, abs=0.02)
    assert len(comparison.seconds_new.values) == 65_536
