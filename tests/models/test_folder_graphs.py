"""Graphs that are written from Hugging Face folders against torch's own answers, kept in tests/golden/folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from foreseen.errors import SetupError
from foreseen.inference.session import session_options
from foreseen.models.graphs.graph import Graph, to_bytes
from foreseen.models.graphs.hf import folder as builder
from foreseen.models.graphs.hf.bert import DIALECTS
from foreseen.models.graphs.hf.heads import POOLS
from foreseen.models.quantize import quantize
from foreseen.modelspec.manifest import Dim, Manifest, ModelInput, ModelOutput, ModelSignature
from foreseen.modelspec.manifest.source import Source
from foreseen.types import Array
from tests.hf_folders import KINDS, dense, golden, sentence, written

IDS: tuple[Dim, ...] = ("rows", "tokens")
WITHIN = 1e-5


def manifest(options: dict[str, Any], width: int, *, types: bool, output: str = "logits") -> Manifest:
    inputs = [ModelInput("input_ids", "INT64", IDS), ModelInput("attention_mask", "INT64", IDS, "mask", "input_ids")]
    if types:
        inputs.append(ModelInput("token_type_ids", "INT64", IDS))
    shape: tuple[Dim, ...] = (*IDS, width) if options.get("task") == "tokens" else ("rows", width)
    signature = ModelSignature(tuple(inputs), (ModelOutput(output, "FP32", shape),))
    return Manifest("m", signature, source=Source("folder", options=options))


def answers(folder: Path, one: Manifest, feeds: dict[str, Array]) -> Array:
    session = onnxruntime.InferenceSession(to_bytes(builder.make(one, folder)))
    names = [spec.name for spec in one.model.inputs]
    (answered,) = session.run(None, {name: feeds[name] for name in names})
    return np.asarray(answered)


def test_every_architecture_has_a_golden_model() -> None:
    """camembert is RoBERTa under another name; the rest each have one."""
    names = {"deberta-v2": "deberta-v3"}
    assert {names.get(kind, kind) for kind in builder.FAMILIES} - {"camembert"} == set(KINDS)
    assert DIALECTS["camembert"] == DIALECTS["roberta"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_classifier_answers_as_torch_does(tmp_path: Path, kind: str) -> None:
    """Position ids, token types, masks, the encoder and the classifier's head, of padded rows too."""
    arrays = golden(kind)
    one = manifest({"task": "classification"}, 3, types="token_type_ids" in arrays)
    made = answers(written(tmp_path / kind, kind), one, arrays)
    assert np.abs(made - arrays["logits"]).max() < WITHIN
    assert arrays["logits"].std(axis=0).min() > 0.01  # a graph that ignores its input would not pass


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_answers_as_torch_does(tmp_path: Path, kind: str) -> None:
    """The first token's vector, where the file holds a head that the graph does not have."""
    arrays = golden(kind)
    one = manifest({"pooling": ["cls"]}, 16, types="token_type_ids" in arrays, output="embedding")
    made = answers(written(tmp_path / kind, kind, "Model"), one, arrays)
    assert np.abs(made - arrays["tokens"][:, 0]).max() < WITHIN


def test_without_token_types_all_are_0(tmp_path: Path) -> None:
    arrays = golden("bert")
    folder = written(tmp_path / "bert", "bert")
    bare = answers(folder, manifest({"task": "classification"}, 3, types=False), arrays)
    zeros = arrays | {"token_type_ids": np.zeros_like(arrays["input_ids"])}
    given = answers(folder, manifest({"task": "classification"}, 3, types=True), zeros)
    assert np.abs(bare - given).max() < WITHIN
    assert np.abs(bare - arrays["logits"]).max() > 0.01


def pooled(mode: str, tokens: Array, mask: Array) -> Array:
    """sentence-transformers' pooling in numpy, row by row."""
    made = []
    for row, ones in zip(tokens.astype(np.float64), mask, strict=True):
        real = row[: ones.sum()]
        weights = np.arange(1, len(real) + 1)[:, None]
        made.append(
            {
                "cls": lambda real=real: real[0],
                "max": lambda real=real: real.max(axis=0),
                "mean": lambda real=real: real.mean(axis=0),
                "mean_sqrt_len_tokens": lambda real=real: real.sum(axis=0) / np.sqrt(len(real)),
                "weightedmean": lambda real=real, weights=weights: (real * weights).sum(axis=0) / weights.sum(),
                "lasttoken": lambda real=real: real[-1],
            }[mode]()
        )
    return np.stack(made)


