"""A graph and its draft manifest → how its rows may be run and cached, by experiment.

1. The same row alone, twice: if the answers differ, the model is random or keeps state, and is not cached.
2. Rows of one size together, without padding: if they change each other by more than rounding, they belong together (a
   softmax over the batch, a centred batch, a time axis in the place of the batch).
3. A row alone but padded: if that changes its answer, rows run unpadded.

A difference counts as rounding when it is small beside the row's own answer and does not grow when its batch-mates are
made a thousand times larger.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from msgspec import Struct
from onnx import ModelProto, NodeProto, TensorProto

from foreseen.models.graphs import onnx_file
from foreseen.models.measure.check import batches
from foreseen.models.measure.graph_run import GraphSession
from foreseen.models.measure.samples import equal_samples
from foreseen.modelspec.manifest import Manifest
from foreseen.modelspec.row_outputs import RowOutputs, split_outputs
from foreseen.types import Array, Row

Coupling = Literal["none", "rounding", "real"]

PROBE_SECONDS = 40.0  # a graph that would take longer is asked less
LEAST_SHARE = 1e-3  # of the largest answer of all rows: what a row's own answer counts as at least
TOLERANCE, HALF_TOLERANCE, QUANTIZED_TOLERANCE = 1e-3, 3e-2, 0.3  # of the row's own answer
RANDOM_OPS = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
)
QUANTIZED_OPS = frozenset(("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"))
"""They take one scale for a whole tensor: a row rounds differently with batch-mates, and correctly alone."""


class Effort(Struct, frozen=True):
    """How many runs the experiments may take."""

    rows: int = 12
    """Of one size in a group."""
    groups: int = 4
    scales: tuple[float, ...] = (1.0, 0.01, 1000.0)
    """Of the numbers of batch-mates."""
    repeats: int = 3
    samples: int = 32

    @property
    def runs(self) -> int:
        """About how many rows are run."""
        return self.groups * len(self.scales) * 5 * self.rows + (2 * self.repeats + 4) * self.samples


EFFORTS = (Effort(), Effort(8, 2, (1.0, 1000.0), 1, 12), Effort(3, 1, (1.0, 1000.0), 1, 4))


class ProbeVerdict(Struct, frozen=True):
    """The result of the experiments."""

    repeatable: bool = True
    """Whether the same row alone gives the same bits twice."""
    mates: Coupling = "none"
    """How rows of one size change each other."""
    padding: Coupling = "none"
    difference: float = 0.0
    """The largest change of any element, in all experiments with batch-mates."""
    comparisons: int = 0
    random_op: str | None = None


class Found(Struct, frozen=True):
    """Everything that the graph and the experiments on it have shown."""

    manifest: Manifest
    verdict: ProbeVerdict
    why: str = ""
    """Why rows have no axis, in words."""


def probe(sessions: Sequence[GraphSession], manifest: Manifest, rows: Sequence[Row], graph: ModelProto) -> ProbeVerdict:
    """`sessions` are two of one graph, since a seed may be a session's; `rows` are samples of different sizes.
    What rows do to each other is measured where the manifest has them run together."""
    operator = random_op(graph)
    session, tolerance = sessions[0], tolerance_of(graph)
    effort = _effort(session, rows[0])
    rows = rows[: effort.samples]
    if operator is not None or not _repeatable(sessions, rows, effort.repeats):
        return ProbeVerdict(repeatable=False, random_op=operator)
    if manifest.batching.single or manifest.rows == "together":
        return ProbeVerdict()
    mates = _Worst(tolerance)
    for group, scale in itertools.product(range(effort.groups), effort.scales):
        _meet(session, manifest, group, scale, effort.rows, mates)
    padding = _Worst(tolerance)
    if mates.coupling() != "real":
        _pad(session, rows, padding)
    both = max(mates.difference, padding.difference)
    return ProbeVerdict(True, mates.coupling(), padding.coupling(), both, mates.count + padding.count)


def _effort(session: GraphSession, row: Row) -> Effort:
    """The most that can be asked within PROBE_SECONDS, or the least there is."""
    feeds = session.feeds([row])
    session.outputs(feeds)
    began = time.perf_counter()
    session.outputs(feeds)
    seconds = time.perf_counter() - began
    return next((effort for effort in EFFORTS if effort.runs * seconds < PROBE_SECONDS), EFFORTS[-1])


class _Worst:
    """The worst of many comparisons of a row alone with the same row in a batch."""

    def __init__(self, tolerance: float) -> None:
        self.difference, self.count = 0.0, 0
        self._tolerance, self._is_real = tolerance, False

    def add(self, alone: RowOutputs, met: RowOutputs, least: Sequence[float]) -> None:
        """`least` is a lower bound of each output's size, against division by almost zero."""
        self.count += 1
        for a, b, small in zip(alone, met, least, strict=True):
            gap, share = _gap(a, b, small)
            self.difference = max(self.difference, gap)
            self._is_real |= share > self._tolerance

    def coupling(self) -> Coupling:
        return "real" if self._is_real else "rounding" if self.difference else "none"


