"""DeBERTa-v2 and -v3: attention by content and by relative position, each on its own.

Source: He et al. 2021 and `transformers` modeling_deberta_v2.py.
"""

from __future__ import annotations

import math

import numpy as np

from foreseen.models.graphs.encoder import Sizes
from foreseen.models.graphs.graph import Graph
from foreseen.models.graphs.hf.config import Config
from foreseen.models.graphs.hf.weights import Weights
from foreseen.models.graphs.hf.writer import EncoderOptions, Writer, distances, length
from foreseen.types import Array

LAYER = "encoder.layer"


def longest(config: Config) -> int:
    return config.number("max_position_embeddings")


def hidden(config: Config) -> int:
    return config.number("hidden_size")


def tokens(graph: Graph, weights: Weights, options: EncoderOptions, mask: str) -> str:
    """`input_ids` → FP32 [b, s, hidden]. `mask` FP32 [b, s]."""
    config = options.config
    config.refuse("conv_kernel_size", 0)
    config.refuse("relative_attention", True)
    sizes = Sizes(
        config.number("hidden_size"),
        config.number("num_attention_heads"),
        config.number("num_hidden_layers"),
        config.real("layer_norm_eps", 1e-7),
    )
    writer = Writer(graph, weights, sizes, config.text("hidden_act", "gelu"))
    attention = Disentangled(writer, options, writer.mask_bias(mask))
    x = writer.norm(_embedded(writer, options), "embeddings.LayerNorm")
    for index in range(sizes.layers):
        x = _layer(writer, attention, x, f"{LAYER}.{index}")
    return x


def _embedded(writer: Writer, options: EncoderOptions) -> str:
    graph, weights = writer.graph, writer.weights
    x = writer.looked_up("embeddings.word_embeddings", "input_ids")
    if options.config.flag("position_biased_input", True):
        table = writer.table("embeddings.position_embeddings")
        cut = graph.add("Slice", table, graph.numbers(0), length(graph), graph.numbers(0))
        x = graph.add("Add", x, cut)
    if "embeddings.token_type_embeddings.weight" in weights:
        if options.types:
            x = graph.add("Add", x, writer.looked_up("embeddings.token_type_embeddings", "token_type_ids"))
        else:
            first = weights("embeddings.token_type_embeddings.weight")[0]
            x = graph.add("Add", x, graph.constant("embeddings.token_type_embeddings.first", first))
    return writer.dense(x, "embeddings.embed_proj") if "embeddings.embed_proj.weight" in weights else x


def _layer(writer: Writer, attention: Disentangled, x: str, name: str) -> str:
    graph = writer.graph
    attended = writer.dense(attention.mixed(x, f"{name}.attention.self"), f"{name}.attention.output.dense")
    x = writer.norm(graph.add("Add", attended, x), f"{name}.attention.output.LayerNorm")
    wide = writer.activation(writer.dense(x, f"{name}.intermediate.dense"))
    return writer.norm(graph.add("Add", writer.dense(wide, f"{name}.output.dense"), x), f"{name}.output.LayerNorm")


