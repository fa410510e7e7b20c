"""`[scoring]` of a manifest: which tensors are texts and scores, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foreseen.errors import SetupError
from foreseen.modelspec.artifact import preparation_digest
from foreseen.modelspec.manifest import Manifest, load
from foreseen.protocol.texts.pair_bodies import read_rerank
from foreseen.proxy.predict.dialects.labels import labels_texts, scores_texts
from foreseen.proxy.predict.dialects.pairs import decode_pairs, render_pairs, scores_pairs
from foreseen.proxy.predict.dialects.texts import (
    embeds,
    embeds_sparsely,
    embeds_tokens,
    render_whole_entries,
)
from foreseen.types import Output, OutputOptions, Prediction, WantedOutput

KINDS = (scores_pairs, labels_texts, embeds, embeds_tokens, embeds_sparsely)


def manifest(folder: Path, inputs: dict[str, str], outputs: dict[str, str], more: str = "") -> Manifest:
    """A V2 server's model with these tensors: name → shape of BYTES inputs, name → datatype and shape of outputs."""
    text = 'name = "m"\nupstream = "http://127.0.0.1:1"\n'
    for name, shape in inputs.items():
        text += f'[[model.inputs]]\nname = "{name}"\ndatatype = "BYTES"\nshape = {shape}\n'
    for name, said in outputs.items():
        datatype, shape = said.split(" ", 1)
        text += f'[[model.outputs]]\nname = "{name}"\ndatatype = "{datatype}"\nshape = {shape}\n'
    folder.mkdir(exist_ok=True)
    (folder / "model.toml").write_text(text + more)
    return load(folder / "model.toml")


ROWS = '["rows"]'


@pytest.mark.parametrize(
    ("inputs", "outputs", "more", "kinds"),
    [
        ({"query": ROWS, "document": ROWS}, {"logits": 'FP32 ["rows", 1]'}, "", {scores_pairs}),
        ({"query": '["rows", 1]', "document": ROWS}, {"score": 'FP32 ["rows"]'}, "", {scores_pairs}),
        ({"query": ROWS, "document": ROWS}, {"logits": 'FP32 ["rows", 3]'}, "", set()),
        ({"a": ROWS, "b": ROWS}, {"logits": 'FP32 ["rows", 1]'}, "", set()),
        ({"a": ROWS, "b": ROWS}, {"s": 'FP32 ["rows", 1]'}, '[scoring]\nquery = "a"\ndocument = "b"', {scores_pairs}),
        ({"text": ROWS}, {"embedding": 'FP32 ["rows", 8]'}, "", {embeds}),
        ({"text": ROWS}, {"logits": 'FP32 ["rows", 3]'}, '[scoring]\nquery = "text"', {labels_texts}),
        ({"text": ROWS}, {"tokens": 'FP32 ["rows", "n", 8]'}, "", {embeds_tokens}),
        ({"text": ROWS}, {"tokens": f"BYTES {ROWS}"}, "", {embeds_tokens}),
        ({"text": ROWS}, {"sparse": 'FP32 ["rows", 99]'}, "", {embeds_sparsely}),
        ({"text": ROWS, "more": ROWS}, {"logits": 'FP32 ["rows", 3]'}, '[scoring]\nquery = "text"', set()),
    ],
)
def test_what_a_model_does_is_read_off_its_tensors(
    inputs: dict[str, str], outputs: dict[str, str], more: str, kinds: set[object], tmp_path: Path
) -> None:
    """By names and shapes, or by what the manifest says; a model is of one kind at most."""
    if kinds == set() and more:
        with pytest.raises(SetupError, match="scoring: needs"):
            manifest(tmp_path, inputs, outputs, more)
        return
    one = manifest(tmp_path, inputs, outputs, more)
    assert {kind for kind in KINDS if kind(one)} == kinds
    assert scores_texts(one) or not kinds & {scores_pairs, labels_texts}


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ('query = "x"', "scoring.query"),
        ('document = "x"', "scoring.document"),
        ('output = "x"', "scoring.output"),
        ('activation = "tanh"', "activation"),
        ('unknown = "x"', "unknown"),
    ],
)
def test_a_section_that_makes_no_sense_is_refused(line: str, wrong: str, tmp_path: Path) -> None:
    """The message names the field."""
    with pytest.raises(SetupError, match=wrong):
        manifest(tmp_path, {"query": ROWS, "document": ROWS}, {"logits": 'FP32 ["rows", 1]'}, f"[scoring]\n{line}")


def prediction(array: np.ndarray) -> Prediction:
    return Prediction((Output("x", "FP32", array.shape),), (array.tobytes(),), "d", 0.0, 1.0, 0.0)


def test_the_section_is_no_part_of_the_digest_and_says_how_a_reply_is_rendered(tmp_path: Path) -> None:
    """`activation = "none"`: the output is the score already, whatever a request asks for."""
    tensors = {"query": ROWS, "document": ROWS}, {"x": 'FP32 ["rows", 1]'}
    plain = manifest(tmp_path / "a", *tensors)
    other = manifest(tmp_path / "b", *tensors, '[scoring]\nactivation = "none"')
    assert preparation_digest(plain, ()) == preparation_digest(other, ())
    found = []
    for one in (plain, other):
        options = decode_pairs(read_rerank(b'{"query": "q", "documents": ["a"]}'), one, "rerank").output_options
        body = render_pairs(one, [prediction(np.array([0.25], np.float32))], options).after
        found.append(b'"relevance_score":0.25,' in body or b'"relevance_score":0.25}' in body)
    assert found == [False, True]


def test_vectors_of_a_model_of_our_own(tmp_path: Path) -> None:
    """Those of every token in each text's own length; of a sparse one what is not 0."""
    tokens = manifest(tmp_path / "a", {"text": ROWS}, {"x": 'FP32 ["rows", "n", 2]'})
    rows = [prediction(np.arange(4, dtype=np.float32).reshape(2, 2)), prediction(np.ones((1, 2), np.float32))]
    options = OutputOptions("embed-all", None, (WantedOutput("x"),))
    assert render_whole_entries(tokens, rows, options).before == b"[[[0.0,1.0],[2.0,3.0]],[[1.0,1.0]]]"
    sparse = manifest(tmp_path / "b", {"text": ROWS}, {"sparse": 'FP32 ["rows", 4]'})
    row = Prediction(
        (Output("sparse", "FP32", (4,)),), (np.array([0, 0.5, 0, 2], "<f4").tobytes(),), "d", 0.0, 1.0, 0.0
    )
    options = OutputOptions("embed-sparse", None, (WantedOutput("sparse"),))
    wanted = b'[[{"index":1,"value":0.5},{"index":3,"value":2.0}]]'
    assert render_whole_entries(sparse, [row], options).before == wanted
