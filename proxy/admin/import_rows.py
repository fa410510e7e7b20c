"""Imports rows with outputs that a batch run computed, as cache entries. For operators; no model request.

The body is a V2 request: the model's inputs, its outputs as further inputs called `output.NAME`, and the parameter
`digest`, the version of the model that computed them. Optional inputs `foreseen.made_at` and `foreseen.seconds` hold
each row's time of computation and its cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from msgspec import Struct, structs

from foreseen.errors import BadInput, FarError, FarUnavailable, ModelFailed, StateUnavailable
from foreseen.modelspec.manifest import Manifest
from foreseen.modelspec.parameters import counting
from foreseen.modelspec.row_outputs import raw_outputs
from foreseen.protocol.wire import InputTensor, parse_request
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.cache.freshness import expiry_of
from foreseen.proxy.predict.dialects.codecs import check_rows
from foreseen.proxy.predict.pipeline import Pipeline
from foreseen.proxy.predict.serve import Server
from foreseen.types import ALL_STEPS, Array, Key, Prediction, Row, Scope, Space

PREFIX = "output."
MADE_AT, SECONDS = "foreseen.made_at", "foreseen.seconds"


class ImportBody(Struct, frozen=True):
    """A decoded body. `inputs` and `parameters` are what a request for the same rows would have."""

    inputs: tuple[InputTensor, ...]
    outputs: Mapping[str, Array]
    facts: Mapping[str, Array]
    parameters: bytes
    digest: str


def decode_import(body: bytes, header_length: int | None, manifest: Manifest) -> ImportBody:
    """Raises BadRequest or BadInput naming the field."""
    request = parse_request(body, header_length, whole=manifest.upstream is not None)
    parameters = dict(request.parameters)
    digest = parameters.pop("digest", None)
    if not isinstance(digest, str):
        raise BadInput("parameters.digest: give the digest of the model that computed the outputs")
    given = {tensor.name: tensor.array for tensor in request.inputs}
    outputs = {name.removeprefix(PREFIX): array for name, array in given.items() if name.startswith(PREFIX)}
    for tensor in request.inputs:
        spec = next((o for o in manifest.model.outputs if PREFIX + o.name == tensor.name), None)
        if spec is not None and tensor.datatype != spec.datatype:
            raise BadInput(f"inputs.{tensor.name}.datatype: is {tensor.datatype}, must be {spec.datatype}")
    facts = {name: given[name] for name in (MADE_AT, SECONDS) if name in given}
    inputs = tuple(t for t in request.inputs if not t.name.startswith(PREFIX) and t.name not in facts)
    names = {tensor.name for tensor in inputs}
    of_inputs = {name: more for name, more in request.members.inputs.items() if name in names}
    members = structs.replace(request.members, inputs=of_inputs)
    return ImportBody(inputs, outputs, facts, counting(parameters, manifest, members), digest)


async def import_request(
    server: Server, served: ServedModel, scope: Scope, header_length: int | None, body: bytes
) -> tuple[int, list[int]]:
    """Store what a batch run has computed, in a scope: how many rows, and which of them were there. Asks no model.

    Raises BadInput (also for another model's predictions), StateUnavailable, FarUnavailable.
    """
    size, pipeline, heavy = len(body), server.pipeline, server.heavy
    given = await heavy.run(lambda: decode_import(body, header_length, served.manifest), size)
    check_rows(served, given.inputs)
    space = server.space(served, scope)
    if given.digest != space.digest:
        why = f"the outputs are of model {given.digest[:16]}…, in force is {space.digest[:16]}…"
        raise BadInput(f"parameters.digest: {why}; predict them again")
    if served.steps != ALL_STEPS or served.manifest.rows == "together":
        raise BadInput("answers of this model are not cached per row")
    if server.unknown(space):
        raise StateUnavailable("the state store does not answer, so purges are not known")
    preparer, at = served.preparer(), pipeline.tiers.clock()
    rows = await heavy.run(lambda: preparer.rows(given.inputs), size)
    predictions = await heavy.run(lambda: predictions_of(given, rows, served.manifest, at), size)
    had = await import_rows(pipeline, space, rows, given.parameters, predictions)
    server.metrics.imported_rows.labels(space.model, "had").inc(len(had))
    server.metrics.imported_rows.labels(space.model, "stored").inc(len(rows) - len(had))
    return len(rows), had


def predictions_of(body: ImportBody, rows: Sequence[Row], manifest: Manifest, now: float) -> list[Prediction]:
    """Each row's prediction, not yet with a life. Raises BadInput where they are not what the model answers."""
    signature = manifest.model
    try:
        raw = raw_outputs(body.outputs, rows, signature)
    except (ModelFailed, KeyError) as error:
        raise BadInput(f"inputs: the outputs are not those of {manifest.name!r}: {error}") from None
    made_at, seconds = _fact(body, MADE_AT, len(rows), now), _fact(body, SECONDS, len(rows), 0.0)
    made = []
    for i, (heads, data) in enumerate(raw):
        when = min(float(made_at[i]), now)
        made.append(Prediction(heads, data, body.digest, when, when, float(seconds[i])))
    return made


async def import_rows(
    pipeline: Pipeline, space: Space, rows: Sequence[Row], parameters: bytes, predictions: Sequence[Prediction]
) -> list[int]:
    """Store what is not there yet; the numbers of the rows that were. Raises FarUnavailable: nothing is promised then.

    It returns when far has stored them: an importer sends the next rows then and never repeats these.
    """
    tiers, model = pipeline.tiers, pipeline.models[space.model]
    keys = tiers.keys(space, model.framer, rows, parameters)
    looked = await tiers.look_far(space, list(dict.fromkeys(keys)), model.freshness)
    if any(missed.reason == "far-down" for missed in looked.missing.values()):
        raise FarUnavailable("the far tier does not answer, so nothing can be imported")
    fresh: dict[Key, Prediction] = {}
    had: list[int] = []
    for i, (key, prediction) in enumerate(zip(keys, predictions, strict=True)):
        if key in looked.found or key in fresh:
            had.append(i)
            continue
        expires_at = expiry_of(prediction.made_at, model.freshness)
        fresh[key] = Prediction(
            prediction.outputs, prediction.data, prediction.digest, prediction.made_at, expires_at, prediction.seconds
        )
    if not fresh:
        return had
    try:
        await tiers.put_far(list(fresh.items()), model.freshness)
    except FarError:
        raise FarUnavailable("the far tier does not answer, so these rows were not imported") from None
    return had


def _fact(body: ImportBody, name: str, rows: int, default: float) -> Array:
    given = body.facts.get(name)
    if given is None:
        return np.full(rows, default)
    if given.dtype.kind not in "fiu" or given.shape != (rows,) or not np.isfinite(given).all():
        raise BadInput(f"inputs.{name}: must be a finite number for each row")
    return given
