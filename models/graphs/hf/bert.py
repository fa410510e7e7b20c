"""BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA, DistilBERT and MPNet: encoders of one layer, with other names.

Sources: `transformers` modeling_bert.py, modeling_roberta.py, modeling_electra.py, modeling_distilbert.py and
modeling_mpnet.py.
"""

from __future__ import annotations

from msgspec import Struct

from foreseen.models.graphs.encoder import LayerNames, Sizes
from foreseen.models.graphs.graph import Graph
from foreseen.models.graphs.hf.config import Config
from foreseen.models.graphs.hf.weights import Weights
from foreseen.models.graphs.hf.writer import EncoderOptions, Writer, length
from foreseen.models.graphs.mpnet import relative_buckets
from foreseen.types import Array


class Dialect(Struct, frozen=True):
    """What an architecture calls its layer's parts, and where its positions count from."""

    layer: dict[str, str]
    counted: bool = False
    """fairseq's positions: they count from `pad_token_id` + 1, and padding ids inside a text do not count."""


BERT_LAYER = {
    "prefix": "encoder.layer",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm": "output.LayerNorm",
}
MPNET_LAYER = BERT_LAYER | {
    "query": "attention.attn.q",
    "key": "attention.attn.k",
    "value": "attention.attn.v",
    "attention": "attention.attn.o",
    "attention_norm": "attention.LayerNorm",
}
DISTILBERT_LAYER = {
    "prefix": "transformer.layer",
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "attention": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "up": "ffn.lin1",
    "down": "ffn.lin2",
    "norm": "output_layer_norm",
}
DIALECTS = {
    "bert": Dialect(BERT_LAYER),
    "electra": Dialect(BERT_LAYER),
    "roberta": Dialect(BERT_LAYER, counted=True),
    "xlm-roberta": Dialect(BERT_LAYER, counted=True),
    "camembert": Dialect(BERT_LAYER, counted=True),
    "mpnet": Dialect(MPNET_LAYER, counted=True),
    "distilbert": Dialect(DISTILBERT_LAYER),
}


def longest(config: Config) -> int:
    """The most tokens that the table of positions has room for."""
    rows = config.number("max_position_embeddings")
    return rows - config.number("pad_token_id", 1) - 1 if _dialect(config).counted else rows


def hidden(config: Config) -> int:
    return config.number("dim" if config.text("model_type") == "distilbert" else "hidden_size")


def tokens(graph: Graph, weights: Weights, options: EncoderOptions, mask: str) -> str:
    """`input_ids` → FP32 [b, s, hidden]. `mask` FP32 [b, s]."""
    config = options.config
    config.refuse("position_embedding_type", "absolute")
    config.refuse("is_decoder", False)
    config.refuse("sinusoidal_pos_embds", False, True)  # the table lies in the file either way
    writer = _writer(graph, weights, config)
    bias = writer.mask_bias(mask)
    if config.text("model_type") == "mpnet":
        bias = graph.add("Add", _relative(writer, config, longest(config)), bias)
    x = writer.norm(_embedded(writer, options), "embeddings.LayerNorm")
    if "embeddings_project.weight" in weights:  # ELECTRA, where embeddings are narrower than layers
        x = writer.dense(x, "embeddings_project")
    names = dict(_dialect(config).layer)
    prefix = names.pop("prefix")
    for index in range(writer.sizes.layers):
        x = writer.layer(x, LayerNames(**{key: f"{prefix}.{index}.{name}" for key, name in names.items()}), bias)
    return x


def _dialect(config: Config) -> Dialect:
    return DIALECTS[config.text("model_type")]


def _writer(graph: Graph, weights: Weights, config: Config) -> Writer:
    if config.text("model_type") == "distilbert":
        sizes = Sizes(config.number("dim"), config.number("n_heads"), config.number("n_layers"), 1e-12)
        return Writer(graph, weights, sizes, config.text("activation", "gelu"))
    sizes = Sizes(
        config.number("hidden_size"),
        config.number("num_attention_heads"),
        config.number("num_hidden_layers"),
        config.real("layer_norm_eps", 1e-12),
    )
    return Writer(graph, weights, sizes, config.text("hidden_act", "gelu"))


def _embedded(writer: Writer, options: EncoderOptions) -> str:
    """Word + position + token type. Where all types are 0, their embedding is folded into the positions."""
    graph, weights = writer.graph, writer.weights
    positions = weights("embeddings.position_embeddings.weight")
    typed = "embeddings.token_type_embeddings.weight" in weights
    if typed and not options.types:
        positions = positions + weights("embeddings.token_type_embeddings.weight")[0]
    words = writer.looked_up("embeddings.word_embeddings", "input_ids")
    x = graph.add("Add", words, _positioned(graph, positions, options))
    return (
        graph.add("Add", x, writer.looked_up("embeddings.token_type_embeddings", "token_type_ids"))
        if (typed and options.types)
        else x
    )


def _positioned(graph: Graph, positions: Array, options: EncoderOptions) -> str:
    """The rows of the table that belong to the tokens: [s, hidden] or, where padding does not count, [b, s, hidden]."""
    table = graph.constant("embeddings.position_embeddings.weight", positions)
    if not _dialect(options.config).counted:
        return graph.add("Slice", table, graph.numbers(0), length(graph), graph.numbers(0))
    padding = graph.scalar(options.config.number("pad_token_id", 1))
    real = graph.add("Cast", graph.add("Not", graph.add("Equal", "input_ids", padding)), to=7)
    counted = graph.add("CumSum", real, graph.scalar(1))
    places = graph.add("Add", graph.add("Mul", counted, real), padding)
    return graph.add("Gather", table, places, axis=0)


def _relative(writer: Writer, config: Config, most: int) -> str:
    """MPNet's bias by distance, FP32 [1, heads, s, s], cut out of the constant for the longest row."""
    graph = writer.graph
    table = writer.weights("encoder.relative_attention_bias.weight")
    buckets = relative_buckets(most, config.number("relative_attention_num_buckets", 32))
    whole = graph.constant("relative_bias", table[buckets].transpose(2, 0, 1)[None])
    size = length(graph)
    ends = graph.add("Concat", size, size, axis=0)
    return graph.add("Slice", whole, graph.numbers(0, 0), ends, graph.numbers(2, 3))
