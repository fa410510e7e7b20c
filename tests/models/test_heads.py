"""Heads that turn vectors into labels, and the choice among candidates that they feed."""

from __future__ import annotations

import msgspec
import numpy as np

from foreseen.models.measure import heads
from foreseen.models.measure.gate import Figures, reasons
from foreseen.models.report.report import decide
from foreseen.models.report.study import Candidate
from foreseen.modelspec.manifest import find
from tests.models_fixture import PACKAGED

DIGITS = find("digits", PACKAGED)
MINILM = find("minilm", PACKAGED)


def test_k_means_finds_the_clusters_that_are_there_and_always_the_same() -> None:
    chance = np.random.default_rng(5)
    middles = chance.standard_normal((6, 20)) * 10
    vectors = np.concatenate([middle + chance.standard_normal((40, 20)) * 0.1 for middle in middles])
    found = heads.centres(vectors, 12, seed=1)
    assert np.array_equal(found, heads.centres(vectors, 12, seed=1))
    labels = heads.nearest(found)(vectors).reshape(6, 40)
    groups = [set(row.tolist()) for row in labels]
    assert not any(a & b for i, a in enumerate(groups) for b in groups[:i])


def test_a_model_with_labels_is_its_own_head_unless_all_rows_get_one_label() -> None:
    chance = np.random.default_rng(5)
    varied = chance.random((200, 10))
    assert heads.head_of(DIGITS, varied) is heads.largest
    same = varied.copy()
    same[:, 3] = 2
    finer = heads.head_of(DIGITS, same)
    assert finer is not heads.largest
    assert len(np.unique(finer(same))) > 1


def candidate(precision: str, speedup: float, passed: bool = True) -> Candidate:
    return msgspec.convert(
        {"precision": precision, "passed": passed, "why": "" if passed else "a gate", "speedup": speedup}, Candidate
    )


def test_the_fastest_that_passes_wins_and_within_ten_percent_the_manifest_s_order() -> None:
    """Timing noise must not split a fleet's keys."""
    best, shown = decide(
        MINILM, [candidate("fp32", 1.0), candidate("int8-rowwise", 1.9), candidate("int8-dynamic", 2.5, passed=False)]
    )
    assert best == "int8-rowwise"
    assert [one.why for one in shown] == [
        "passes, but is only 1.00× as fast as fp32; int8-rowwise is 1.90×",
        "the fastest that passes",
        "a gate",
    ]
    best, shown = decide(MINILM, [candidate("int8-rowwise", 1.9), candidate("matmul-nbits", 2.0)])
    assert best == "int8-rowwise"
    assert shown[0].why == "within 10 % of the fastest, first in the manifest"
    assert decide(MINILM, [candidate("fp32", 1.0, passed=False)])[0] is None


def test_every_gate_that_is_missed_is_named() -> None:
    bad = Figures(cosine=0.9, least_cosine=0.5, flips=0.1, max_difference=1e-3, changed_lengths=(7,), agreement=0.9)
    assert reasons(MINILM, bad) == [
        "cosine 0.9000 is below 0.99",
        "agreement 0.9000 is below 0.98",
        "batch-mates flip 10.00% of the labels, allowed 0.00%",
        "batch-mates change an answer by 0.001, allowed 0",
        "batch-mates or padding change bits at 1 of the lengths 4 to 62",
    ]
    good = Figures(cosine=0.99, least_cosine=0.5, flips=0.0, max_difference=0.0, agreement=0.98)
    assert reasons(MINILM, good) == []
