"""Hidden states → hidden states: the transformer layer of BERT and MPNet, batch-independent by operator choice."""

from __future__ import annotations

import math
from collections.abc import Callable

from msgspec import Struct

from foreseen.models.graphs.graph import Graph
from foreseen.types import Array

Weights = Callable[[str], Array]
"""Name in the safetensors file → FP32 array."""

MASKED = -10000.0  # BERT's own bias: after softmax in FP32 an exact 0, without the NaN of -inf rows


class Sizes(Struct, frozen=True):
    hidden: int
    heads: int
    layers: int
    epsilon: float


class LayerNames(Struct, frozen=True):
    """Names of a layer's weights: prefixes that `.weight` and `.bias` are appended to."""

    query: str
    key: str
    value: str
    attention: str
    attention_norm: str
    up: str
    down: str
    norm: str


class Encoder:
    """Writes encoder layers into a graph."""

    def __init__(self, graph: Graph, weights: Weights, sizes: Sizes) -> None:
        self._graph = graph
        self._weights = weights
        self._sizes = sizes

    def dense(self, x: str, name: str) -> str:
        """x·Wᵀ + b, the way torch.nn.Linear stores it: W [out, in]."""
        weight = self._graph.constant(f"{name}.weight", self._weights(f"{name}.weight").T)
        bias = self._graph.constant(f"{name}.bias", self._weights(f"{name}.bias"))
        return self._graph.add("Add", self._graph.add("MatMul", x, weight), bias)

    def norm(self, x: str, name: str) -> str:
        weight = self._graph.constant(f"{name}.weight", self._weights(f"{name}.weight"))
        bias = self._graph.constant(f"{name}.bias", self._weights(f"{name}.bias"))
        return self._graph.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=self._sizes.epsilon)

    def mask_bias(self, mask: str) -> str:
        """`mask` FP32 [b, s] → what is added to the scores, FP32 [b, 1, 1, s]."""
        wide = self._graph.add("Unsqueeze", mask, self._graph.numbers(1, 2))
        hidden = self._graph.add("Sub", self._graph.number(1.0), wide)
        return self._graph.add("Mul", hidden, self._graph.number(MASKED))

    def layer(self, x: str, names: LayerNames, bias: str) -> str:
        """One layer: attention, residual, norm, feed-forward, residual, norm. `x` FP32 [b, s, hidden]."""
        graph = self._graph
        attended = self.dense(self._attention(x, names, bias), names.attention)
        x = self.norm(graph.add("Add", attended, x), names.attention_norm)
        wide = self.activation(self.dense(x, names.up))
        return self.norm(graph.add("Add", self.dense(wide, names.down), x), names.norm)

    def activation(self, x: str) -> str:
        return self._graph.add("Gelu", x, approximate="none")

    def _attention(self, x: str, names: LayerNames, bias: str) -> str:
        query = self._heads(self.dense(x, names.query), [0, 2, 1, 3])
        key = self._heads(self.dense(x, names.key), [0, 2, 3, 1])
        value = self._heads(self.dense(x, names.value), [0, 2, 1, 3])
        return self.attend(query, key, value, bias)

    def attend(self, query: str, key: str, value: str, bias: str) -> str:
        """softmax(q·k/√d + bias)·v. `query`, `value` FP32 [b, heads, s, d], `key` [b, heads, d, s] → [b, s, hidden]."""
        graph, sizes = self._graph, self._sizes
        each = sizes.hidden // sizes.heads
        scores = graph.add("MatMul", graph.add("Mul", query, graph.number(1 / math.sqrt(each))), key)
        weights = graph.add("Softmax", graph.add("Add", scores, bias), axis=-1)
        mixed = graph.add("Transpose", graph.add("MatMul", weights, value), perm=[0, 2, 1, 3])
        return graph.add("Reshape", mixed, graph.numbers(0, 0, sizes.hidden))

    def _heads(self, x: str, order: list[int]) -> str:
        sizes = self._sizes
        split = self._graph.add("Reshape", x, self._graph.numbers(0, 0, sizes.heads, sizes.hidden // sizes.heads))
        return self._graph.add("Transpose", split, perm=order)
