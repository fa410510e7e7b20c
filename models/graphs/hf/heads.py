"""Token vectors → a model's answer: pooled vectors or a classifier's logits, the same bits whatever batch a row is in.

For a linear layer on one vector per row, ONNX Runtime uses another kernel (matrix × vector) in a batch of one than in a
batch of two, with other bits. So every vector is doubled, [b, 2, h], and the second answer is dropped, as in
`pool.exact_sum`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from foreseen.errors import SetupError
from foreseen.models.graphs import pool
from foreseen.models.graphs.graph import Graph
from foreseen.models.graphs.hf.config import Config
from foreseen.models.graphs.hf.head import TaskHead, dense_layer
from foreseen.models.graphs.hf.weights import Weights, open_weights
from foreseen.models.graphs.hf.writer import Writer, activate, known_activation

Pool = Callable[[Graph, str, str], str]
Classifier = Callable[[Writer, Weights, str, Config], str]

LEAST_COLUMNS = 2  # a product with one column is a matrix × vector kernel as well: it gets a column of zeros


def embedding(graph: Graph, tokens: str, mask: str, head: TaskHead, folder: Path, output: str) -> None:
    """Pool, dense layers and length 1. `tokens` FP32 [b, s, h], `mask` FP32 [b, s] → `output` FP32 [b, d]."""
    pooled = [POOLS[mode](graph, tokens, mask) for mode in head.pooling]
    x = pooled[0] if len(pooled) == 1 else graph.add("Concat", *pooled, axis=-1)
    for name in head.dense:
        layer, weights = dense_layer(folder, name), open_weights(folder / name)
        twice = linear(graph, doubled(graph, x), weights, "linear", f"{name}.linear")
        x = first(graph, activate(graph, twice, layer.activation))
    if head.normalize:
        norm = graph.add("ReduceL2", x, graph.numbers(1), keepdims=1)
        x = graph.add("Div", x, graph.add("Max", norm, graph.number(pool.LEAST_NORM)))
    graph.add("Identity", x, name=output)


def classified(writer: Writer, whole: Weights, tokens: str, mask: str, config: Config, output: str) -> None:
    """A `…ForSequenceClassification`'s logits, FP32 [b, labels]. `whole`: weights with the head's own names."""
    graph, kind = writer.graph, config.text("model_type")
    if kind in ("qwen3", "qwen2"):
        x = doubled(graph, _last_real(graph, tokens, config))
    elif kind == "modernbert" and config.text("classifier_pooling", "cls") == "mean":
        x = doubled(graph, _mean(graph, tokens, mask))
    else:
        x = doubled(graph, _cls(graph, tokens, mask))
    logits = CLASSIFIERS[kind](writer, whole, x, config)
    graph.add("Identity", first(graph, logits), name=output)


def tagged(writer: Writer, whole: Weights, tokens: str, config: Config, output: str) -> None:
    """A `…ForTokenClassification`'s logits, FP32 [b, s, labels]."""
    kind = config.text("model_type")
    x = _modern_head(writer, whole, tokens, config) if kind == "modernbert" else tokens
    last = "score" if "score.weight" in whole else "classifier"
    writer.graph.add("Identity", linear(writer.graph, x, whole, last, last), name=output)


def linear(graph: Graph, x: str, weights: Weights, name: str, called: str) -> str:
    """x·Wᵀ + b, W [out, in]; with one row only, a second one of zeros is computed beside it."""
    weight = weights(f"{name}.weight")
    out = len(weight)
    if out < LEAST_COLUMNS:
        weight = np.concatenate([weight, np.zeros((LEAST_COLUMNS - out, weight.shape[1]), np.float32)])
    product = graph.add("MatMul", x, graph.constant(f"{called}.weight", weight.T))
    if out < LEAST_COLUMNS:
        product = graph.add("Slice", product, graph.numbers(0), graph.numbers(out), graph.numbers(-1))
    if f"{name}.bias" not in weights:
        return product
    return graph.add("Add", product, graph.constant(f"{called}.bias", weights(f"{name}.bias")))


def doubled(graph: Graph, x: str) -> str:
    """FP32 [b, h] → [b, 2, h]."""
    return graph.add("Expand", graph.add("Unsqueeze", x, graph.numbers(1)), graph.numbers(1, 2, 1))


def first(graph: Graph, x: str) -> str:
    """FP32 [b, 2, h] → [b, h]."""
    one = graph.add("Slice", x, graph.numbers(0), graph.numbers(1), graph.numbers(1))
    return graph.add("Squeeze", one, graph.numbers(1))


def _cls(graph: Graph, tokens: str, mask: str) -> str:
    del mask  # rows are padded on the right
    return graph.add("Gather", tokens, graph.scalar(0), axis=1)


def _count(graph: Graph, mask: str) -> str:
    return graph.add("ReduceSum", mask, graph.numbers(1), keepdims=1)  # of 0 and 1: exact in any order


