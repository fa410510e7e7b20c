"""Opens the session of an artifact, and checks its provider, its signature and its nodes on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
import structlog

from foreseen.errors import SetupError
from foreseen.inference import gpu
from foreseen.inference.session import Provider, Session, SessionPlan, session_options
from foreseen.modelspec.artifact import kept_record, read_file, read_record
from foreseen.modelspec.manifest import Manifest, ModelInput, ModelOutput

_log = structlog.get_logger()

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
"""BF16 is left out on purpose: ONNX Runtime's Python API accepts no bfloat16 arrays. Cast inside the graph instead."""


def open_session(manifest: Manifest, data: Path, plan: SessionPlan, artifact: str | None = None) -> Session:
    """Load an artifact by its digest; None: the one in force. Raises SetupError in one line that says what to do."""
    record = read_record(data, manifest.name) if artifact is None else kept_record(data, manifest.name, artifact)
    chain = _CHAINS[plan.provider]
    missing = [name for name in chain if name not in ort.get_available_providers()]
    if missing:
        raise SetupError(
            f"provider {plan.provider!r}: this onnxruntime has no {missing[0]}; "
            "install the extra foreseen[gpu] instead of foreseen[cpu], or take provider cpu"
        )
    options = session_options(record.artifact.precision, plan.threads)
    if plan.provider != "cpu":
        gpu.fix_workspace()
        gpu.load_libraries()
    content = read_file(data, record.artifact, record.artifact.graph)
    graph, has_graphs = _loaded(manifest, content, options, chain, record.shapes.kind == "fixed" and plan.cuda_graphs)
    graph.disable_fallback()  # a fallback would change the provider, hence the bits, under an unchanged digest
    _check_signature(manifest, graph)
    if graph.get_providers()[0] != chain[0]:
        raise SetupError(f"provider {plan.provider!r}: {chain[0]} did not start (driver or libraries are missing)")
    session = Session(manifest, record, graph, plan, has_graphs=has_graphs)
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


def _loaded(
    manifest: Manifest, content: bytes, options: ort.SessionOptions, chain: Sequence[str], wants_graphs: bool
) -> tuple[ort.InferenceSession, bool]:
    """The graph in ONNX Runtime, and whether it may be captured: where it may not, the reason is logged."""
    if wants_graphs and chain[0] == "CUDAExecutionProvider":
        try:
            return ort.InferenceSession(content, options, providers=gpu.providers(chain, graphs=True)), True
        except Exception as error:  # noqa: BLE001 -- ONNX Runtime has no common error class
            _log.warning("no CUDA graphs", model=manifest.name, why=str(error).splitlines()[0][:200])
    try:
        return ort.InferenceSession(content, options, providers=gpu.providers(chain, graphs=False)), False
    except Exception as error:  # noqa: BLE001 -- as above
        raise SetupError(f"model {manifest.name!r}: ONNX Runtime cannot load the artifact: {error}") from None


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
