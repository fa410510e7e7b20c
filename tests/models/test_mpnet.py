"""The MPNet builder on a tiny model with random weights, against the same thing written plainly in numpy.

(The real one, 440 MB, is built on request: `foreseen models build mpnet`; that build asserts its bit-exactness.)
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file

from foreseen.errors import SetupError
from foreseen.models.graphs import mpnet
from foreseen.models.graphs.graph import to_bytes
from foreseen.models.measure.graph_run import GraphSession
from foreseen.modelspec.manifest import Manifest, ModelOutput, find
from foreseen.types import Array, Row
from tests.models_fixture import PACKAGED

pytestmark = pytest.mark.processes

HIDDEN, HEADS, LAYERS, WIDE, WORDS, PLACES = 16, 4, 2, 24, 50, 42
CONFIG = {
    "model_type": "mpnet",
    "hidden_act": "gelu",
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": PLACES,
    "relative_attention_num_buckets": 32,
}


def manifest() -> Manifest:
    found = find("mpnet", PACKAGED)
    output = (ModelOutput("embedding", "FP32", ("rows", HIDDEN)),)
    return msgspec.structs.replace(found, model=msgspec.structs.replace(found.model, outputs=output))


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, Array]:
    """Random weights under the names of the real file, written into `tmp_path` with a config.json."""
    chance = np.random.default_rng(6)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (WORDS, HIDDEN),
        "embeddings.position_embeddings.weight": (PLACES, HIDDEN),
        "encoder.relative_attention_bias.weight": (32, HEADS),
        "embeddings.LayerNorm.weight": (HIDDEN,),
        "embeddings.LayerNorm.bias": (HIDDEN,),
    }
    for layer in range(LAYERS):
        for name, (out, into) in {
            "attention.attn.q": (HIDDEN, HIDDEN),
            "attention.attn.k": (HIDDEN, HIDDEN),
            "attention.attn.v": (HIDDEN, HIDDEN),
            "attention.attn.o": (HIDDEN, HIDDEN),
            "intermediate.dense": (WIDE, HIDDEN),
            "output.dense": (HIDDEN, WIDE),
        }.items():
            shapes[f"encoder.layer.{layer}.{name}.weight"] = (out, into)
            shapes[f"encoder.layer.{layer}.{name}.bias"] = (out,)
        for name in ("attention.LayerNorm", "output.LayerNorm"):
            shapes[f"encoder.layer.{layer}.{name}.weight"] = shapes[f"encoder.layer.{layer}.{name}.bias"] = (HIDDEN,)
    made = {name: chance.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(made, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), "utf-8")
    return made


def bucket(distance: int) -> int:
    """modeling_mpnet.py, MPNetEncoder.relative_position_bucket, for one key − query distance."""
    behind = -distance
    base = 16 if behind < 0 else 0
    behind = abs(behind)
    if behind < 8:
        return base + behind
    return base + min(8 + int(math.log(behind / 8) / math.log(128 / 8) * 8), 15)


def normed(x: Array, weights: dict[str, Array], name: str) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return np.asarray(
        centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weights[f"{name}.weight"]
        + weights[f"{name}.bias"]
    )


def dense(x: Array, weights: dict[str, Array], name: str) -> Array:
    return np.asarray(x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])


def plainly(ids: Array, weights: dict[str, Array]) -> Array:
    """One unpadded row through MPNet, mean pool and normalisation, in FP64."""
    weights = {name: array.astype(np.float64) for name, array in weights.items()}
    size = len(ids)
    places = weights["embeddings.position_embeddings.weight"][np.arange(size) + 2]
    x = normed(weights["embeddings.word_embeddings.weight"][ids] + places, weights, "embeddings.LayerNorm")
    buckets = [[bucket(key - query) for key in range(size)] for query in range(size)]
    bias = weights["encoder.relative_attention_bias.weight"][buckets].transpose(2, 0, 1)
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}"
        q, k, v = (
            dense(x, weights, f"{prefix}.attention.attn.{part}").reshape(size, HEADS, -1).transpose(1, 0, 2)
            for part in "qkv"
        )
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(HIDDEN / HEADS) + bias
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (shares / shares.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(size, HIDDEN)
        mixed = dense(mixed, weights, f"{prefix}.attention.attn.o")
        x = normed(mixed + x, weights, f"{prefix}.attention.LayerNorm")
        wide = dense(x, weights, f"{prefix}.intermediate.dense")
        wide = wide * 0.5 * (1 + np.vectorize(math.erf)(wide / math.sqrt(2)))
        x = normed(dense(wide, weights, f"{prefix}.output.dense") + x, weights, f"{prefix}.output.LayerNorm")
    pooled = x.mean(axis=0)
    return np.asarray(pooled / np.linalg.norm(pooled))


def test_the_graph_is_mpnet(tmp_path: Path, weights: dict[str, Array]) -> None:
    """Rows of all lengths up to the longest, alone and in one padded batch."""
    session = GraphSession(to_bytes(mpnet.make(manifest(), tmp_path)), manifest().model, "fp32")
    chance = np.random.default_rng(7)
    rows = [Row((chance.integers(2, WORDS, size, np.int64),)) for size in (1, 2, 9, 17, 33, PLACES - 2)]
    wanted = np.stack([plainly(row.tensors[0], weights) for row in rows])
    assert np.stack([out[0] for out in session.alone(rows)]) == pytest.approx(wanted, abs=2e-5)
    assert np.stack([out[0] for out in session.run(rows)]) == pytest.approx(wanted, abs=2e-5)


def test_the_buckets_are_those_of_the_original_up_to_the_longest_text() -> None:
    """512 tokens: single distances, the logarithmic range and what lies beyond 128."""
    found = mpnet.relative_buckets(512, 32)
    assert all(found[0, key] == bucket(key) for key in range(512))
    assert all(found[query, 0] == bucket(-query) for query in range(512))


def test_a_config_that_asks_for_something_else_is_refused(tmp_path: Path) -> None:
    for field, value in (("model_type", "bert"), ("hidden_act", "relu")):
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | {field: value}), "utf-8")
        with pytest.raises(SetupError, match=field):
            mpnet.make(manifest(), tmp_path)
