"""all-MiniLM-L6-v2 as it is built: the published similarities, and rows that no batch-mate changes."""

from __future__ import annotations

import csv
import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest

from foreseen.errors import SetupError
from foreseen.models.build.build import Bench, prepare
from foreseen.models.build.publish import GRAPH_NAME
from foreseen.models.graphs import bert, pool
from foreseen.models.graphs.graph import Graph, to_bytes
from foreseen.models.measure import check, exact, heads, labelled
from foreseen.models.measure.gate import Figures, invariance_reasons
from foreseen.models.measure.graph_run import GraphSession
from foreseen.models.measure.samples import samples, tokenized
from foreseen.models.progress import SilentProgress
from foreseen.models.quantize import quantize
from foreseen.models.report import study
from foreseen.modelspec.artifact import model_folder, read_record
from foreseen.modelspec.manifest import Precision, find
from foreseen.modelspec.shapes import Shapes
from foreseen.types import Array, Row
from tests.models_fixture import PACKAGED, built_data

pytestmark = pytest.mark.processes

MANIFEST = find("minilm", PACKAGED)
HAPPY = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
WEATHER = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The fp32 graph and its files, fetched once."""
    return prepare(MANIFEST, built_data(), tmp_path_factory.mktemp("minilm"), SilentProgress())


@pytest.fixture(scope="session")
def sessions(bench: Bench) -> dict[str, GraphSession]:
    data = built_data()
    artifact = read_record(data, "minilm").artifact
    chosen = model_folder(data, "minilm") / artifact.digest / GRAPH_NAME
    assert artifact.precision == "int8-rowwise"
    return {
        "fp32": GraphSession(to_bytes(bench.fp32), MANIFEST.model, "fp32"),
        "int8-rowwise": GraphSession(chosen, MANIFEST.model, "int8-rowwise"),
    }


def embedded(session: GraphSession, files: Path, texts: list[str]) -> Array:
    return np.stack([outputs[0] for outputs in session.run(tokenized(MANIFEST, files, texts))])


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("int8-rowwise", 0.03)])
def test_the_published_similarities_come_out(
    bench: Bench, sessions: dict[str, GraphSession], precision: str, tolerance: float
) -> None:
    """The model card's widget and the documentation's first example, https://sbert.net/docs/quickstart.html."""
    happy = embedded(sessions[precision], bench.files, HAPPY)
    weather = embedded(sessions[precision], bench.files, WEATHER)
    assert happy[0] @ happy[1:].T == pytest.approx([0.6953, 0.9429, 0.2569], abs=tolerance)
    found = [weather[0] @ weather[1], weather[0] @ weather[2], weather[1] @ weather[2]]
    assert found == pytest.approx([0.6660, 0.1046, 0.1411], abs=tolerance)
    assert np.linalg.norm(happy, axis=1) == pytest.approx(1.0, abs=1e-6)


def test_the_same_weights_give_the_artifact_in_force_bit_for_bit(bench: Bench) -> None:
    """Its digest is in every key of a fleet."""
    made = to_bytes(quantize(bench.fp32, "int8-rowwise"))
    assert hashlib.sha256(made).hexdigest() == read_record(built_data(), "minilm").artifact.graph.sha256


def test_dynamic_int8_is_refused_for_what_batch_mates_do_to_it(bench: Bench) -> None:
    """The reason why the row-wise rewrite exists; the figures for 1,024 rows are in the report."""
    dynamic = GraphSession(to_bytes(quantize(bench.fp32, "int8-dynamic")), MANIFEST.model, "int8-dynamic")
    rows = samples(MANIFEST, bench.files, 60)
    alone = dynamic.alone(rows)
    changed = check.invariance(dynamic, rows, alone, heads.head_of(MANIFEST, check.vectors(alone, MANIFEST.model)))
    failed = invariance_reasons(MANIFEST, Figures(flips=changed.flips, max_difference=changed.max_difference))
    assert len(failed) == 2
    assert "batch-mates flip" in failed[0]


