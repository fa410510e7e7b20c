"""Rows → outputs by ONNX Runtime, offline: the session that the builds measure with."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from foreseen.manifest import ModelInput, ModelOutput, ModelSignature, Precision
from foreseen.nouns import Array, Row
from foreseen.rows import RowOutputs, split_outputs, stack
from inference.session import session_options
from models.graphs.graph import Graph, to_bytes

PROVIDERS = ["CPUExecutionProvider"]


class Session:
    """A loaded graph with the options that the serving session gives its precision."""

    def __init__(self, graph: Path | bytes, signature: ModelSignature, precision: Precision, threads: int = 1) -> None:
        model = graph if isinstance(graph, bytes) else str(graph)
        self._session = onnxruntime.InferenceSession(model, options(precision, threads), providers=PROVIDERS)
        self.signature = signature

    def run(self, rows: Sequence[Row]) -> list[RowOutputs]:
        """One batch, padded to its longest row."""
        feeds = stack(rows, self.signature)
        names = [output.name for output in self.signature.outputs]
        outputs = dict(zip(names, self._session.run(names, feeds), strict=True))
        return split_outputs(outputs, rows, self.signature)

    def alone(self, rows: Sequence[Row]) -> list[RowOutputs]:
        """Every row in a run of its own."""
        return [self.run([row])[0] for row in rows]

    def nodes(self) -> dict[str, int]:
        """Execution provider → number of nodes."""
        counts: dict[str, int] = {}
        for part in self._session.get_provider_graph_assignment_info():
            counts[part.ep_name] = counts.get(part.ep_name, 0) + len(part.get_nodes())
        return counts


def options(precision: Precision, threads: int) -> onnxruntime.SessionOptions:
    """As at serving time, but `session.x64quantprecision` only where the processor needs it.

    It swaps the u8s8 kernels for u8u8 ones, which is right where 16-bit sums saturate (cosine 0.978 → 0.9992) and
    2.2 times slower for nothing on VNNI: 6.99 instead of 4.73 ms for MiniLM at 1×64 tokens, all bits equal.
    """
    needed = precision if saturates() else "fp32"
    return session_options(needed, threads)


@functools.cache
def saturates() -> bool:
    """Whether this processor's u8s8 products go wrong by themselves: pairs of the largest overflow 16 bits."""
    graph = Graph()
    weight = graph.constant("w", np.full((64, 16), 127, np.int8))
    graph.add("MatMulInteger", "a", weight, name="y")
    signature = ModelSignature((ModelInput("a", "UINT8", ("rows", 64)),), (ModelOutput("y", "INT32", ("rows", 16)),))
    session = onnxruntime.InferenceSession(
        to_bytes(graph.model(signature)), session_options("fp32", 1), providers=PROVIDERS
    )
    largest: Array = np.full((8, 64), 255, np.uint8)
    (products,) = session.run(None, {"a": largest})
    return bool((products != 255 * 127 * 64).any())
