"""Turns another V2 server's metadata of a model into a manifest, or reports what they lack. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from msgspec import Struct, structs

from foreseen.errors import SetupError
from foreseen.modelspec.manifest import BATCH, Dim, Manifest, ModelInput, ModelOutput, ModelSignature, is_name
from foreseen.protocol.datatypes import DATATYPES


class UpstreamMetadata(Struct, frozen=True):
    """What a server's metadata say of a model."""

    manifest: Manifest
    firsts: Mapping[str, int | None]
    """How many rows each output of a whole request has, where the metadata name a number; None may be any number: a
    detector's rows are what it has found, not what it was asked."""
    digest: str | None
    versioned: bool


def optional_inputs(metadata: Mapping[str, Any], config: Any) -> frozenset[str] | None:
    """The inputs that may be left out, by a model's metadata and its configuration (Triton's; None where there is
    none). None where neither says it of any input: then any may be, and the server decides."""
    configured = objects_of(config, "input") if isinstance(config, dict) else []
    tensors = [*objects_of(metadata, "inputs"), *configured]
    if not configured and not any("optional" in one for one in tensors):
        return None
    return frozenset(str(one.get("name")) for one in tensors if one.get("optional") is True)


def metadata_of(name: str, metadata: Mapping[str, Any], optional: frozenset[str] | None = None) -> UpstreamMetadata:
    """A model's metadata as a manifest; `optional` as `optional_inputs`. Raises SetupError: what is missing."""
    if not is_name(name):
        raise SetupError(f"model {name!r}: only letters, digits, '.', '_' and '-' can stand in its name")
    inputs = [_tensor(one, "inputs") for one in _listed(metadata, "inputs")]
    outputs = [_tensor(one, "outputs") for one in _listed(metadata, "outputs")]
    listed = metadata.get("versions")
    versions = [str(one) for one in listed] if isinstance(listed, list) else []
    parameters = metadata.get("parameters")
    digest = parameters.get("digest") if isinstance(parameters, dict) else None
    signature = ModelSignature(
        tuple(
            ModelInput(tensor, datatype, _dims(tensor, shape), optional=optional is None or tensor in optional)
            for tensor, datatype, shape in inputs
        ),
        tuple(ModelOutput(tensor, datatype, _dims(tensor, shape)) for tensor, datatype, shape in outputs),
    )
    return UpstreamMetadata(
        Manifest(name, signature, version=_newest(versions), rows="together"),
        {tensor: dim if dim >= 0 else None for tensor, _, (dim, *_) in outputs},
        digest if isinstance(digest, str) else None,
        bool(versions),
    )


def declared_metadata(manifest: Manifest) -> UpstreamMetadata:
    """What an operator's manifest says of a model: everything but its version."""
    return UpstreamMetadata(
        manifest, dict.fromkeys(spec.name for spec in manifest.model.outputs), None, versioned=False
    )


def document_of(content: bytes) -> dict[str, Any] | None:
    """A JSON object, None where it is none."""
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    return document if isinstance(document, dict) else None


def objects_of(document: Mapping[str, Any], part: str) -> list[dict[str, Any]]:
    """What a part lists, as far as it is a list of objects."""
    listed = document.get(part)
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def _listed(metadata: Mapping[str, Any], part: str) -> list[Any]:
    listed = metadata.get(part)
    if not isinstance(listed, list) or not listed:
        raise SetupError(f"its metadata name no {part}")
    return listed


def _tensor(one: Any, part: str) -> tuple[str, str, list[int]]:
    """Name, datatype and shape of one tensor of the metadata."""
    if not isinstance(one, dict) or not isinstance(one.get("name"), str) or not one["name"]:
        raise SetupError(f"its metadata's {part} cannot be read")
    shape, datatype = one.get("shape"), one.get("datatype")
    if shape == []:
        raise SetupError(f"{part}.{one['name']} has no dimensions, and a tensor needs its rows")
    if datatype not in DATATYPES:
        raise SetupError(f"{part}.{one['name']}: the datatype {str(datatype)[:64]!r} is none of the protocol's")
    if not isinstance(shape, list) or not shape or not all(type(dim) is int and dim >= -1 for dim in shape):
        raise SetupError(f"{part}.{one['name']}: the shape {str(shape)[:64]} is not a list of sizes")
    return one["name"], datatype, shape


def _dims(tensor: str, shape: Sequence[int]) -> tuple[Dim, ...]:
    """Open dimensions get names that no other tensor shares, so that nothing is padded or cut."""
    return (BATCH, *(f"{tensor}.{axis}" if dim == -1 else dim for axis, dim in enumerate(shape[1:], 1)))


def _newest(versions: Sequence[str]) -> str:
    numbers = [one for one in versions if one.isdigit()]
    return max(numbers, key=int) if numbers else versions[-1] if versions else "1"


def declared_beside(declared: Manifest, metadata: Mapping[str, Any]) -> UpstreamMetadata:
    """What an operator's manifest says, with the version that metadata name. Raises SetupError where the two differ."""
    name, signature = declared.name, declared.model
    listed = [*objects_of(metadata, "inputs"), *objects_of(metadata, "outputs")]
    datatypes = {str(one.get("name")): one.get("datatype") for one in listed}
    here = [(i.name, i.datatype) for i in signature.inputs] + [(o.name, o.datatype) for o in signature.outputs]
    for tensor, datatype in here:
        if datatypes.get(tensor, datatype) != datatype:
            raise SetupError(f"model {name!r}: {tensor} is {datatypes[tensor]} at its upstream, {datatype} here")
    parameters = metadata.get("parameters")
    digest = parameters.get("digest") if isinstance(parameters, dict) else None
    known = digest if isinstance(digest, str) else None
    return structs.replace(declared_metadata(declared), digest=known, versioned=bool(metadata.get("versions")))
