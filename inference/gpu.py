"""What a session does differently on a GPU: bound outputs, warm-up by shape, an eye on nodes left to the CPU.

Run with CUDA 13 on an NVIDIA H100 (docs/models.md says what was seen); never with TensorRT.
`tests/inference/test_gpu.py` runs it where a CUDA provider is present; what needs no GPU in it (the judgement on nodes,
the shapes to warm, the versions of libraries) is tested everywhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import structlog

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
    """The nodes that the CPU provider got although they are no mere housekeeping, as `op name`.

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


def device_family(folder: Path = Path("/proc/driver/nvidia/gpus")) -> str:
    """The GPU's model names as the kernel driver tells them: part of the model digest. "gpu" where it does not."""
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
"""A library's stem → the function that tells its version, and whether it does so through a pointer to int."""


def load_libraries() -> None:
    """Load CUDA and cuDNN out of the wheels beside ONNX Runtime, which no loader knows, or from where the system has
    them. Raises nothing: what is missing shows when a session is opened."""
    if not hasattr(onnxruntime, "preload_dlls"):
        return
    with contextlib.redirect_stdout(io.StringIO()) as said:  # it prints, and stdout is for what a command answers
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
