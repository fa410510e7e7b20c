"""A built artifact → a session that answers rows. The only import of onnxruntime at serving time.

`run` is safe to call from several threads at once: one session with one intra-op thread, called from N threads, is N
instances that share their weights (measured on 2 cores with MiniLM int8: two one-thread instances give 399 rows/s,
the best two-thread session 360).
"""

from __future__ import annotations

import base64
import functools
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
import structlog
from msgspec import Struct

from foreseen.errors import BadInput, SetupError
from foreseen.inference import gpu
from foreseen.inference.processor import processor_family
from foreseen.inference.watchdog import Watchdog
from foreseen.modelspec.artifact import Record, model_digest, read_file, read_record
from foreseen.modelspec.manifest import Manifest, ModelInput, ModelOutput
from foreseen.modelspec.rows import RowOutputs, split, split_outputs, stack, stack_outputs
from foreseen.types import Array, Row

_log = structlog.get_logger()

Provider = Literal["cpu", "cuda", "tensorrt"]

_CHAINS: dict[Provider, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}

_ONNX_TYPES = {
    "BOOL": "tensor(bool)",
    "UINT8": "tensor(uint8)",
    "UINT16": "tensor(uint16)",
    "UINT32": "tensor(uint32)",
    "UINT64": "tensor(uint64)",
    "INT8": "tensor(int8)",
    "INT16": "tensor(int16)",
    "INT32": "tensor(int32)",
    "INT64": "tensor(int64)",
    "FP16": "tensor(float16)",
    "FP32": "tensor(float)",
    "FP64": "tensor(double)",
    "BYTES": "tensor(string)",
}
"""BF16 is missing on purpose: ONNX Runtime's Python side takes no bfloat16 arrays; cast inside the graph instead."""

_SATURATION_PROBE = (
    "eNrj4LB6KsAlzcWYyMVYzsVYJcRYqcTrm1jiW5rjmVeSmp5aJMSYrtUjwOHAoSDA7MRY7tUgUD8KRsEoGA"
    "WjYBSMghEHtDgEmJwYq7wYG6JEgA0HIX4uXg4mIU4uZiHGPC4mDockoGglWJQNIargxMLFIMALAEN5CrM="
)
"""A graph of one node, compressed: see `saturates`. A test makes it again with `onnx.helper` and compares."""


class SessionPlan(Struct, frozen=True):
    """How a session is to run: what the settings say, without where they come from."""

    provider: Provider = "cpu"
    threads: int = 1
    """Intra-op threads of one run; 0 leaves it to ONNX Runtime (all cores)."""
    fallback: Literal["refuse", "warn"] = "refuse"
    """What unexpected nodes on the CPU are when a GPU provider was asked for."""
    hung_seconds: float = 60.0
    """A run that takes longer is told to stop."""
    hung_grace_seconds: float = 5.0
    """One that goes on for so much longer takes the process with it."""


def session_options(precision: str, threads: int) -> ort.SessionOptions:
    """The options that a precision is run with; the offline tools measure with the same.

    8-bit precisions get `session.x64quantprecision` where this processor needs it: it swaps the u8s8 kernels for u8u8
    ones, which is right where 16-bit sums saturate (cosine 0.978 → 0.9992 on processors without VNNI) and 2.2 times
    slower for nothing elsewhere (6.99 instead of 4.73 ms for MiniLM at 1×64 tokens on VNNI, all bits equal).
    """
    return _options(threads, guarded=precision.startswith("int8") and saturates(guarded=False))


