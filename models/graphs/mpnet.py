"""An MPNet sentence encoder's safetensors and config.json → its fp32 graph: ids and mask in, one normalised vector out.

Source of the architecture: Song et al. 2020 and `transformers` modeling_mpnet.py: BERT without token types, with T5's
relative position bias, the same for all layers. Pooling: sentence-transformers 1_Pooling (mean) and 2_Normalize.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from onnx import ModelProto
from safetensors.numpy import load_file

from foreseen.models.graphs import pool
from foreseen.models.graphs.bert import read_config
from foreseen.models.graphs.encoder import Encoder, LayerNames, Sizes, Weights
from foreseen.models.graphs.graph import Graph
from foreseen.modelspec.manifest import Manifest
from foreseen.types import Array

FIRST_POSITION = 2  # padding_idx 1 is taken, so fairseq's tables count from 2
FARTHEST = 128  # MPNetEncoder.relative_position_bucket's max_distance, a constant there as well


def make(manifest: Manifest, folder: Path, pooled: pool.Sum | None = None) -> ModelProto:
    """Inputs `input_ids` and `attention_mask`, INT64 [rows, tokens]; output `embedding`, FP32 [rows, hidden]."""
    config = read_config(folder, "mpnet")
    weights = load_file(folder / "model.safetensors").__getitem__
    sizes = Sizes(
        config["hidden_size"], config["num_attention_heads"], config["num_hidden_layers"], config["layer_norm_eps"]
    )
    longest = config["max_position_embeddings"] - FIRST_POSITION
    buckets = relative_buckets(longest, config["relative_attention_num_buckets"])
    graph = Graph()
    encoder = Encoder(graph, weights, sizes)
    mask = graph.add("Cast", "attention_mask", to=1)
    length = graph.add("Shape", "input_ids", start=1, end=2)
    relative = _relative(graph, weights("encoder.relative_attention_bias.weight"), buckets, length)
    bias = graph.add("Add", relative, encoder.mask_bias(mask))
    x = encoder.norm(_embedded(graph, weights, length), "embeddings.LayerNorm")
    for index in range(sizes.layers):
        x = encoder.layer(x, _names(f"encoder.layer.{index}"), bias)
    pooled = pooled or pool.of(manifest)
    pool.mean_normalised(graph, pooled(graph, x, mask), mask, "embedding")
    return graph.model(manifest.model)


def relative_buckets(longest: int, count: int) -> Array:
    """The bucket of every distance, INT64 [longest, longest], queries first: half of them for keys that come later.

    A quarter of the buckets hold one distance each, the rest grow logarithmically up to 128 tokens.
    """
    places = np.arange(longest)
    distance = places[:, None] - places[None, :]  # query − key
    half = count // 2
    single = half // 2
    far = np.maximum(np.abs(distance), 1).astype(np.float32)
    grown = np.log(far / np.float32(single)) / np.float32(math.log(FARTHEST / single)) * (half - single)
    large = np.minimum(single + grown.astype(np.int64), half - 1)
    near = np.abs(distance)
    found: Array = np.where(distance < 0, half, 0) + np.where(near < single, near, large)
    return found


def _relative(graph: Graph, table: Array, buckets: Array, length: str) -> str:
    """The bias of a batch's length, FP32 [1, heads, s, s], cut out of the constant for the longest."""
    whole = graph.constant("relative_bias", table[buckets].transpose(2, 0, 1)[None])
    ends = graph.add("Concat", length, length, axis=0)
    return graph.add("Slice", whole, graph.numbers(0, 0), ends, graph.numbers(2, 3))


def _embedded(graph: Graph, weights: Weights, length: str) -> str:
    positions = weights("embeddings.position_embeddings.weight")[FIRST_POSITION:]
    table = graph.constant("embeddings.position_embeddings.weight", positions)
    words = graph.constant("embeddings.word_embeddings.weight", weights("embeddings.word_embeddings.weight"))
    cut = graph.add("Slice", table, graph.numbers(0), length, graph.numbers(0))
    return graph.add("Add", graph.add("Gather", words, "input_ids", axis=0), cut)


def _names(prefix: str) -> LayerNames:
    return LayerNames(
        query=f"{prefix}.attention.attn.q",
        key=f"{prefix}.attention.attn.k",
        value=f"{prefix}.attention.attn.v",
        attention=f"{prefix}.attention.attn.o",
        attention_norm=f"{prefix}.attention.LayerNorm",
        up=f"{prefix}.intermediate.dense",
        down=f"{prefix}.output.dense",
        norm=f"{prefix}.output.LayerNorm",
    )