def _mean(graph: Graph, tokens: str, mask: str) -> str:
    return graph.add("Div", pool.exact_sum(graph, tokens, mask), _count(graph, mask))


def _mean_sqrt(graph: Graph, tokens: str, mask: str) -> str:
    return graph.add("Div", pool.exact_sum(graph, tokens, mask), graph.add("Sqrt", _count(graph, mask)))


def _weighted_mean(graph: Graph, tokens: str, mask: str) -> str:
    """The first token counts once, the second twice, … (SGPT)."""
    places = graph.add("CumSum", mask, graph.scalar(1))
    weights = graph.add("Mul", places, mask)
    total = graph.add("ReduceSum", weights, graph.numbers(1), keepdims=1)  # of whole numbers: exact in any order
    return graph.add("Div", pool.exact_sum(graph, tokens, weights), total)


def _max(graph: Graph, tokens: str, mask: str) -> str:
    real = graph.add("Cast", graph.add("Unsqueeze", mask, graph.numbers(2)), to=9)
    lowest = graph.constant("lowest", np.array(-np.inf, np.float32))
    return graph.add("ReduceMax", graph.add("Where", real, tokens, lowest), graph.numbers(1), keepdims=0)


def _last(graph: Graph, tokens: str, mask: str) -> str:
    last = graph.add("Sub", graph.add("Cast", _count(graph, mask), to=7), graph.numbers(1))
    return graph.add("GatherND", tokens, last, batch_dims=1)


def _last_real(graph: Graph, tokens: str, config: Config) -> str:
    """The vector of the rightmost id that is not `pad_token_id`, which is where decoders' classifiers look."""
    padding = config.get("pad_token_id")
    if not isinstance(padding, int):
        raise config.error("pad_token_id", "missing: a decoder's classifier looks for the last id that is not it")
    real = graph.add("Cast", graph.add("Not", graph.add("Equal", "input_ids", graph.scalar(padding))), to=7)
    size = graph.add("Shape", "input_ids", start=1, end=2)
    scalar = graph.add("Squeeze", size, graph.numbers(0))
    indices = graph.add("Mul", graph.add("Range", graph.scalar(0), scalar, graph.scalar(1)), real)
    return graph.add("GatherND", tokens, graph.add("ReduceMax", indices, graph.numbers(1), keepdims=1), batch_dims=1)


def _pooler(writer: Writer, whole: Weights, x: str, config: Config) -> str:
    """BERT's pooler, whose weights have the encoder's prefix, and DeBERTa's, whose weights do not."""
    inner = writer.weights if "pooler.dense.weight" in writer.weights else whole
    act = config.text("pooler_hidden_act", "tanh" if config.text("model_type") == "bert" else "gelu")
    pooled = activate(writer.graph, linear(writer.graph, x, inner, "pooler.dense", "pooler.dense"), act)
    return linear(writer.graph, pooled, whole, "classifier", "classifier")


def _two_layers(act: str, inner: str, outer: str) -> Classifier:
    def classifier(writer: Writer, whole: Weights, x: str, config: Config) -> str:
        del config
        hidden = activate(writer.graph, linear(writer.graph, x, whole, inner, inner), act)
        return linear(writer.graph, hidden, whole, outer, outer)

    return classifier


def _modern_head(writer: Writer, whole: Weights, x: str, config: Config) -> str:
    act = known_activation(config.text("classifier_activation", "gelu"))
    hidden = activate(writer.graph, linear(writer.graph, x, whole, "head.dense", "head.dense"), act)
    headed = Writer(writer.graph, whole, writer.sizes, act)
    return headed.norm(hidden, "head.norm")


def _modern(writer: Writer, whole: Weights, x: str, config: Config) -> str:
    return linear(writer.graph, _modern_head(writer, whole, x, config), whole, "classifier", "classifier")


def _score(writer: Writer, whole: Weights, x: str, config: Config) -> str:
    del config
    return linear(writer.graph, x, whole, "score", "score")


POOLS: dict[str, Pool] = {
    "cls": _cls,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
    "max": _max,
    "lasttoken": _last,
}
_ROBERTA = _two_layers("tanh", "classifier.dense", "classifier.out_proj")
CLASSIFIERS: dict[str, Classifier] = {
    "bert": _pooler,
    "deberta-v2": _pooler,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "mpnet": _ROBERTA,
    "electra": _two_layers("gelu", "classifier.dense", "classifier.out_proj"),
    "distilbert": _two_layers("relu", "pre_classifier", "classifier"),
    "modernbert": _modern,
    "qwen3": _score,
    "qwen2": _score,
}


def check_labels(whole: Weights, config: Config, labels: tuple[str, ...]) -> int:
    """The number of the classifier's labels. Raises SetupError if `id2label` has another number."""
    for name in ("classifier.out_proj.weight", "classifier.weight", "score.weight"):
        if name in whole:
            count = whole.shape(name)[0]
            if labels and len(labels) != count:
                raise config.error("id2label", f"names {len(labels)} labels, the classifier has {count}")
            return count
    raise SetupError("the weights hold no classifier")