def _gap(a: Array, b: Array, least: float) -> tuple[float, float]:
    """The largest absolute difference, and its share of the row's own answer. Non-numeric values are equal or differ
    entirely."""
    if a.shape != b.shape:
        return np.inf, np.inf
    if a.dtype.kind != "f":
        equal = a.tolist() == b.tolist() if a.dtype.kind == "O" else a.tobytes() == b.tobytes()
        return (0.0, 0.0) if equal else (1.0, 1.0)
    if a.tobytes() == b.tobytes():
        return 0.0, 0.0
    x, y = a.astype(np.float64), b.astype(np.float64)
    if not np.array_equal(np.isfinite(x), np.isfinite(y)):
        return np.inf, np.inf
    finite = np.isfinite(x)
    gap = float(np.abs(x - y, where=finite, out=np.zeros_like(x)).max(initial=0.0))
    own = float(np.abs(x, where=finite, out=np.zeros_like(x)).max(initial=0.0))
    return max(gap, 5e-324), gap / max(own, least, 1e-30)


def _repeatable(sessions: Sequence[GraphSession], rows: Sequence[Row], repeats: int) -> bool:
    """Whether rows run alone give the same bits again, in the same and in another session, with other runs in
    between."""
    first = [_bits(sessions[0], row) for row in rows]
    again = ([_bits(session, row) for row in rows] for session in sessions for _ in range(repeats))
    return all(one == first for one in again)


def _bits(session: GraphSession, row: Row) -> list[object]:
    outputs = session.outputs(session.feeds([row])).values()
    return [array.tolist() if array.dtype.kind == "O" else array.tobytes() for array in outputs]


def _meet(session: GraphSession, manifest: Manifest, group: int, scale: float, count: int, worst: _Worst) -> None:
    """Rows of one size alone, then in batches: every place of a batch, batches of several sizes, a row beside itself,
    mates that are larger and smaller."""
    own = equal_samples(manifest, count, seed=group)
    mates = equal_samples(manifest, count, seed=group + 100, scale=scale, like=own[0])
    alone = [_answers(session, [row])[0] for row in own]
    least = _least(alone)
    pairs = [[i, i] for i in range(2)] + [[i] for i in range(2)] if count > 4 else []
    for members in (*batches(len(own), seed=group), *pairs):
        company = [mates[i % len(mates)] for i in range(1 + group)]
        together = _answers(session, [*(own[i] for i in members), *company, *(own[i] for i in reversed(members))])
        for i, met in zip(members, together, strict=False):
            worst.add(alone[i], met, least)
        for i, met in zip(members, reversed(together), strict=False):
            worst.add(alone[i], met, least)


def _pad(session: GraphSession, rows: Sequence[Row], worst: _Worst) -> None:
    """Every row alone against the same row padded to the largest, with no other row in the batch."""
    largest = max(rows, key=lambda row: sum(tensor.size for tensor in row.tensors))
    alone = [_answers(session, [row])[0] for row in rows]
    least = _least(alone)
    for row, own in zip(rows, alone, strict=True):
        fed = session.feeds([row, largest])
        outputs = session.outputs({name: array[:1] for name, array in fed.items()})
        padded = _cut(outputs, [row, largest], session)
        worst.add(own, padded, least)


def _answers(session: GraphSession, rows: Sequence[Row]) -> list[RowOutputs]:
    """As the session answers, but for NaN and infinity, which are compared like other answers."""
    return _split(session.outputs(session.feeds(rows)), rows, session)


def _cut(outputs: Mapping[str, Array], rows: Sequence[Row], session: GraphSession) -> RowOutputs:
    """The first row's own outputs, of a run that was padded to the largest of `rows` but held the first only."""
    twice = {name: np.concatenate([array, array]) for name, array in outputs.items()}
    return _split(twice, rows, session)[0]


def _split(outputs: Mapping[str, Array], rows: Sequence[Row], session: GraphSession) -> list[RowOutputs]:
    finite = {name: _finite(array) if array.dtype.kind == "f" else array for name, array in outputs.items()}
    return split_outputs(finite, rows, session.signature)


def _finite(array: Array) -> Array:
    """NaN and infinity become numbers that no model returns, since `split_outputs` refuses them. A generated batch-mate
    may be too large for the graph, which proves nothing about the other rows."""
    if np.isfinite(array).all():
        return array
    most = float(np.finfo(array.dtype).max)
    return np.nan_to_num(array, nan=most / 2, posinf=most, neginf=-most)


def _least(alone: Sequence[RowOutputs]) -> list[float]:
    """A small share of the largest answer, for every output."""
    columns = zip(*alone, strict=True)
    return [
        LEAST_SHARE * max((float(np.abs(a.astype(np.float64)).max(initial=0.0)) for a in column), default=0.0)
        if column[0].dtype.kind == "f"
        else 0.0
        for column in columns
    ]


def tolerance_of(graph: ModelProto) -> float:
    """How much of a row's own answer rounding may change, by how coarse the graph's numbers are."""
    operators = {node.op_type for node in nodes_of(graph)}
    if operators & QUANTIZED_OPS:
        return QUANTIZED_TOLERANCE
    half = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
    return HALF_TOLERANCE if any(tensor.data_type in half for tensor in onnx_file.tensors(graph)) else TOLERANCE


def random_op(graph: ModelProto) -> str | None:
    """The first operator anywhere in the graph that draws at random; a dropout draws in training mode."""
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    for node in nodes_of(graph):
        if node.op_type in RANDOM_OPS:
            return node.op_type
        mode = node.input[2] if node.op_type == "Dropout" and len(node.input) > 2 else ""
        if mode and (mode not in constants or any(constants[mode].raw_data) or any(constants[mode].int32_data)):
            return "Dropout"
    return None


def nodes_of(graph: ModelProto) -> Iterator[NodeProto]:
    """Every node of the graph, its subgraphs and its functions."""
    for function in graph.functions:
        yield from _nested(function.node)
    yield from _nested(graph.graph.node)


def _nested(nodes: Sequence[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nested(graph.node)
