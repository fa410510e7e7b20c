"""What is wrong with a manifest: the rules that its types alone cannot hold."""

from __future__ import annotations

from foreseen.modelspec.manifest.hints import problem
from foreseen.modelspec.manifest.manifest import Manifest
from foreseen.modelspec.manifest.openai_section import openai_problem
from foreseen.modelspec.manifest.scoring_section import scoring_problem
from foreseen.modelspec.manifest.signature import (
    BATCH,
    ClientInput,
    ClientOutput,
    ClientSignature,
    ModelInput,
    ModelOutput,
)
from foreseen.protocol.datatypes import DATATYPES

UPSTREAM_SCHEMES = ("http://", "https://", "grpc://")
NAME_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
"""What the names of models are made of."""


def manifest_problem(manifest: Manifest) -> str | None:
    """What is wrong with a manifest, naming the field; None where nothing is."""
    if not set(manifest.name) <= NAME_SAFE or not manifest.name:
        return f"name: {manifest.name!r} may hold letters, digits, '.', '_' and '-' only"
    if not manifest.version.isdigit():
        return f"version: {manifest.version!r} is not an integer"
    tensors: list[tuple[str, ClientInput | ClientOutput | ModelInput | ModelOutput]] = []
    for part, signature in (("client", manifest.client), ("model", manifest.model)):
        if signature is None:
            continue
        for kind, listed in (("inputs", signature.inputs), ("outputs", signature.outputs)):
            if not listed:
                return f"{part}.{kind}: at least one is needed"
            if len({t.name for t in listed}) != len(listed):
                return f"{part}.{kind}: two have the same name"
            tensors += [(f"{part}.{kind}.{t.name}", t) for t in listed]
    for where, tensor in tensors:
        if tensor.datatype not in DATATYPES:
            return f"{where}.datatype: {tensor.datatype!r} is not one of {', '.join(DATATYPES)}"
        if any(isinstance(dim, int) and dim < 0 for dim in tensor.shape):
            return f"{where}.shape: name a dimension whose size differs, do not write a negative number"
        if tensor.shape[:1] != (BATCH,) and manifest.rows == "each":
            return f'{where}.shape: the first dimension is {BATCH!r}, unless the manifest says rows = "together"'
    checks = (_upstream_problem, _pair_problem, _model_problem, _client_problem, _openai_problem)
    return next((found for check in checks if (found := check(manifest)) is not None), problem(manifest.samples))


def _openai_problem(manifest: Manifest) -> str | None:
    seen = manifest.seen
    found = openai_problem(manifest.openai, seen.inputs, seen.outputs)
    return found or scoring_problem(manifest.scoring, seen.inputs, seen.outputs)


def _upstream_problem(manifest: Manifest) -> str | None:
    if manifest.upstream is not None and not manifest.upstream.startswith(UPSTREAM_SCHEMES):
        return f"upstream: {manifest.upstream!r} is neither http://host:port nor grpc://host:port"
    if manifest.digest is not None and manifest.upstream is None:
        return "digest: is for models with an upstream; of built ones it is computed"
    return None


def _model_problem(manifest: Manifest) -> str | None:
    keyed = {i.name for i in manifest.model.keyed}
    for i in manifest.model.inputs:
        if i.role is not None and i.of not in keyed:
            return f"model.inputs.{i.name}.of: a derived input names the input it derives from"
    fed = _fed(manifest)
    if fed != keyed:
        return f"client.inputs: the model's inputs {sorted(keyed)} are fed by {sorted(fed)}"
    for output in manifest.seen.outputs:
        twin = next((o for o in manifest.model.outputs if o.name == output.name), None)
        if twin is None or twin.datatype != output.datatype:
            return f"client.outputs.{output.name}: the model has no such output of that datatype"
    return None


def _fed(manifest: Manifest) -> set[str]:
    """The model inputs that client inputs end up in."""
    fed = set()
    masks = {i.trim for i in manifest.seen.inputs} | seconds(manifest.seen)
    for i in manifest.seen.inputs:
        if i.tokenizer is not None:
            fed |= {name for name in (i.tokenizer.ids, i.tokenizer.types) if name is not None}
        elif i.image is not None:
            fed.add(i.image.to)
        elif not i.ignore and i.name not in masks:
            fed.add(i.name)
    return fed


def seconds(seen: ClientSignature) -> set[str]:
    """The client inputs that are the second text of a pair: they feed no model input of their own."""
    return {i.tokenizer.pair for i in seen.inputs if i.tokenizer is not None and i.tokenizer.pair is not None}


def _pair_problem(manifest: Manifest) -> str | None:
    listed = {i.name: i for i in manifest.seen.inputs}
    for i in manifest.seen.inputs:
        if i.tokenizer is None:
            continue
        where, second = f"client.inputs.{i.name}.tokenizer", listed.get(i.tokenizer.pair or "")
        if i.tokenizer.pair is None:
            if i.tokenizer.types is not None:
                return f"{where}.types: is for pairs; name the second text in pair"
        elif second is None or second is i:
            return f"{where}.pair: no other client input is called {i.tokenizer.pair!r}"
        elif second.datatype != "BYTES" or second.shape != (BATCH,) or second.tokenizer or second.image:
            return f"{where}.pair: {second.name!r} must be BYTES [{BATCH!r}] without a tokenizer or image of its own"
    return None


def _client_problem(manifest: Manifest) -> str | None:
    if not manifest.model.has_rows and any(i.tokenizer or i.image or i.trim for i in manifest.seen.inputs):
        return f"client.inputs: tokenizer, image and trim need {BATCH!r} as the first dimension of every model tensor"
    listed = {i.name: i for i in manifest.seen.inputs}
    for i in manifest.seen.inputs:
        where = f"client.inputs.{i.name}"
        kind = DATATYPES[i.datatype].kind
        numeric = i.cast or i.zero or i.ignore_columns or i.decimals is not None or i.step is not None or i.clip
        if numeric and kind == "s":
            return f"{where}: cast, zero, decimals, step, clip and ignore_columns are for numbers, not BYTES"
        if (i.unicode or i.case or i.space or i.tokenizer or i.image) and kind != "s":
            return f"{where}: unicode, case, space, tokenizer and image are for BYTES"
        if i.decimals is not None and i.step is not None:
            return f"{where}: decimals and step are two ways to say one thing; keep one"
        if i.step is not None and not i.step > 0:
            return f"{where}.step: must be above 0"
        if i.clip is not None and not i.clip[0] <= i.clip[1]:
            return f"{where}.clip: the lower end comes first"
        if i.tokenizer and i.image:
            return f"{where}: tokenizer and image cannot both apply"
        if (i.tokenizer or i.image) and i.shape != (BATCH,):
            return f"{where}.shape: a tokenizer or image input is [{BATCH!r}]"
        if i.trim is not None and i.trim not in listed:
            return f"{where}.trim: no client input is called {i.trim!r}"
    return None
