"""A built artifact → a session that answers rows. `session_opening.py` opens it.

`run` is safe to call from several threads at once: one session with one intra-op thread, called from N threads, is N
instances that share their weights (measured on 2 cores with MiniLM int8: two one-thread instances give 399 rows/s,
the best two-thread session 360).
"""

from __future__ import annotations

import base64
import functools
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort
import structlog
from msgspec import Struct
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from foreseen.errors import BadInput
from foreseen.inference import gpu
from foreseen.inference.graphs import Graphs
from foreseen.inference.processor import processor_family
from foreseen.inference.watchdog import Watchdog
from foreseen.modelspec.artifact import Record, model_digest
from foreseen.modelspec.manifest import Manifest
from foreseen.modelspec.row_outputs import RowOutputs, firsts_of, split_outputs, stack_outputs, whole_outputs
from foreseen.modelspec.rows import row_count, split, stack
from foreseen.modelspec.shapes import batches, neutral_row
from foreseen.types import Array, Row

_log = structlog.get_logger()

Provider = Literal["cpu", "cuda", "tensorrt"]


_SATURATION_PROBE = (
    "eNrj4LB6KsAlzcWYyMVYzsVYJcRYqcTrm1jiW5rjmVeSmp5aJMSYrtUjwOHAoSDA7MRY7tUgUD8KRsEoGA"
    "WjYBSMghEHtDgEmJwYq7wYG6JEgA0HIX4uXg4mIU4uZiHGPC4mDockoGglWJQNIargxMLFIMALAEN5CrM="
)
"""A graph of one node, compressed: see `saturates`. A test makes it again with `onnx.helper` and compares."""


_KERNEL_ERRORS = (InvalidArgument, Fail, RuntimeException)
_KERNEL = re.compile(r"while running (\w+) node")
ALIGNMENT_BYTES = 64
_NOT_THE_INPUT = ("alloc", "memory", "terminate flag", "CUDA", "CUDNN", "CUBLAS", "TensorRT")
"""Parts of error messages that do not concern the input."""


