"""Known answers in an .npz: texts or the graph's own tensors, held against a model row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foreseen.errors import SetupError
from foreseen.models.folder.describe import describe
from foreseen.models.graphs.graph import to_bytes
from foreseen.models.graphs.hf import folder as builder
from foreseen.models.measure import reference
from foreseen.models.measure.graph_run import GraphSession
from foreseen.modelspec.manifest import Manifest
from tests.hf_folders import golden, written


@pytest.fixture
def made(tmp_path: Path) -> tuple[GraphSession, Manifest, Path]:
    folder = written(tmp_path / "m", "roberta")
    manifest = describe(folder, "m", None).manifest
    return GraphSession(to_bytes(builder.make(manifest, folder)), manifest.model, "fp32"), manifest, folder


def saved(folder: Path, **arrays: Any) -> Path:
    path = folder / "known.npz"
    np.savez(path, **arrays)
    return path


def test_token_ids_with_their_mask(made: tuple[GraphSession, Manifest, Path]) -> None:
    arrays = golden("roberta")
    known = saved(made[2], **{name: arrays[name] for name in ("input_ids", "attention_mask", "logits")})
    assert reference.compare(*made, known) < 1e-5


def test_texts_go_through_the_tokenizer(made: tuple[GraphSession, Manifest, Path]) -> None:
    session, manifest, folder = made
    words = np.array(["she sold two tickets", "they"])
    ids = [[1, *(builder_ids(folder, text)), 2] for text in words.tolist()]
    rows = [session.run([row])[0][0] for row in (as_row(one) for one in ids)]
    assert reference.compare(session, manifest, folder, saved(folder, text=words, logits=np.stack(rows))) == 0.0


def builder_ids(folder: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer

    return list(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids)


def as_row(ids: list[int]) -> Any:
    from foreseen.types import Row

    return Row((np.array(ids, np.int64),))


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"logits": np.zeros((3, 3), np.float32)}, "logits differs by"),
        ({"logits": np.full((3, 3), np.nan, np.float32)}, "logits holds NaN or infinity"),
        ({"logits": np.zeros((2, 3), np.float32)}, "logits has 2 rows, the inputs have 3"),
        ({"logits": np.zeros((3, 4, 2), np.float32)}, r"logits has rows of shape \[4, 2\]"),
        ({"logits": None}, "holds no rows of an output"),
        ({"input_ids": None}, "inputs.input_ids: missing"),
        ({"input_ids": None, "attention_mask": None}, "holds no inputs"),
    ],
)
def test_what_differs_or_does_not_fit_is_named(
    made: tuple[GraphSession, Manifest, Path], changed: dict[str, Any], why: str
) -> None:
    arrays = {name: golden("roberta")[name] for name in ("input_ids", "attention_mask", "logits")} | changed
    known = saved(made[2], **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(SetupError, match=why):
        reference.compare(*made, known)


def test_a_pickle_in_the_file_is_never_opened(made: tuple[GraphSession, Manifest, Path]) -> None:
    for known in (saved(made[2], text=np.array([{}], object)), made[2] / "config.json", made[2] / "none.npz"):
        with pytest.raises(SetupError, match="cannot be read as an"):
            reference.compare(*made, known)
