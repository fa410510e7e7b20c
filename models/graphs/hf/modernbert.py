"""ModernBERT: rotary positions, gated feed-forward, local attention in two of three layers.

Source: Warner et al. 2024 and `transformers` modeling_modernbert.py.
"""

from __future__ import annotations

from foreseen.models.graphs.encoder import Sizes
from foreseen.models.graphs.graph import Graph
from foreseen.models.graphs.hf.config import Config
from foreseen.models.graphs.hf.weights import Weights
from foreseen.models.graphs.hf.writer import EncoderOptions, Rotary, Writer, distances, forbid, length, rotary_theta

LOCAL, GLOBAL = "sliding_attention", "full_attention"
THETAS = {GLOBAL: ("global_rope_theta", 160_000.0), LOCAL: ("local_rope_theta", 10_000.0)}


def longest(config: Config) -> int:
    return config.number("max_position_embeddings", 8192)


def hidden(config: Config) -> int:
    return config.number("hidden_size")


def tokens(graph: Graph, weights: Weights, options: EncoderOptions, mask: str) -> str:
    """`input_ids` → FP32 [b, s, hidden]. `mask` FP32 [b, s]."""
    config = options.config
    sizes = Sizes(
        config.number("hidden_size"),
        config.number("num_attention_heads"),
        config.number("num_hidden_layers"),
        config.real("norm_eps", 1e-5),
    )
    writer = Writer(graph, weights, sizes, config.text("hidden_activation", "gelu"))
    size, each = length(graph), sizes.hidden // sizes.heads
    kinds = _kinds(config)
    rotaries = {kind: Rotary(graph, size, each, _theta(config, kind), options.max_tokens, kind) for kind in kinds}
    bias = writer.mask_bias(mask)
    near = graph.add("Abs", distances(graph, size))
    window = graph.numbers(config.number("local_attention", 128) // 2)
    biases = {GLOBAL: bias, LOCAL: forbid(graph, bias, graph.add("LessOrEqual", near, window))}
    x = writer.norm(writer.looked_up("embeddings.tok_embeddings", "input_ids"), "embeddings.norm")
    for index, kind in enumerate(kinds):
        x = _layer(writer, x, index, rotaries[kind], biases[kind])
    return writer.norm(x, "final_norm")


def _kinds(config: Config) -> list[str]:
    """The attention of each layer: named in the config (transformers 5), or every third one is global."""
    listed = config.get("layer_types")
    count = config.number("num_hidden_layers")
    if listed is None:
        every = config.number("global_attn_every_n_layers", 3)
        return [LOCAL if index % every else GLOBAL for index in range(count)]
    if not isinstance(listed, list) or len(listed) != count or not set(listed) <= {LOCAL, GLOBAL}:
        raise config.error("layer_types", f"is {listed!r}, not {GLOBAL} or {LOCAL} for each layer")
    return listed


def _theta(config: Config, kind: str) -> float:
    name, default = THETAS[kind]
    parameters = config.get("rope_parameters")
    if not isinstance(parameters, dict):
        return config.real(name, default)
    return rotary_theta(Config({"rope_parameters": parameters.get(kind) or {}}), config.real(name, default))


def _layer(writer: Writer, x: str, index: int, rotary: Rotary, bias: str) -> str:
    graph, sizes, prefix = writer.graph, writer.sizes, f"layers.{index}"
    # The first layer's norm is the identity: the embeddings were normed just before.
    normed = writer.norm(x, f"{prefix}.attn_norm") if index else x
    query, key, value = _heads(writer, normed, f"{prefix}.attn.Wqkv")
    scale = (sizes.hidden // sizes.heads) ** -0.5
    mixed = writer.mixed(rotary.turned(query), rotary.turned(key), value, bias, scale, sizes.hidden)
    x = graph.add("Add", x, writer.dense(mixed, f"{prefix}.attn.Wo"))
    return graph.add("Add", x, _feed_forward(writer, writer.norm(x, f"{prefix}.mlp_norm"), f"{prefix}.mlp"))


def _heads(writer: Writer, x: str, name: str) -> list[str]:
    """Query, key and value, whose weights are in one matrix."""
    hidden, heads = writer.sizes.hidden, writer.sizes.heads
    weight = writer.weights(f"{name}.weight")
    bias = writer.weights(f"{name}.bias") if f"{name}.bias" in writer.weights else None
    made = []
    for at, kind in enumerate(("q", "k", "v")):
        rows = slice(at * hidden, (at + 1) * hidden)
        one = writer.linear(x, f"{name}.{kind}", weight[rows], None if bias is None else bias[rows])
        made.append(writer.split(one, heads, hidden // heads))
    return made


def _feed_forward(writer: Writer, x: str, name: str) -> str:
    weight = writer.weights(f"{name}.Wi.weight")
    bias = writer.weights(f"{name}.Wi.bias") if f"{name}.Wi.bias" in writer.weights else None
    half = len(weight) // 2
    wide = writer.linear(x, f"{name}.Wi.input", weight[:half], None if bias is None else bias[:half])
    gate = writer.linear(x, f"{name}.Wi.gate", weight[half:], None if bias is None else bias[half:])
    return writer.dense(writer.graph.add("Mul", writer.activation(wide), gate), f"{name}.Wo")
