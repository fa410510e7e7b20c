"""Token vectors and a mask → one normalised vector per row, the same bits whatever batch the row is in.

Of all operators of an encoder in ONNX Runtime, pooling is the one whose bits depend on batch-mates: `ReduceSum` over
the sequence in every batch, `MatMul(mask[b,1,s], x)` for lengths ≡ 3 mod 4 (docs/architecture.md, Exactness). With two
rows of mask
the MatMul takes the general matrix kernel, whose sums run in the order of the sequence: row 0 of that is exact.
"""

from __future__ import annotations

from collections.abc import Callable

from foreseen.errors import SetupError
from foreseen.models.graphs.graph import Graph
from foreseen.modelspec.manifest import Manifest

Sum = Callable[[Graph, str, str], str]
"""(graph, tokens FP32 [b, s, h], mask FP32 [b, s]) → Σ over unmasked tokens, FP32 [b, h]."""

LEAST_NORM = 1e-12  # torch.nn.functional.normalize's


def exact_sum(graph: Graph, tokens: str, mask: str) -> str:
    """The `Sum` whose bits depend only on the row."""
    doubled = graph.add("Expand", graph.add("Unsqueeze", mask, graph.numbers(1)), graph.numbers(1, 2, 1))
    sums = graph.add("MatMul", doubled, tokens)
    first = graph.add("Slice", sums, graph.numbers(0), graph.numbers(1), graph.numbers(1))
    return graph.add("Squeeze", first, graph.numbers(1))


def reduce_sum(graph: Graph, tokens: str, mask: str) -> str:
    """The `Sum` that exporters write. Its bits depend on the length that a row is padded to."""
    masked = graph.add("Mul", tokens, graph.add("Unsqueeze", mask, graph.numbers(2)))
    return graph.add("ReduceSum", masked, graph.numbers(1), keepdims=0)


SUMS: dict[str, Sum] = {"exact": exact_sum, "reduce-sum": reduce_sum}


def of(manifest: Manifest) -> Sum:
    """The pool of `source.options.pool`, by default the exact one. Raises SetupError."""
    name = str(manifest.source.options.get("pool", "exact")) if manifest.source else "exact"
    if name not in SUMS:
        raise SetupError(f"source.options.pool: {name!r} is not one of {', '.join(SUMS)}")
    return SUMS[name]


def mean_normalised(graph: Graph, sums: str, mask: str, output: str) -> str:
    """Sums → mean over the mask's count → length 1. `sums` FP32 [b, h], `mask` FP32 [b, s] → `output` FP32 [b, h]."""
    count = graph.add("ReduceSum", mask, graph.numbers(1), keepdims=1)  # of 0 and 1: exact in any order
    mean = graph.add("Div", sums, count)
    norm = graph.add("ReduceL2", mean, graph.numbers(1), keepdims=1)
    return graph.add("Div", mean, graph.add("Max", norm, graph.number(LEAST_NORM)), name=output)