class Disentangled:
    """Scores = content·content + content·position + position·content."""

    def __init__(self, writer: Writer, options: EncoderOptions, bias: str) -> None:
        config = options.config
        self._writer = writer
        self._bias = bias
        self._each = writer.sizes.hidden // writer.sizes.heads
        kinds = config.get("pos_att_type") or []
        self._kinds = kinds.lower().split("|") if isinstance(kinds, str) else [str(kind).lower() for kind in kinds]
        self._shared = config.flag("share_att_key", False)
        self._scale = 1 / math.sqrt(self._each * (1 + sum(kind in self._kinds for kind in ("c2p", "p2c"))))
        farthest = config.number("max_relative_positions", -1)
        farthest = farthest if farthest >= 1 else config.number("max_position_embeddings")
        buckets = config.number("position_buckets", -1)
        self._span = buckets if buckets > 0 else farthest
        self._positions = self._normed_positions(config)
        self._to_key, self._to_query = self._places(options.max_tokens, buckets, farthest)

    def mixed(self, x: str, name: str) -> str:
        writer, graph, heads = self._writer, self._writer.graph, self._writer.sizes.heads
        query = writer.split(writer.dense(x, f"{name}.query_proj"), heads, self._each)
        key = writer.split(writer.dense(x, f"{name}.key_proj"), heads, self._each)
        value = writer.split(writer.dense(x, f"{name}.value_proj"), heads, self._each)
        scores = self._product(query, key)
        if "c2p" in self._kinds:
            asked = self._product(query, self._place_heads(name, "key_proj", "pos_key_proj"))
            scores = graph.add("Add", scores, self._gathered(asked, self._to_key))
        if "p2c" in self._kinds:
            given = self._product(key, self._place_heads(name, "query_proj", "pos_query_proj"))
            turned = graph.add("Transpose", self._gathered(given, self._to_query), perm=[0, 1, 3, 2])
            scores = graph.add("Add", scores, turned)
        scaled = graph.add("Mul", scores, graph.number(self._scale))
        return writer.weighed(graph.add("Add", scaled, self._bias), value, writer.sizes.hidden)

    def _product(self, a: str, b: str) -> str:
        """a·bᵀ of heads [b, heads, n, d]."""
        return self._writer.graph.add("MatMul", a, self._writer.graph.add("Transpose", b, perm=[0, 1, 3, 2]))

    def _place_heads(self, name: str, shared: str, own: str) -> str:
        """Distances as keys or queries, FP32 [1, heads, 2·span, d]: ONNX Runtime folds it on loading."""
        writer = self._writer
        projected = writer.dense(self._positions, f"{name}.{shared if self._shared else own}")
        return writer.split(projected, writer.sizes.heads, self._each)

    def _gathered(self, scores: str, places: str) -> str:
        """[b, heads, s, 2·span] at `places` INT64 [s, s] → [b, heads, s, s]."""
        graph = self._writer.graph
        outer = graph.add("Shape", scores, start=0, end=2)
        inner = graph.add("Shape", places, start=0, end=2)
        wide = graph.add("Expand", places, graph.add("Concat", outer, inner, axis=0))
        return graph.add("GatherElements", scores, wide, axis=3)

    def _normed_positions(self, config: Config) -> str:
        graph = self._writer.graph
        table = self._writer.weights("encoder.rel_embeddings.weight")[: 2 * self._span]
        named = graph.constant("encoder.rel_embeddings.weight", table[None])
        normed = "layer_norm" in (config.get("norm_rel_ebd") or "none").lower()
        return self._writer.norm(named, "encoder.LayerNorm") if normed else named

    def _places(self, most: int, buckets: int, farthest: int) -> tuple[str, str]:
        """Which embedding belongs to each (query, key) and (key, query), INT64 [s, s] each."""
        graph = self._writer.graph
        apart = np.arange(-(most - 1), most)
        found = log_buckets(apart, buckets, farthest) if buckets > 0 else apart
        index = graph.add("Add", distances(graph, length(graph)), graph.numbers(most - 1))
        made = []
        for name, table in (("to_key", found + self._span), ("to_query", self._span - found)):
            whole = graph.constant(f"places.{name}", np.clip(table, 0, 2 * self._span - 1).astype(np.int64))
            made.append(graph.add("Gather", whole, index, axis=0))
        return made[0], made[1]


def log_buckets(apart: Array, buckets: int, farthest: int) -> Array:
    """`make_log_bucket_position`: near distances one by one, far ones logarithmically up to `farthest`."""
    middle = buckets // 2
    far = np.where(np.abs(apart) < middle, middle - 1, np.abs(apart)).astype(np.float32)
    most = np.log(np.float32((farthest - 1) / middle))
    grown = np.ceil(np.log(far / np.float32(middle)) / most * np.float32(middle - 1)) + middle
    found: Array = np.where(far <= middle, apart, grown * np.sign(apart)).astype(np.int64)
    return found
