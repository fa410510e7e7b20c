"""A model → the documents that describe it: V2 metadata, Triton's `config` and `stats`."""

from __future__ import annotations

from typing import Any

from foreseen.inference.session import Session
from foreseen.modelspec.manifest import Manifest, ModelInput, ModelOutput, wire_shape

EXTENSIONS = ["binary_tensor_data", "model_configuration", "parameters", "statistics"]

_CONFIG_TYPES = {"BYTES": "TYPE_STRING"}


def metadata(session: Session, row_independent: bool) -> dict[str, Any]:
    """`GET /v2/models/NAME`: the `[model]` signature, and under `parameters` what a proxy needs for its keys."""
    manifest, record = session.manifest, session.record
    return {
        "name": manifest.name,
        "versions": [manifest.version],
        "platform": "onnx_onnxv1",
        "inputs": [_tensor(spec) for spec in manifest.model.inputs],
        "outputs": [_tensor(spec) for spec in manifest.model.outputs],
        "parameters": {
            "digest": session.digest,
            "artifact": record.artifact.digest,
            "preparation": record.artifact.preparation,
            "precision": record.artifact.precision,
            "provider": session.provider,
            "rows": manifest.rows,
            "row_independent": row_independent,
        },
    }


def config(manifest: Manifest, max_rows: int) -> dict[str, Any]:
    """`GET …/config`: the part of Triton's ModelConfig that perf_analyzer reads. Dims are without the batch axis."""
    return {
        "name": manifest.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "version_policy": {"specific": {"versions": [int(manifest.version)]}},
        "max_batch_size": max_rows if manifest.model.has_rows else 0,
        "input": [_configured(spec, manifest.model.has_rows) for spec in manifest.model.inputs],
        "output": [_configured(spec, manifest.model.has_rows) for spec in manifest.model.outputs],
        "dynamic_batching": {},
    }


class ModelStats:
    """Triton's per-model statistics: how many requests, rows and runs, and where their time went, in ns."""

    def __init__(self) -> None:
        self._rows = 0
        self._last_ms = 0
        self._spent = {name: [0, 0] for name in ("success", "fail", "queue", "compute_infer")}

    def succeeded(self, rows: int, total: float, queued: float, computed: float, at: float) -> None:
        """Count an answered request; durations in seconds, `at` in Unix seconds."""
        self._rows += rows
        self._last_ms = int(at * 1000)
        for name, seconds in (("success", total), ("queue", queued), ("compute_infer", computed)):
            self._add(name, seconds)

    def failed(self, total: float) -> None:
        """Count a request answered with an error, and its seconds."""
        self._add("fail", total)

    def _add(self, name: str, seconds: float) -> None:
        spent = self._spent[name]
        spent[0] += 1
        spent[1] += int(seconds * 1e9)

    def document(self, manifest: Manifest, runs: int) -> dict[str, Any]:
        """`GET …/stats`. This server caches nothing, so the cache's counts are 0."""
        nothing = {"count": 0, "ns": 0}
        spent = {name: {"count": count, "ns": ns} for name, (count, ns) in self._spent.items()}
        untimed = {"count": spent["compute_infer"]["count"], "ns": 0}  # perf_analyzer wants the three counts equal
        unused = {"compute_input": untimed, "compute_output": untimed, "cache_hit": nothing, "cache_miss": nothing}
        model = {
            "name": manifest.name,
            "version": manifest.version,
            "last_inference": self._last_ms,
            "inference_count": self._rows,
            "execution_count": runs,
            "inference_stats": {**spent, **unused},
            "batch_stats": [],
        }
        return {"model_stats": [model]}


def _tensor(spec: ModelInput | ModelOutput) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": wire_shape(spec.shape)}


def _configured(spec: ModelInput | ModelOutput, has_rows: bool) -> dict[str, Any]:
    kind = _CONFIG_TYPES.get(spec.datatype, f"TYPE_{spec.datatype}")
    return {"name": spec.name, "data_type": kind, "dims": wire_shape(spec.shape[1:] if has_rows else spec.shape)}
