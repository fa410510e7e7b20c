"""A BERT sentence encoder's safetensors and config.json → its fp32 graph: ids and mask in, one normalised vector out.

Source of the architecture: Devlin et al. 2018 and `transformers` modeling_bert.py; pooling: sentence-transformers
1_Pooling (mean) and 2_Normalize. Token types are all 0 in these models: their embedding is folded into the positions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from onnx import ModelProto
from safetensors.numpy import load_file

from foreseen.errors import SetupError
from foreseen.models.graphs import pool
from foreseen.models.graphs.encoder import Encoder, LayerNames, Sizes, Weights
from foreseen.models.graphs.graph import Graph
from foreseen.modelspec.manifest import Manifest


def make(manifest: Manifest, folder: Path, pooled: pool.Sum | None = None) -> ModelProto:
    """Inputs `input_ids` and `attention_mask`, INT64 [rows, tokens]; output `embedding`, FP32 [rows, hidden].

    `pooled` exists for the test that shows how other pools change a row.
    """
    config = read_config(folder, "bert")
    weights = load_file(folder / "model.safetensors").__getitem__
    sizes = Sizes(
        config["hidden_size"], config["num_attention_heads"], config["num_hidden_layers"], config["layer_norm_eps"]
    )
    graph = Graph()
    encoder = Encoder(graph, weights, sizes)
    mask = graph.add("Cast", "attention_mask", to=1)
    bias = encoder.mask_bias(mask)
    x = encoder.norm(_embedded(graph, weights), "embeddings.LayerNorm")
    for index in range(sizes.layers):
        x = encoder.layer(x, _names(f"encoder.layer.{index}"), bias)
    pooled = pooled or pool.of(manifest)
    pool.mean_normalised(graph, pooled(graph, x, mask), mask, "embedding")
    return graph.model(manifest.model)


def read_config(folder: Path, model_type: str) -> dict[str, Any]:
    """config.json; refused if it has options that these builders do not support."""
    config: dict[str, Any] = msgspec.json.decode((folder / "config.json").read_bytes())
    wanted = {"model_type": model_type, "hidden_act": "gelu"}
    for field, value in wanted.items():
        if config.get(field) != value:
            raise SetupError(f"config.json: {field} is {config.get(field)!r}, the builder writes {value!r} only")
    return config


def _embedded(graph: Graph, weights: Weights) -> str:
    """Word + position + token type 0. Positions count from the first token, so their table is cut to the batch."""
    positions = weights("embeddings.position_embeddings.weight") + weights("embeddings.token_type_embeddings.weight")[0]
    table = graph.constant("embeddings.position_embeddings.weight", positions)
    words = graph.constant("embeddings.word_embeddings.weight", weights("embeddings.word_embeddings.weight"))
    length = graph.add("Shape", "input_ids", start=1, end=2)
    cut = graph.add("Slice", table, graph.numbers(0), length, graph.numbers(0))
    return graph.add("Add", graph.add("Gather", words, "input_ids", axis=0), cut)


def _names(prefix: str) -> LayerNames:
    return LayerNames(
        query=f"{prefix}.attention.self.query",
        key=f"{prefix}.attention.self.key",
        value=f"{prefix}.attention.self.value",
        attention=f"{prefix}.attention.output.dense",
        attention_norm=f"{prefix}.attention.output.LayerNorm",
        up=f"{prefix}.intermediate.dense",
        down=f"{prefix}.output.dense",
        norm=f"{prefix}.output.LayerNorm",
    )
