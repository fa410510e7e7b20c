"""Describes a served model to V2, V1 and OpenAI clients: metadata, configuration, statistics. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from foreseen.modelspec.manifest import ClientInput, ClientOutput, wire_shape
from foreseen.protocol.datatypes import DATATYPES
from foreseen.proxy.backend.served import ServedModel

EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "statistics"]
PLATFORM = "onnx_onnxv1"


def metadata(served: ServedModel) -> dict[str, Any]:
    """V2 model metadata, with the digest in force."""
    manifest, facts = served.manifest, served.facts
    cut = manifest.model.has_rows
    version: dict[str, Any] = (
        {} if facts is None else {"digest": facts.digest, "precision": facts.precision, "provider": facts.provider}
    )
    if facts is not None and facts.preparation is None:  # another server, which reports neither of the two
        version = {"digest": facts.digest, "digest_from": facts.identity}
        if facts.worst_difference is not None:
            version["worst_difference"] = facts.worst_difference
        if facts.rows_why:
            version["rows_why"] = facts.rows_why
    return {
        "name": manifest.name,
        "versions": [manifest.version],
        "platform": PLATFORM,
        "inputs": [{**_tensor(spec), "shape": input_shape(spec, cut=cut)} for spec in manifest.seen.inputs],
        "outputs": [_tensor(spec) for spec in manifest.seen.outputs],
        "parameters": {**version, "rows": manifest.rows, "cached": "keep" in served.steps},
    }


def config(served: ServedModel) -> dict[str, Any]:
    """Triton's ModelConfig: perf_analyzer cannot do without. `max_batch_size` above 0 takes the first dim off."""
    manifest = served.manifest
    cut = manifest.model.has_rows
    return {
        "name": manifest.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": manifest.batching.max_rows if cut else 0,
        "input": [_config_tensor(spec, input_shape(spec, cut=cut), cut) for spec in manifest.seen.inputs],
        "output": [_config_tensor(spec, wire_shape(spec.shape), cut) for spec in manifest.seen.outputs],
        "dynamic_batching": {},
        "response_cache": {"enable": manifest.cacheable},
    }


def statistics(served: ServedModel) -> dict[str, Any]:
    """Triton's statistics: `success` and `queue` include hits, `inference_count` and `compute_*` do not. The counts of
    `compute_*` are equal: perf_analyzer ends with an error where they are not."""
    stats = served.stats
    untimed = {"count": stats.computed_requests, "ns": 0}
    return {
        "name": served.manifest.name,
        "version": served.manifest.version,
        "last_inference": int(stats.last_seconds * 1000),
        "inference_count": stats.computed_rows,
        "execution_count": stats.computed_requests,
        "inference_stats": {
            "success": {"count": stats.success, "ns": _ns(stats.success_seconds)},
            "fail": {"count": stats.fail, "ns": _ns(stats.fail_seconds)},
            "queue": {"count": stats.success, "ns": 0},
            "compute_input": untimed,
            "compute_infer": {"count": stats.computed_requests, "ns": _ns(stats.cache_miss_seconds)},
            "compute_output": untimed,
            "cache_hit": {"count": stats.cache_hit, "ns": _ns(stats.cache_hit_seconds)},
            "cache_miss": {"count": stats.cache_miss, "ns": _ns(stats.cache_miss_seconds)},
        },
        "batch_stats": [],
    }


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def repository_entry(served: ServedModel) -> dict[str, Any]:
    """One model of Triton's repository index."""
    state = "READY" if served.ready else "UNAVAILABLE"
    return {"name": served.manifest.name, "version": served.manifest.version, "state": state}


def v1_status(served: ServedModel) -> dict[str, Any]:
    """KServe's and TensorFlow Serving's status in one: they live at the same URL."""
    state = "AVAILABLE" if served.ready else "LOADING"
    return {
        "name": served.manifest.name,
        "ready": served.ready,
        "model_version_status": [
            {"version": served.manifest.version, "state": state, "status": {"error_code": "OK", "error_message": ""}}
        ],
    }


def openai_model(name: str) -> dict[str, Any]:
    """A model as OpenAI's API lists it. `created` is of no meaning here and never changes."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "foreseen"}


def model_list(served: Iterable[ServedModel]) -> dict[str, Any]:
    """`GET /v1/models`: KServe's and OpenAI's form in one. Aliases are models of OpenAI's only."""
    listed = [one.manifest for one in served]
    names = [name for manifest in listed for name in (manifest.name, *manifest.openai.aliases)]
    return {
        "models": [manifest.name for manifest in listed],
        "object": "list",
        "data": [openai_model(name) for name in names],
    }


def input_shape(spec: ClientInput, *, cut: bool) -> list[int]:
    """What metadata and config say of an input: one element per row is [-1, 1], since Triton's clients cannot send rows
    of no dimension (perf_analyzer: "unable to set shape for the input"). [-1] is taken, too, as the same question.
    Where requests are not `cut` into rows the shape is the graph's own."""
    shape = wire_shape(spec.shape)
    return [*shape, 1] if cut and len(shape) == 1 else shape


def _tensor(spec: ClientInput | ClientOutput) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": wire_shape(spec.shape)}


def _config_tensor(spec: ClientInput | ClientOutput, shape: list[int], cut: bool) -> dict[str, Any]:
    kind = "TYPE_STRING" if DATATYPES[spec.datatype].kind == "s" else f"TYPE_{spec.datatype}"
    return {"name": spec.name, "data_type": kind, "dims": shape[1:] if cut else shape}
