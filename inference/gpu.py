"""Sessions on a GPU: bound outputs, warm-up of shapes, a check for nodes left to the CPU.

Run with CUDA 13 on an NVIDIA H100 (results in docs/models.md); never with TensorRT. `tests/inference/test_gpu.py` runs
it where a CUDA provider is present. The parts that need no GPU (the check of nodes, the shapes to warm, the versions of
libraries) are tested everywhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import structlog

from foreseen.inference.graphs import Buffers
from foreseen.types import Array

_log = structlog.get_logger()

# fmt: off
_HOUSEKEEPING = frozenset((
    "Shape", "Size", "Gather", "Concat", "Unsqueeze", "Squeeze", "Slice", "ConstantOfShape", "Range", "Cast", "Reshape",
    "Add", "Sub", "Mul", "Div", "Equal", "Where", "Expand", "Constant",
))
# fmt: on
"""Ops that compute shapes: ONNX Runtime puts those on the CPU on purpose, since their results are needed there."""


def unexpected(assigned: Mapping[str, Sequence[tuple[str, str]]]) -> list[str]:
    """The nodes on the CPU provider other than shape computations, as `op name`.

    `assigned` maps execution provider → (op type, node name).
    """
    left = assigned.get("CPUExecutionProvider", ())
    return [f"{op} {name}".strip() for op, name in left if op not in _HOUSEKEEPING]


def buckets(max_rows: int, max_tokens: int, longest: int = 512) -> Iterator[tuple[int, int]]:
    """(rows, length) of the runs that a GPU session makes before it is ready: powers of two up to the budget.

    The first run of a shape allocates, picks algorithms and, under TensorRT, compiles; no request should pay that.
    """
    length = 8
    while length <= longest:
        rows = 1
        while rows <= max_rows and rows * length <= max_tokens:
            yield rows, length
            rows *= 2
        length *= 2


DETERMINISM = "tf32=0 conv=default workspace=:4096:8"
"""The settings below that decide an answer's bits: part of the model digest."""
_CUDA_OPTIONS = {
    # Searched kernels differ from session to session (onnxruntime#19822), so that two processes would not answer alike.
    "cudnn_conv_algo_search": "DEFAULT",
    "use_tf32": "0",
    "do_copy_in_default_stream": "1",
}
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def providers(chain: Sequence[str], *, graphs: bool) -> list[str | tuple[str, dict[str, str]]]:
    """The execution providers with options that make every process compute the same bits; `graphs` enables CUDA
    graphs."""
    options = _CUDA_OPTIONS | ({"enable_cuda_graph": "1"} if graphs else {})
    return [(name, options) if name == "CUDAExecutionProvider" else name for name in chain]


def fix_workspace() -> None:
    """With a fixed workspace size cuBLAS always sums in the same order. Call this before CUDA starts. An existing value
    is kept."""
    os.environ.setdefault(_WORKSPACE, ":4096:8")


def device_family(folder: Path = Path("/proc/driver/nvidia/gpus")) -> str:
    """The GPUs' names from the kernel driver, part of the model digest; "gpu" where the driver gives none."""
    models = set()
    for path in folder.glob("*/information"):
        for line in path.read_text("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            if name == "Model":
                models.add(value.strip())
    return " + ".join(sorted(models)) or "gpu"


_VERSIONS: Mapping[str, tuple[str, bool]] = {
    "libcudart": ("cudaRuntimeGetVersion", True),
    "libcublasLt": ("cublasLtGetVersion", False),
    "libcudnn": ("cudnnGetVersion", False),
    "libcufft": ("cufftGetVersion", True),
    "libnvinfer": ("getInferLibVersion", False),
}
"""A library's stem → the function that returns its version, and whether it returns it through a pointer to int."""


def load_libraries() -> None:
    """Load CUDA and cuDNN from the wheels beside ONNX Runtime, which the dynamic loader does not search, or from the
    system. Raises nothing: opening a session reports what is missing."""
    if not hasattr(onnxruntime, "preload_dlls"):
        return
    with contextlib.redirect_stdout(io.StringIO()) as said:  # it prints, and stdout is for a command's result
        onnxruntime.preload_dlls(directory="")
    if said.getvalue():
        _log.warning("CUDA libraries", said=said.getvalue().strip())


def libraries(mapped: Iterable[str], known: Mapping[str, tuple[str, bool]] = _VERSIONS) -> tuple[str, ...]:
    """The libraries that compute for a GPU session, as `name version`: part of the model digest, since another
    cuBLAS or cuDNN chooses other kernels, which round otherwise. `mapped` are lines of /proc/self/maps of a process
    that has such a session."""
    paths = {line.split()[-1] for line in mapped if "/" in line}
    found = {Path(path).name.split(".so")[0]: path for path in sorted(paths) if ".so" in Path(path).name}
    return tuple(f"{stem} {_version(found[stem], *how)}" for stem, how in known.items() if stem in found)


def _version(path: str, function: str, through_pointer: bool) -> int:
    ask = getattr(ctypes.CDLL(path), function)
    if through_pointer:
        number = ctypes.c_int()
        ask(ctypes.byref(number))
        return number.value
    ask.restype = ctypes.c_size_t
    return int(ask())


def run_bound(session: Any, names: Sequence[str], feeds: Mapping[str, Array], options: Any) -> list[Array]:
    """One run with bound inputs and outputs: one copy to the device, one back, no shapes needed beforehand.

    `session` is an onnxruntime.InferenceSession, `options` its RunOptions. Strings live on the CPU only, so models
    that take or give BYTES do not come this way.
    """
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    for name in names:
        binding.bind_output(name, "cpu")
    session.run_with_iobinding(binding, options)
    outputs: list[Array] = binding.copy_outputs_to_cpu()
    return outputs


class CudaDevice:
    """A session of ONNX Runtime on a CUDA device, opened with `enable_cuda_graph`."""

    def __init__(self, session: Any, names: Sequence[str], number: int = 0) -> None:
        self._session = session
        self._names = names
        self._number = number

    def plain(self, feeds: Mapping[str, Array], options: Any) -> list[Array]:
        return run_bound(self._session, self._names, feeds, options)

    def buffers(self, feeds: Mapping[str, Array], outputs: Sequence[Array]) -> Buffers:
        return _Bound(self._session, self._names, self._number, feeds, outputs)

    def options(self) -> Any:
        return onnxruntime.RunOptions()


class _Bound:
    """OrtValues on the device, bound once."""

    def __init__(
        self, session: Any, names: Sequence[str], number: int, feeds: Mapping[str, Array], outputs: Sequence[Array]
    ) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._inputs = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", number) for name, array in feeds.items()
        }
        self._outputs = [
            onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(array.shape), array.dtype, "cuda", number)
            for array in outputs
        ]
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in zip(names, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, value)

    def run(self, feeds: Mapping[str, Array], options: Any) -> list[Array]:
        for name, array in feeds.items():
            self._inputs[name].update_inplace(array)
        self._session.run_with_iobinding(self._binding, options)
        return [value.numpy() for value in self._outputs]
