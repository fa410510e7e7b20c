"""What the architectures of Hugging Face folders share: linear layers, norms, activations, masks, rotary positions.

`Writer` writes BERT's layer as `Encoder` does; parameters may lack a bias, and the activation comes from config.json.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from foreseen.errors import SetupError
from foreseen.models.graphs.encoder import MASKED, Encoder, Sizes
from foreseen.models.graphs.graph import Graph
from foreseen.models.graphs.hf.config import Config
from foreseen.models.graphs.hf.weights import Weights
from foreseen.types import Array

ACTIVATIONS = (
    "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh", "sigmoid", "linear", "quick_gelu",
)  # fmt: skip
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")
QUICK_GELU = 1.702


class EncoderOptions(Struct, frozen=True):
    """What an architecture needs beside its writer."""

    config: Config
    max_tokens: int
    """The longest row that is ever sent: tables of positions are cut to it."""
    types: bool
    """Whether the graph takes `token_type_ids`; without, all of them are 0."""


class Writer(Encoder):
    """Writes the parts of one model into one graph."""

    def __init__(self, graph: Graph, weights: Weights, sizes: Sizes, activation: str) -> None:
        super().__init__(graph, weights, sizes)
        self.graph = graph
        self.weights = weights
        self.sizes = sizes
        self._act = known_activation(activation)

    def dense(self, x: str, name: str) -> str:
        bias = self.weights(f"{name}.bias") if f"{name}.bias" in self.weights else None
        return self.linear(x, name, self.weights(f"{name}.weight"), bias)

    def linear(self, x: str, name: str, weight: Array, bias: Array | None) -> str:
        """x·Wᵀ (+ b) with W [out, in]."""
        product = self.graph.add("MatMul", x, self.graph.constant(f"{name}.weight", weight.T))
        return product if bias is None else self.graph.add("Add", product, self.graph.constant(f"{name}.bias", bias))

    def norm(self, x: str, name: str) -> str:
        """LayerNorm over the last axis, with or without a bias."""
        parameters = [self.graph.constant(f"{name}.weight", self.weights(f"{name}.weight"))]
        if f"{name}.bias" in self.weights:
            parameters.append(self.graph.constant(f"{name}.bias", self.weights(f"{name}.bias")))
        return self.graph.add("LayerNormalization", x, *parameters, axis=-1, epsilon=self.sizes.epsilon)

    def rms_norm(self, x: str, name: str) -> str:
        """x / √(mean(x²) + ε) · w over the last axis (Zhang & Sennrich 2019)."""
        graph = self.graph
        squares = graph.add("ReduceMean", graph.add("Mul", x, x), graph.numbers(-1), keepdims=1)
        root = graph.add("Sqrt", graph.add("Add", squares, graph.number(self.sizes.epsilon)))
        weight = graph.constant(f"{name}.weight", self.weights(f"{name}.weight"))
        return graph.add("Mul", graph.add("Div", x, root), weight)

    def activation(self, x: str) -> str:
        return activate(self.graph, x, self._act)

    def table(self, name: str) -> str:
        """An embedding table as a constant."""
        return self.graph.constant(f"{name}.weight", self.weights(f"{name}.weight"))

    def looked_up(self, name: str, ids: str) -> str:
        return self.graph.add("Gather", self.table(name), ids, axis=0)

    def split(self, x: str, heads: int, each: int, order: tuple[int, ...] = (0, 2, 1, 3)) -> str:
        """[b, s, heads·each] → [b, heads, s, each], or another order of the axes."""
        parted = self.graph.add("Reshape", x, self.graph.numbers(0, 0, heads, each))
        return self.graph.add("Transpose", parted, perm=list(order))

    def mixed(self, query: str, key: str, value: str, bias: str, scale: float, width: int) -> str:
        """softmax(q·kᵀ·scale + bias)·v of heads [b, heads, s, d] → [b, s, width]."""
        graph = self.graph
        turned = graph.add("Transpose", key, perm=[0, 1, 3, 2])
        scores = graph.add("MatMul", graph.add("Mul", query, graph.number(scale)), turned)
        return self.weighed(graph.add("Add", scores, bias), value, width)

    def weighed(self, scores: str, value: str, width: int) -> str:
        """softmax(scores)·v: scores [b, heads, s, s], `value` [b, heads, s, d] → [b, s, width]."""
        graph = self.graph
        shares = graph.add("Softmax", scores, axis=-1)
        mixed = graph.add("Transpose", graph.add("MatMul", shares, value), perm=[0, 2, 1, 3])
        return graph.add("Reshape", mixed, graph.numbers(0, 0, width))


def known_activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise SetupError(f"config.json: the activation {name!r} is not one of {', '.join(ACTIVATIONS)}")
    return name


def activate(graph: Graph, x: str, name: str) -> str:
    """An activation as `transformers.activations` computes it."""
    if name == "gelu":
        return graph.add("Gelu", x, approximate="none")
    if name in TANH_GELU:
        return graph.add("Gelu", x, approximate="tanh")
    if name in ("silu", "swish"):
        return graph.add("Mul", x, graph.add("Sigmoid", x))
    if name == "quick_gelu":
        return graph.add("Mul", x, graph.add("Sigmoid", graph.add("Mul", x, graph.number(QUICK_GELU))))
    return x if name == "linear" else graph.add({"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}[name], x)


def length(graph: Graph) -> str:
    """How many tokens the batch's rows are padded to, INT64 [1]."""
    return graph.add("Shape", "input_ids", start=1, end=2)