class SessionPlan(Struct, frozen=True):
    """How a session runs, from settings."""

    provider: Provider = "cpu"
    threads: int = 1
    """Intra-op threads of one run; 0 leaves it to ONNX Runtime (all cores)."""
    fallback: Literal["refuse", "warn"] = "refuse"
    """What unexpected nodes on the CPU mean with a GPU provider: an error or a warning."""
    hung_seconds: float = 60.0
    """A run that takes longer than this, in seconds, is told to stop."""
    hung_grace_seconds: float = 5.0
    """If it continues for this many more seconds, the process exits."""
    cuda_graphs: bool = True
    """Capture the runs of fixed shapes on CUDA, where the graph allows it."""


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

    def __init__(
        self,
        manifest: Manifest,
        record: Record,
        graph: ort.InferenceSession,
        plan: SessionPlan,
        *,
        has_graphs: bool = False,
    ) -> None:
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
        self.graphs = Graphs(gpu.CudaDevice(graph, self._names)) if has_graphs and self._bound else None
        """CUDA graphs of the fixed shapes; None on a CPU, in ragged batches, and where a graph cannot be captured."""
        self._watchdog = Watchdog(plan.hung_seconds, plan.hung_grace_seconds)
        self.shapes = record.shapes
        self._neutral = neutral_row(manifest) if self.shapes.kind == "fixed" else None
        identity = (self.shapes.identity,) if self.shapes.identity else ()
        self.digest = model_digest(record.artifact, (*self.runtime_identity(), *identity))

    def __repr__(self) -> str:
        return f"<Session {self.manifest.name} {self.record.artifact.precision} on {self.provider}>"

    def runtime_identity(self) -> tuple[str, ...]:
        """What decides an answer's bits beside the artifact; empty where the manifest says `portable`.

        The number of threads is left out of exact models, whose bits it does not change (measured with 1 to 4).
        """
        if self.manifest.portable:
            return ()
        family: tuple[str, ...] = (processor_family(),)
        if self._plan.provider != "cpu":
            family = (
                gpu.device_family(),
                gpu.DETERMINISM,
                *gpu.libraries(Path("/proc/self/maps").read_text().splitlines()),
            )
        threads = "" if self.manifest.exact else f" threads={self._plan.threads}"
        return (
            "+".join(self._graph.get_providers()),
            *family,
            f"onnxruntime {ort.__version__}",
            f"optimization=all deterministic x64quantprecision=where-needed{threads}",
        )

    def run(self, rows: Sequence[Row]) -> list[RowOutputs]:
        """The outputs of every row, computed as one batch padded to the longest, or in the record's fixed shapes.

        Raises ModelFailed if outputs do not match the signature or are not finite, BadInput for BYTES that are not
        UTF-8 (ONNX strings are), and whatever ONNX Runtime raises.
        """
        if self.manifest.rows == "together":
            return [self._run_together(row) for row in rows]
        return self._run_batch(rows) if self._neutral is None else self._run_fixed(rows, self._neutral)

    def _run_fixed(self, rows: Sequence[Row], neutral: Row) -> list[RowOutputs]:
        """Rows in batches of the fixed set, each filled up with the neutral row."""
        answered: dict[int, RowOutputs] = {}
        for places, length, count in batches(rows, self.manifest, self.shapes):
            batch = [rows[at] for at in places] + [neutral] * (count - len(places))
            answered.update(zip(places, self._run_batch(batch, length), strict=False))
        return [answered[at] for at in range(len(rows))]

    def _run_together(self, row: Row) -> RowOutputs:
        """A row that is a whole request: a tensor per input, derived ones too, with batch axis; so its outputs."""
        signature = self.manifest.model
        tensors = {spec.name: tensor for spec, tensor in zip(signature.inputs, row.tensors, strict=True)}
        if not signature.has_rows:
            firsts = firsts_of(signature, row_count(row.tensors, signature.inputs))
            return whole_outputs(self._outputs(tensors), signature, firsts)
        answered = self._run_batch(split(tensors, signature))
        stacked = stack_outputs(answered, signature)
        return tuple(stacked[name] for name in self._names)

    def _run_batch(self, rows: Sequence[Row], length: int | None = None) -> list[RowOutputs]:
        signature = self.manifest.model
        return split_outputs(self._outputs(stack(rows, signature, length)), rows, signature, length)

    def _outputs(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """One run of the graph, watched."""
        feeds = {name: aligned(array) for name, array in feeds.items()}
        for name in self._strings:
            feeds[name] = decoded(feeds[name], name)
        options = ort.RunOptions()

        def stop() -> None:
            options.terminate = True

        try:
            with self._watchdog.watch(stop):
                if self.graphs is not None:
                    arrays = self.graphs.run(feeds, options)
                elif self._bound:
                    arrays = gpu.run_bound(self._graph, self._names, feeds, options)
                else:
                    arrays = self._graph.run(self._names, feeds, options)
        except _KERNEL_ERRORS as error:
            raise _refusal(error) from None
        return {name: encoded(array) for name, array in zip(self._names, arrays, strict=True)}

    def close(self) -> None:
        """Stop the watchdog. Runs in progress continue without it."""
        self._watchdog.close()


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


def _refusal(error: Exception) -> Exception:
    """A kernel's error about its input as BadInput, without its text, which holds values of the input; other errors (no
    memory, a failed device, a stopped run) unchanged."""
    said = str(error)
    node = _KERNEL.search(said)
    shaped = isinstance(error, InvalidArgument) and node is None
    if any(word in said for word in _NOT_THE_INPUT) or not (node or shaped):
        return error
    where = f"its {node.group(1)} node takes no such numbers or sizes" if node else "its inputs have other sizes"
    return BadInput(f"the model refuses this input: {where}")


def _nodes(graph: ort.InferenceSession) -> dict[str, list[tuple[str, str]]]:
    nodes: dict[str, list[tuple[str, str]]] = {}
    for part in graph.get_provider_graph_assignment_info():
        nodes.setdefault(part.ep_name, []).extend((node.op_type, node.name) for node in part.get_nodes())
    return nodes


def _gives_strings(manifest: Manifest) -> bool:
    return any(output.datatype == "BYTES" for output in manifest.model.outputs)


def aligned(array: Array) -> Array:
    """The same numbers at an address that is a multiple of 64.

    ONNX Runtime computes on the caller's buffer, and Eigen's sums start at the next aligned address: the same row at
    another offset of a request's body differs in its last bits (seen with ReduceSum at offsets 4, 8 and 20).
    """
    address: int = array.__array_interface__["data"][0]
    if array.dtype.kind == "O" or (address % ALIGNMENT_BYTES == 0 and array.flags.c_contiguous):
        return array
    room = np.empty(array.nbytes + ALIGNMENT_BYTES, np.uint8)
    start = -room.__array_interface__["data"][0] % ALIGNMENT_BYTES
    placed: Array = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    placed[...] = array
    return placed


def decoded(array: Array, name: str) -> Array:
    """`bytes` objects as the `str` objects that ONNX Runtime takes."""
    texts: Array = np.empty(array.shape, object)
    try:
        texts.ravel()[:] = [item.decode("utf-8") for item in array.ravel()]
    except UnicodeDecodeError:
        raise BadInput(f"inputs.{name}: ONNX strings are UTF-8") from None
    return texts


def encoded(array: Array) -> Array:
    """The `str` objects that ONNX Runtime gives as `bytes`; other arrays as they are."""
    if array.dtype != object:
        return array
    raw: Array = np.empty(array.shape, object)
    raw.ravel()[:] = [item.encode("utf-8") for item in array.ravel()]
    return raw
