"""Qwen3 and Qwen2 as encoders of text (embeddings, rerankers): causal attention, rotary positions, grouped keys.

Source: `transformers` modeling_qwen3.py and modeling_qwen2.py. Rows are padded on the right, where causal
attention never looks.
"""

from __future__ import annotations

from foreseen.models.graphs.encoder import Sizes
from foreseen.models.graphs.graph import Graph
from foreseen.models.graphs.hf.config import Config
from foreseen.models.graphs.hf.weights import Weights
from foreseen.models.graphs.hf.writer import EncoderOptions, Rotary, Writer, distances, forbid, length, rotary_theta


def longest(config: Config) -> int:
    return config.number("max_position_embeddings", 32768)


def hidden(config: Config) -> int:
    return config.number("hidden_size")


def tokens(graph: Graph, weights: Weights, options: EncoderOptions, mask: str) -> str:
    """`input_ids` → FP32 [b, s, hidden]. `mask` FP32 [b, s]."""
    config = options.config
    config.refuse("use_sliding_window", False)
    heads = config.number("num_attention_heads")
    layers = config.number("num_hidden_layers")
    if set(config.get("layer_types") or ()) - {"full_attention"}:
        raise config.error("layer_types", "only full_attention can be built")
    each = config.number("head_dim", config.number("hidden_size") // heads)
    writer = Writer(
        graph,
        weights,
        Sizes(config.number("hidden_size"), heads, layers, config.real("rms_norm_eps", 1e-6)),
        config.text("hidden_act", "silu"),
    )
    size = length(graph)
    rotary = Rotary(graph, size, each, rotary_theta(config, 10_000.0), options.max_tokens, "rotary")
    earlier = graph.add("GreaterOrEqual", distances(graph, size), graph.numbers(0))
    bias = forbid(graph, writer.mask_bias(mask), earlier)
    attention = Attention(writer, each, config.number("num_key_value_heads", heads), rotary, bias)
    x = writer.looked_up("embed_tokens", "input_ids")
    for index in range(layers):
        prefix = f"layers.{index}"
        mixed = attention.mixed(writer.rms_norm(x, f"{prefix}.input_layernorm"), f"{prefix}.self_attn")
        x = graph.add("Add", x, mixed)
        normed = writer.rms_norm(x, f"{prefix}.post_attention_layernorm")
        x = graph.add("Add", x, _feed_forward(writer, normed, f"{prefix}.mlp"))
    return writer.rms_norm(x, "norm")


class Attention:
    """Causal attention, several queries to a key."""

    def __init__(self, writer: Writer, each: int, groups: int, rotary: Rotary, bias: str) -> None:
        self._writer = writer
        self._each = each
        self._groups = groups
        self._rotary = rotary
        self._bias = bias

    def mixed(self, x: str, name: str) -> str:
        writer, each, heads = self._writer, self._each, self._writer.sizes.heads
        query = self._rotary.turned(self._projected(x, f"{name}.q", heads))
        key = self._repeated(self._rotary.turned(self._projected(x, f"{name}.k", self._groups)))
        value = self._repeated(writer.split(writer.dense(x, f"{name}.v_proj"), self._groups, each))
        return writer.dense(writer.mixed(query, key, value, self._bias, each**-0.5, heads * each), f"{name}.o_proj")

    def _projected(self, x: str, name: str, heads: int) -> str:
        """Queries or keys [b, heads, s, each]; Qwen3 norms every head of them."""
        parted = self._writer.split(self._writer.dense(x, f"{name}_proj"), heads, self._each)
        normed = f"{name}_norm.weight" in self._writer.weights
        return self._writer.rms_norm(parted, f"{name}_norm") if normed else parted

    def _repeated(self, x: str) -> str:
        """[b, groups, s, each] → [b, heads, s, each]: every group for each of its queries."""
        graph, heads = self._writer.graph, self._writer.sizes.heads
        if self._groups == heads:
            return x
        wide = graph.add("Unsqueeze", x, graph.numbers(2))
        many = graph.add("Expand", wide, graph.numbers(1, 1, heads // self._groups, 1, 1))
        return graph.add("Reshape", many, graph.numbers(0, heads, -1, self._each))


def _feed_forward(writer: Writer, x: str, name: str) -> str:
    gate = writer.activation(writer.dense(x, f"{name}.gate_proj"))
    return writer.dense(writer.graph.add("Mul", gate, writer.dense(x, f"{name}.up_proj")), f"{name}.down_proj")