def distances(graph: Graph, size: str) -> str:
    """Query − key position, INT64 [s, s]. `size` INT64 [1]."""
    scalar = graph.add("Squeeze", size, graph.numbers(0))
    places = graph.add("Range", graph.scalar(0), scalar, graph.scalar(1))
    queries = graph.add("Unsqueeze", places, graph.numbers(1))
    return graph.add("Sub", queries, graph.add("Unsqueeze", places, graph.numbers(0)))


def forbid(graph: Graph, bias: str, allowed: str) -> str:
    """`bias` [b, 1, 1, s] plus what keeps queries from keys that are not allowed, BOOL [s, s] → [b, 1, s, s]."""
    hidden = graph.add("Cast", graph.add("Not", allowed), to=1)
    return graph.add("Add", bias, graph.add("Mul", hidden, graph.number(MASKED)))


class Rotary:
    """Rotary positions (Su et al. 2021), in the halves form of GPT-NeoX that `transformers` uses."""

    def __init__(self, graph: Graph, size: str, each: int, theta: float, longest: int, name: str) -> None:
        # In FP64, rounded once: an error of one bit in a frequency is one of 5e-4 radians at position 8,192.
        steps = np.arange(0, each, 2, dtype=np.float64) / each
        frequencies = (1.0 / theta**steps).astype(np.float32)
        angles = np.arange(longest, dtype=np.float32)[:, None] * frequencies
        whole = np.concatenate([angles, angles], axis=1).astype(np.float64)
        self._graph = graph
        self._half = each // 2
        self._cos = self._cut(np.cos(whole), size, f"{name}.cos")
        self._sin = self._cut(np.sin(whole), size, f"{name}.sin")

    def turned(self, x: str) -> str:
        """`x` FP32 [b, heads, s, d], turned by its positions."""
        graph, half = self._graph, self._half
        first = graph.add("Slice", x, graph.numbers(0), graph.numbers(half), graph.numbers(3))
        second = graph.add("Slice", x, graph.numbers(half), graph.numbers(2 * half), graph.numbers(3))
        swapped = graph.add("Concat", graph.add("Neg", second), first, axis=-1)
        return graph.add("Add", graph.add("Mul", x, self._cos), graph.add("Mul", swapped, self._sin))

    def _cut(self, table: Array, size: str, name: str) -> str:
        whole = self._graph.constant(name, table.astype(np.float32))
        return self._graph.add("Slice", whole, self._graph.numbers(0), size, self._graph.numbers(0))


def rotary_theta(config: Config, default: float | None = None) -> float:
    """The base of rotary frequencies, from `rope_parameters` (transformers 5) or `rope_theta`; plain rotary only."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(parameters, dict) or parameters.get("rope_type", parameters.get("type", "default")) != "default":
        raise config.error("rope_parameters", "only plain rotary positions can be built (rope_type default)")
    theta = parameters.get("rope_theta") or config.get("rope_theta") or default
    if not isinstance(theta, (int, float)):
        raise config.error("rope_theta", "missing")
    return float(theta)