@pytest.mark.parametrize("mode", POOLS)
def test_pooling(tmp_path: Path, mode: str) -> None:
    arrays = golden("roberta")
    one = manifest({"pooling": [mode]}, 16, types=False, output="embedding")
    made = answers(written(tmp_path / "m", "roberta", "Model"), one, arrays)
    assert np.abs(made - pooled(mode, arrays["tokens"], arrays["attention_mask"])).max() < WITHIN


def test_dense_layers_and_length_1(tmp_path: Path) -> None:
    """Two poolings joined, a dense layer with its activation, then vectors of length 1."""
    arrays = golden("roberta")
    folder = sentence(tmp_path / "m", "roberta", {}, "2_Dense", "3_Normalize")
    weight, bias = dense(folder / "2_Dense", 32, 5)
    options = {"pooling": ["max", "mean"], "dense": ["2_Dense"], "normalize": True}
    made = answers(folder, manifest(options, 5, types=False, output="embedding"), arrays)
    both = [pooled(mode, arrays["tokens"], arrays["attention_mask"]) for mode in ("max", "mean")]
    wanted = np.tanh(np.concatenate(both, axis=1) @ weight.T + bias)
    assert np.abs(made - wanted / np.linalg.norm(wanted, axis=1, keepdims=True)).max() < WITHIN


@pytest.mark.parametrize("kind", ["bert", "modernbert", "qwen3", "deberta-v3"])
def test_a_row_is_the_same_bits_in_every_batch(tmp_path: Path, kind: str) -> None:
    """A classifier's layers on one vector a row: alone, that is another kernel than in a batch."""
    arrays = golden(kind)
    one = manifest({"task": "classification"}, 3, types="token_type_ids" in arrays)
    session = onnxruntime.InferenceSession(to_bytes(builder.make(one, written(tmp_path / kind, kind))))
    feeds = {spec.name: arrays[spec.name] for spec in one.model.inputs}
    (together,) = session.run(None, feeds)
    for row in range(len(together)):
        length = int(arrays["attention_mask"][row].sum())
        (alone,) = session.run(None, {name: array[row : row + 1, :length] for name, array in feeds.items()})
        assert alone.tobytes() == together[row : row + 1].tobytes()


@pytest.mark.parametrize("precision", ["fp16", "int8-rowwise"])
@pytest.mark.parametrize("kind", KINDS)
def test_lighter_precisions_can_be_made_of_every_architecture(tmp_path: Path, kind: str, precision: Any) -> None:
    arrays = golden(kind)
    one = manifest({"task": "classification"}, 3, types="token_type_ids" in arrays)
    made = quantize(builder.make(one, written(tmp_path / kind, kind)), precision)
    session = onnxruntime.InferenceSession(to_bytes(made), session_options(precision, 1))
    (answered,) = session.run(None, {spec.name: arrays[spec.name] for spec in one.model.inputs})
    assert np.abs(answered - arrays["logits"]).max() < 0.1


@pytest.mark.parametrize(
    ("kind", "changed", "why"),
    [
        ("bert", {"model_type": "t5"}, r"model_type: 't5' is not one of bert, "),
        ("bert", {"hidden_act": "mish"}, "the activation 'mish' is not one of"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type: is 'relative_key'"),
        ("bert", {"hidden_size": None}, "hidden_size: missing"),
        ("bert", {"num_attention_heads": "two"}, "num_attention_heads: is 'two'"),
        ("deberta-v3", {"conv_kernel_size": 3}, "conv_kernel_size: is 3"),
        ("qwen3", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "only plain rotary positions"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window: is True"),
        ("modernbert", {"layer_types": ["full_attention"]}, "layer_types: is "),
        ("bert", {"num_hidden_layers": 3}, r"the weights hold no tensor .*layer\.2"),
    ],
)
def test_what_cannot_be_built_is_named(tmp_path: Path, kind: str, changed: dict[str, Any], why: str) -> None:
    folder = written(tmp_path / "m", kind, **changed)
    with pytest.raises(SetupError, match=why):
        builder.make(manifest({"task": "classification"}, 3, types=False), folder)


def test_a_constant_without_axes_stays_one() -> None:
    graph = Graph()
    assert graph.scalar(3) == graph.scalar(3) == "s3"