def _options(threads: int, *, guarded: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 3
    # One memory pattern would be kept per shape ever seen (rows × lengths, thousands): without them memory is bounded.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if guarded:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


class Session:
    """One loaded model. Made by `open_session`."""

    def __init__(self, manifest: Manifest, record: Record, graph: ort.InferenceSession, plan: SessionPlan) -> None:
        self.manifest = manifest
        self.record = record
        self.provider: str = graph.get_providers()[0]
        self.nodes = _nodes(graph)
        """Execution provider → (op type, node name) of the graph's nodes after basic optimizations."""
        self._graph = graph
        self._plan = plan
        self._names = [output.name for output in manifest.model.outputs]
        self._strings = [i.name for i in manifest.model.inputs if i.datatype == "BYTES"]
        self._bound = plan.provider != "cpu" and not self._strings and not _gives_strings(manifest)
        self._watchdog = Watchdog(plan.hung_seconds, plan.hung_grace_seconds)
        self.digest = model_digest(record.artifact, self.runtime_identity())

    def __repr__(self) -> str:
        return f"<Session {self.manifest.name} {self.record.artifact.precision} on {self.provider}>"

    def runtime_identity(self) -> tuple[str, ...]:
        """What beside the artifact decides an answer's bits; empty where the manifest says `portable`.

        The number of threads is left out of exact models, whose bits it does not change (measured with 1 to 4).
        """
        if self.manifest.portable:
            return ()
        family: tuple[str, ...] = (processor_family(),)
        if self._plan.provider != "cpu":
            family = (gpu.device_family(), *gpu.libraries(Path("/proc/self/maps").read_text().splitlines()))
        threads = "" if self.manifest.exact else f" threads={self._plan.threads}"
        return (
            "+".join(self._graph.get_providers()),
            *family,
            f"onnxruntime {ort.__version__}",
            f"optimization=all deterministic x64quantprecision=where-needed{threads}",
        )

    def run(self, rows: Sequence[Row]) -> list[RowOutputs]:
        """The outputs of every row, computed as one batch padded to the longest.

        Raises ModelFailed where outputs are not what the signature says or not finite, BadInput for BYTES that are
        not UTF-8 (ONNX strings are), and whatever ONNX Runtime raises.
        """
        if self.manifest.rows == "together":
            return [self._run_together(row) for row in rows]
        return self._run_batch(rows)

    def _run_together(self, row: Row) -> RowOutputs:
        """A row that is a whole request: a tensor per input, derived ones too, with batch axis; so its outputs."""
        signature = self.manifest.model
        tensors = {spec.name: tensor for spec, tensor in zip(signature.inputs, row.tensors, strict=True)}
        answered = self._run_batch(split(tensors, signature))
        stacked = stack_outputs(answered, signature)
        return tuple(stacked[name] for name in self._names)

    def _run_batch(self, rows: Sequence[Row]) -> list[RowOutputs]:
        signature = self.manifest.model
        feeds = stack(rows, signature)
        for name in self._strings:
            feeds[name] = _decoded(feeds[name], name)
        options = ort.RunOptions()

        def stop() -> None:
            options.terminate = True

        with self._watchdog.watch(stop):
            if self._bound:
                arrays = gpu.run_bound(self._graph, self._names, feeds, options)
            else:
                arrays = self._graph.run(self._names, feeds, options)
        outputs = {name: _encoded(array) for name, array in zip(self._names, arrays, strict=True)}
        return split_outputs(outputs, rows, signature)

    def close(self) -> None:
        """Stop the watchdog. Runs in progress go on unwatched."""
        self._watchdog.close()


def open_session(manifest: Manifest, data: Path, plan: SessionPlan) -> Session:
    """Load the artifact in force. Raises SetupError in one line that says what to do."""
    record = read_record(data, manifest.name)
    chain = _CHAINS[plan.provider]
    missing = [name for name in chain if name not in ort.get_available_providers()]
    if missing:
        raise SetupError(
            f"provider {plan.provider!r}: this onnxruntime has no {missing[0]}; "
            "install the extra foreseen[gpu] instead of foreseen[cpu], or take provider cpu"
        )
    options = session_options(record.artifact.precision, plan.threads)
    if plan.provider != "cpu":
        gpu.load_libraries()
    content = read_file(data, record.artifact, record.artifact.graph)
    try:
        graph = ort.InferenceSession(content, options, providers=list(chain))
    except Exception as error:  # noqa: BLE001 -- ONNX Runtime has no common error class
        raise SetupError(f"model {manifest.name!r}: ONNX Runtime cannot load the artifact: {error}") from None
    graph.disable_fallback()  # it would change the provider, hence the bits, under a digest that names the old one
    _check_signature(manifest, graph)
    if graph.get_providers()[0] != chain[0]:
        raise SetupError(f"provider {plan.provider!r}: {chain[0]} did not start (driver or libraries are missing)")
    session = Session(manifest, record, graph, plan)
    if plan.provider != "cpu":
        _check_fallback(session, plan)
    _log.info(
        "session opened",
        model=manifest.name,
        precision=record.artifact.precision,
        provider=session.provider,
        nodes={provider: len(nodes) for provider, nodes in session.nodes.items()},
        digest=session.digest[:8],
    )
    return session


@functools.cache
def saturates(*, guarded: bool) -> bool:
    """Whether 8-bit products go wrong on this processor, with (`guarded`) or without `session.x64quantprecision`.

    The probe is a graph `y = MatMulInteger(a − 128, w)` with all of `w` 127: on the largest `a` pairs of products sum
    to more than 16 bits hold, which is where processors without VNNI go wrong.
    """
    content = zlib.decompress(base64.b64decode(_SATURATION_PROBE))
    graph = ort.InferenceSession(content, _options(1, guarded=guarded), providers=["CPUExecutionProvider"])
    largest: Array = np.full((2, 64), 255, np.uint8)
    (products,) = graph.run(None, {"a": largest})
    return bool((products != 127 * 127 * 64).any())


def _nodes(graph: ort.InferenceSession) -> dict[str, list[tuple[str, str]]]:
    nodes: dict[str, list[tuple[str, str]]] = {}
    for part in graph.get_provider_graph_assignment_info():
        nodes.setdefault(part.ep_name, []).extend((node.op_type, node.name) for node in part.get_nodes())
    return nodes


def _check_signature(manifest: Manifest, graph: ort.InferenceSession) -> None:
    """The graph has the manifest's inputs and outputs, by name and type. Raises SetupError."""
    sides: tuple[tuple[str, Sequence[ModelInput | ModelOutput], list[Any]], ...] = (
        ("inputs", manifest.model.inputs, graph.get_inputs()),
        ("outputs", manifest.model.outputs, graph.get_outputs()),
    )
    for side, specs, nodes in sides:
        have = {node.name: node.type for node in nodes}
        for spec in specs:
            wanted = _ONNX_TYPES.get(spec.datatype)
            if wanted is None:
                raise SetupError(f"model.{side}.{spec.name}: ONNX Runtime takes no {spec.datatype}; cast in the graph")
            if have.get(spec.name) != wanted:
                raise SetupError(f"model.{side}.{spec.name}: the graph has {have.get(spec.name)}, not {wanted}")
        if side == "inputs" and set(have) != {spec.name for spec in specs}:
            raise SetupError(f"model.inputs: the graph takes {sorted(have)}")


def _check_fallback(session: Session, plan: SessionPlan) -> None:
    left = gpu.unexpected(session.nodes)
    if not left:
        return
    if plan.fallback == "refuse":
        raise SetupError(
            f"model {session.manifest.name!r}: {len(left)} nodes fell back to the CPU, e.g. {', '.join(left[:5])}; "
            "build another precision (fp16) or set the fallback to warn"
        )
    _log.warning("nodes on the CPU", model=session.manifest.name, count=len(left), nodes=left)


def _gives_strings(manifest: Manifest) -> bool:
    return any(output.datatype == "BYTES" for output in manifest.model.outputs)


def _decoded(array: Array, name: str) -> Array:
    """`bytes` objects as the `str` objects that ONNX Runtime takes."""
    decoded: Array = np.empty(array.shape, object)
    try:
        decoded.ravel()[:] = [item.decode("utf-8") for item in array.ravel()]
    except UnicodeDecodeError:
        raise BadInput(f"inputs.{name}: ONNX strings are UTF-8") from None
    return decoded


def _encoded(array: Array) -> Array:
    """The `str` objects that ONNX Runtime gives as `bytes`; other arrays as they are."""
    if array.dtype != object:
        return array
    encoded: Array = np.empty(array.shape, object)
    encoded.ravel()[:] = [item.encode("utf-8") for item in array.ravel()]
    return encoded
