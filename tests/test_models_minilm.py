"""all-MiniLM-L6-v2 as it is built: the published similarities, and rows that no batch-mate changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foreseen.artifact import model_folder, read_record
from foreseen.manifest import find
from foreseen.nouns import Array
from models.build import Bench, prepare
from models.graphs.graph import to_bytes
from models.progress import Silent
from models.publish import GRAPH_NAME
from models.run import Session
from models.samples import tokenized
from tests.models_fixture import PACKAGED, built_data

MANIFEST = find("minilm", PACKAGED)
HAPPY = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
WEATHER = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The fp32 graph and its files, fetched once."""
    return prepare(MANIFEST, built_data(), tmp_path_factory.mktemp("minilm"), Silent())


@pytest.fixture(scope="session")
def sessions(bench: Bench) -> dict[str, Session]:
    data = built_data()
    artifact = read_record(data, "minilm").artifact
    chosen = model_folder(data, "minilm") / artifact.digest / GRAPH_NAME
    assert artifact.precision == "int8-rowwise"
    return {"fp32": Session(to_bytes(bench.fp32), MANIFEST.model), "int8-rowwise": Session(chosen, MANIFEST.model)}


def embedded(session: Session, files: Path, texts: list[str]) -> Array:
    return np.stack([outputs[0] for outputs in session.run(tokenized(MANIFEST, files, texts))])


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("int8-rowwise", 0.03)])
def test_the_published_similarities_come_out(
    bench: Bench, sessions: dict[str, Session], precision: str, tolerance: float
) -> None:
    """The model card's widget and the documentation's first example, https://sbert.net/docs/quickstart.html."""
    happy = embedded(sessions[precision], bench.files, HAPPY)
    weather = embedded(sessions[precision], bench.files, WEATHER)
    assert happy[0] @ happy[1:].T == pytest.approx([0.6953, 0.9429, 0.2569], abs=tolerance)
    found = [weather[0] @ weather[1], weather[0] @ weather[2], weather[1] @ weather[2]]
    assert found == pytest.approx([0.6660, 0.1046, 0.1411], abs=tolerance)
    assert np.linalg.norm(happy, axis=1) == pytest.approx(1.0, abs=1e-6)
