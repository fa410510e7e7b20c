"""What a session does differently on a GPU: bound outputs, warm-up by shape, an eye on nodes left to the CPU.

NOT RUN on the machines this was written on, which have no GPU; `tests/test_inference_gpu.py` runs it where a CUDA
provider is present. What needs no GPU in it (the judgement on nodes, the shapes to warm) is tested everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from foreseen.nouns import Array

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
