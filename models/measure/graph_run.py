"""Rows → outputs by ONNX Runtime, offline: the session that the builds measure with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnxruntime

from foreseen.inference.session import session_options
from foreseen.modelspec.manifest import ModelSignature, Precision
from foreseen.modelspec.rows import RowOutputs, split_outputs, stack
from foreseen.types import Row

PROVIDERS = ["CPUExecutionProvider"]


class GraphSession:
    """A loaded graph with the options that the serving session gives its precision."""

    def __init__(self, graph: Path | bytes, signature: ModelSignature, precision: Precision, threads: int = 1) -> None:
        model = graph if isinstance(graph, bytes) else str(graph)
        self._session = onnxruntime.InferenceSession(model, session_options(precision, threads), providers=PROVIDERS)
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
