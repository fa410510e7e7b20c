"""Rows → outputs by ONNX Runtime, offline: the session that the builds measure with."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import onnxruntime

from foreseen.errors import SetupError
from foreseen.inference import gpu
from foreseen.inference.session import aligned, decoded, encoded, session_options
from foreseen.modelspec.manifest import Manifest, ModelSignature, Precision
from foreseen.modelspec.row_outputs import RowOutputs, firsts_of, split_outputs, whole_outputs
from foreseen.modelspec.rows import row_count, stack, whole_row
from foreseen.modelspec.shapes import Shapes, batches, neutral_row
from foreseen.types import Array, Row

Provider = Literal["cpu", "cuda"]
_providers: list[str | tuple[str, dict[str, str]]] = ["CPUExecutionProvider"]


def measure_on(provider: Provider) -> None:
    """Run later sessions of this process on that provider: a report is about the device that serves the model."""
    if provider == "cuda":
        gpu.fix_workspace()
        gpu.load_libraries()
        chain = ("CUDAExecutionProvider", "CPUExecutionProvider")
        if chain[0] not in onnxruntime.get_available_providers():
            raise SetupError("--provider cuda: this onnxruntime has no CUDA provider; install the extra foreseen[gpu]")
        _providers[:] = gpu.providers(chain, graphs=False)
    else:
        _providers[:] = ["CPUExecutionProvider"]


class GraphSession:
    """A loaded graph with the options that the serving session gives its precision."""

    def __init__(self, graph: Path | bytes, signature: ModelSignature, precision: Precision, threads: int = 1) -> None:
        self._fixed: tuple[Manifest, Shapes, Row] | None = None
        self._is_single = False
        model = graph if isinstance(graph, bytes) else str(graph)
        self._session = onnxruntime.InferenceSession(model, session_options(precision, threads), providers=_providers)
        self.signature = signature

    def of(self, signature: ModelSignature) -> GraphSession:
        """The same loaded graph under another signature."""
        other = copy.copy(self)
        other.signature = signature
        return other

    def run(self, rows: Sequence[Row]) -> list[RowOutputs]:
        """One batch, padded to its longest row. Requests that cannot be cut into rows run one after the other."""
        if not self.signature.has_rows:
            return [self._whole(row) for row in rows]
        if self._fixed is not None:
            return self._run_fixed(rows, *self._fixed)
        if self._is_single:
            return [split_outputs(self.outputs(self.feeds([row])), [row], self.signature)[0] for row in rows]
        return split_outputs(self.outputs(self.feeds(rows)), rows, self.signature)

    def in_shapes(self, manifest: Manifest, shapes: Shapes) -> GraphSession:
        """The same loaded graph, run in batches of these shapes."""
        other = copy.copy(self)
        other.set_shapes(manifest, shapes)
        return other

    def set_shapes(self, manifest: Manifest, shapes: Shapes) -> None:
        """Run in these shapes from now on."""
        self._fixed = (manifest, shapes, neutral_row(manifest)) if shapes.kind == "fixed" else None
        self._is_single = shapes.kind == "single"

    def _run_fixed(self, rows: Sequence[Row], manifest: Manifest, shapes: Shapes, neutral: Row) -> list[RowOutputs]:
        answered: dict[int, RowOutputs] = {}
        for places, length, count in batches(rows, manifest, shapes):
            batch = [rows[at] for at in places] + [neutral] * (count - len(places))
            outputs = self.outputs(stack(batch, self.signature, length))
            answered.update(zip(places, split_outputs(outputs, batch, self.signature, length), strict=False))
        return [answered[at] for at in range(len(rows))]

    def feeds(self, rows: Sequence[Row]) -> dict[str, Array]:
        """What the graph is fed for a batch of rows, or for the one request that cannot be cut into rows."""
        if self.signature.has_rows:
            return stack(rows, self.signature)
        (row,) = rows
        keyed = {spec.name: tensor for spec, tensor in zip(self.signature.keyed, row.tensors, strict=True)}
        whole = whole_row(keyed, self.signature)
        return {spec.name: tensor for spec, tensor in zip(self.signature.inputs, whole.tensors, strict=True)}

    def _whole(self, row: Row) -> RowOutputs:
        feeds = self.feeds([row])
        firsts = firsts_of(self.signature, row_count([*feeds.values()], self.signature.inputs))
        return whole_outputs(self.outputs(feeds), self.signature, firsts)

    def outputs(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The graph's outputs for these tensors, of any shape."""
        names = [output.name for output in self.signature.outputs]
        placed = {n: decoded(a, n) if a.dtype.kind == "O" else aligned(a) for n, a in feeds.items()}
        arrays = self._session.run(names, placed)
        return {name: encoded(array) for name, array in zip(names, arrays, strict=True)}

    def alone(self, rows: Sequence[Row]) -> list[RowOutputs]:
        """Every row in a run of its own."""
        return [self.run([row])[0] for row in rows]

    def nodes(self) -> dict[str, int]:
        """Execution provider → number of nodes."""
        counts: dict[str, int] = {}
        for part in self._session.get_provider_graph_assignment_info():
            counts[part.ep_name] = counts.get(part.ep_name, 0) + len(part.get_nodes())
        return counts
