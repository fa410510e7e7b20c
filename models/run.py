"""Rows → outputs by ONNX Runtime, offline: the session that the builds measure with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnxruntime

from foreseen.manifest import ModelSignature
from foreseen.nouns import Row
from foreseen.rows import RowOutputs, split_outputs, stack

SESSION_CONFIG = {"session.x64quantprecision": "1"}
"""Row-wise int8 is u8s8: without this a processor without VNNI saturates 16-bit sums (cosine 0.978 instead of 0.9992).
On VNNI the bits are unchanged. The serving session sets the same."""


class Session:
    """A loaded graph. `threads` is intra-op; inter-op is sequential, as at serving time."""

    def __init__(self, graph: Path | bytes, signature: ModelSignature, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        for name, value in SESSION_CONFIG.items():
            options.add_session_config_entry(name, value)
        model = graph if isinstance(graph, bytes) else str(graph)
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._signature = signature

    def run(self, rows: Sequence[Row]) -> list[RowOutputs]:
        """One batch, padded to its longest row."""
        feeds = stack(rows, self._signature)
        names = [output.name for output in self._signature.outputs]
        outputs = dict(zip(names, self._session.run(names, feeds), strict=True))
        return split_outputs(outputs, rows, self._signature)

    def alone(self, rows: Sequence[Row]) -> list[RowOutputs]:
        """Every row in a run of its own."""
        return [self.run([row])[0] for row in rows]