def random_rows() -> list[Row]:
    """Ids from the whole vocabulary, to draw rows of any length from."""
    return [Row((ids,)) for ids in np.random.default_rng(4).integers(999, 30522, (20, 300), np.int64)]


@pytest.mark.parametrize("precision", ["fp32", "int8-rowwise"])
def test_no_batch_and_no_padding_changes_a_bit_at_any_length(sessions: dict[str, GraphSession], precision: str) -> None:
    """Bit-exactness is to be had, and the pool decides it."""
    assert exact.changed(sessions[precision], MANIFEST, random_rows(), rounds=6) == []


def one_row_product(graph: Graph, tokens: str, mask: str) -> str:
    summed = graph.add("MatMul", graph.add("Unsqueeze", mask, graph.numbers(1)), tokens)
    return graph.add("Squeeze", summed, graph.numbers(1))


@pytest.mark.parametrize(("pooled", "wrong"), [(pool.reduce_sum, range(8, 63)), (one_row_product, range(7, 63, 4))])
def test_the_same_check_goes_red_on_both_other_pools(bench: Bench, pooled: pool.Sum, wrong: range) -> None:
    """The check can fail: `ReduceSum` at nearly every length, the one-row product at lengths ≡ 3 mod 4."""
    other = GraphSession(to_bytes(bert.make(MANIFEST, bench.files, pooled)), MANIFEST.model, "fp32")
    assert set(exact.changed(other, MANIFEST, random_rows())) >= set(wrong)


@pytest.mark.parametrize("precision", ["fp32", "int8-rowwise"])
def test_fixed_shapes_make_the_exporters_pool_exact(bench: Bench, precision: Precision) -> None:
    """The same `ReduceSum` pool, whose rows change at nearly every length in ragged batches: in fixed shapes no company
    and no place in the batch changes a bit of any row."""
    model = quantize(bert.make(MANIFEST, bench.files, pool.reduce_sum), precision)
    session = GraphSession(to_bytes(model), MANIFEST.model, precision)
    shapes = Shapes("fixed", (8, 16, 32, 64), (2, 2, 2, 2))
    assert exact.changed(session.in_shapes(MANIFEST, shapes), MANIFEST, random_rows(), rounds=1) == []


def written(path: Path, lines: list[tuple[str, str]]) -> Path:
    with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *lines])
    return path


def test_labelled_texts_give_a_logistic_head_and_the_share_that_is_right(tmp_path: Path, bench: Bench) -> None:
    """The head is fitted on fp32 embeddings of one file; agreement and accuracy are measured on the other."""
    subjects = {"food": "soup", "travel": "train", "money": "bank"}
    train = [(f"I like the {word} {when}", label) for label, word in subjects.items() for when in ("now", "a lot", "")]
    test = [(f"tell me about a {word} today", label) for label, word in subjects.items()]
    files = labelled.Files(written(tmp_path / "train.csv.gz", train), written(tmp_path / "test.csv.gz", test))
    fp32 = GraphSession(to_bytes(bench.fp32), MANIFEST.model, "fp32")
    rows, truth, head, what = labelled.questions(MANIFEST, bench.files, fp32, files)
    reference = fp32.alone(rows)
    asked = study.Questions(rows, head, what, truth)
    figures, accuracy = study.compare(MANIFEST, asked, reference, fp32)
    assert (figures.agreement, figures.flips, figures.fp32_difference, accuracy) == (1.0, 0.0, 0.0, 1.0)
    assert what == "3 texts of test.csv.gz, logistic regression on 9 of train.csv.gz"


@pytest.mark.parametrize("content", [b"text,kind\na,b\n", b"\xff\xfe\x00", b""])
def test_a_file_without_text_and_label_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "texts.csv"
    path.write_bytes(content)
    with pytest.raises(SetupError, match=r"texts\.csv: is not a CSV file with the columns text and label"):
        labelled.read(path)
