"""A V2 server that is not ours → a model of this proxy: its metadata become a manifest and a digest, and it is asked.

What such a server does not say is not assumed. Rows go together, one key per request, until a probe has shown that
they do not depend on each other. Replies carry no digest, so the answer's version is what the metadata say (as a
whole), what the reply itself calls its `model_version`, and a string that the operator declares. A change that shows in
none of these cannot be seen; where there is not even a version to look at, log and metadata say `unobservable`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Literal

import orjson
import structlog
from msgspec import Struct, structs

from foreseen.errors import BadInput, BadRequest, DigestMoved, ForeseenError, ModelFailed, ModelUnavailable, SetupError
from foreseen.modelspec.artifact import fields_digest, preparation_digest
from foreseen.modelspec.invariance import difference, random_rows
from foreseen.modelspec.manifest import BATCH, Dim, Manifest, ModelInput, ModelOutput, ModelSignature, is_name
from foreseen.modelspec.rows import RowOutputs
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.tensors import array_of_raw
from foreseen.protocol.wire import Response, render_json_request
from foreseen.proxy.backend.isolation import IsolationLock
from foreseen.proxy.backend.model import ModelFacts, ModelProcess, Tensors
from foreseen.types import Prediction, RequestOptions, Row
from foreseen.web.http import JSON

log = structlog.get_logger()

PROBE_ROWS = 6
PROBE_DEADLINE_SECONDS = 30.0
PROBE_PAUSE_SECONDS = 5.0
"""Between two tries, where the server could not answer the first."""

Rows = Literal["each", "together"]


class UpstreamMetadata(Struct, frozen=True):
    """What a server's metadata say of a model."""

    manifest: Manifest
    firsts: Mapping[str, int | None]
    """How many rows each output of a whole request has: -1 is as many as its inputs, None may be any number."""
    digest: str | None
    versioned: bool


class Verdict(Struct, frozen=True):
    """What the probe has shown of one version of a model. None: it could not tell."""

    independent: bool | None
    why: str


def told_of(name: str, metadata: Mapping[str, Any]) -> UpstreamMetadata:
    """A model's metadata as a manifest. Raises SetupError that says what is missing."""
    if not is_name(name):
        raise SetupError(f"model {name!r}: only letters, digits, '.', '_' and '-' can stand in its name")
    inputs = [_tensor(name, one, "inputs") for one in _listed(name, metadata, "inputs")]
    outputs = [_tensor(name, one, "outputs") for one in _listed(name, metadata, "outputs")]
    batched = all(dim == -1 for _, _, (dim, *_) in inputs)
    listed = metadata.get("versions")
    versions = [str(one) for one in listed] if isinstance(listed, list) else []
    parameters = metadata.get("parameters")
    digest = parameters.get("digest") if isinstance(parameters, dict) else None
    signature = ModelSignature(
        tuple(ModelInput(tensor, datatype, _dims(tensor, shape)) for tensor, datatype, shape in inputs),
        tuple(ModelOutput(tensor, datatype, _dims(tensor, shape)) for tensor, datatype, shape in outputs),
    )
    return UpstreamMetadata(
        Manifest(name, signature, version=_newest(versions), rows="together"),
        {tensor: dim if dim >= 0 else -1 if batched else None for tensor, _, (dim, *_) in outputs},
        digest if isinstance(digest, str) else None,
        bool(versions),
    )


def declared_told(manifest: Manifest) -> UpstreamMetadata:
    """What an operator's manifest says of a model: everything but its version."""
    firsts = dict.fromkeys((spec.name for spec in manifest.model.outputs), -1)
    return UpstreamMetadata(manifest, firsts, None, versioned=False)


class UpstreamProcess(ModelProcess):
    """A model on somebody else's server. It takes whole requests and single rows alike, whichever it is handed.

    `manifest` is None where there is only the metadata to go by.
    """

    _silent_ids = (None, "")
    ours = False

    def __init__(
        self,
        told: UpstreamMetadata,
        address: str,
        *,
        manifest: Manifest | None,
        digest: str | None,
        tolerance: float,
        probe: bool,
        quarantine_seconds: float,
        trials: IsolationLock | None = None,
    ) -> None:
        self.told = told
        self.declared = manifest
        own = manifest or told.manifest
        super().__init__(
            own,
            address,
            quarantine_seconds=quarantine_seconds,
            trials=trials,
        )
        self._declared_digest = digest or ""
        self._tolerance = tolerance
        self._probing = probe
        self._probe: asyncio.Task[None] | None = None
        self._verdicts: dict[str, Verdict] = {}
        self._base_digest = ""
        self._said_version = ""
        self._binary: bool | None = None

    @property
    def rows(self) -> Rows:
        """How its rows are to be keyed by what is known now."""
        if self.declared is not None:
            return self.declared.rows
        verdict = self._verdicts.get(self._digest_now())
        return "each" if verdict is not None and verdict.independent else "together"

    @property
    def settled(self) -> bool:
        """Whether nothing is about to be found out."""
        return self._probe is None or self._probe.done()

    @property
    def why(self) -> str:
        """Why its rows are keyed so."""
        verdict = self._verdicts.get(self._digest_now())
        return "not probed" if verdict is None else verdict.why

    async def close(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.gather(self._probe, return_exceptions=True)
        await super().close()

    def _facts(self, metadata: dict[str, Any]) -> ModelFacts:
        """Raises ModelUnavailable where the server has no such model any more, SetupError where it is another one."""
        name = self._manifest.name
        self.told = told = self._told(name, metadata)
        if self.declared is None and told.manifest.model != self._signature:
            raise SetupError(f"model {name!r}: its signature has changed")
        preparation = preparation_digest(structs.replace(self._manifest, rows="together"), ())
        whole = orjson.dumps(told.digest if told.digest is not None else metadata, option=orjson.OPT_SORT_KEYS)
        base = fields_digest(b"foreseen v1 upstream", whole, self._declared_digest.encode(), preparation.encode())
        if base != self._base_digest:
            self._base_digest, self._binary = base, None
        digest = self._digest_now()
        if self._probing and digest not in self._verdicts and (self._probe is None or self._probe.done()):
            self._probe = asyncio.get_running_loop().create_task(self._prove(digest))
        verdict = self._verdicts.get(digest)
        dependent = verdict is not None and verdict.independent is False
        single = self.rows == "together"
        return ModelFacts(digest, None, row_independent=single or not dependent, identity=self._identity())

    def _told(self, name: str, metadata: dict[str, Any]) -> UpstreamMetadata:
        """A manifest of the operator's may say of a tensor what the metadata leave out, but not otherwise."""
        if self.declared is None:
            return told_of(name, metadata)
        there = [*(metadata.get("inputs") or ()), *(metadata.get("outputs") or ())]
        datatypes = {one.get("name"): one.get("datatype") for one in there if isinstance(one, dict)}
        signature = self.declared.model
        here = [(i.name, i.datatype) for i in signature.inputs] + [(o.name, o.datatype) for o in signature.outputs]
        for tensor, datatype in here:
            if datatypes.get(tensor, datatype) != datatype:
                raise SetupError(f"model {name!r}: {tensor} is {datatypes[tensor]} at its upstream, {datatype} here")
        parameters = metadata.get("parameters")
        digest = parameters.get("digest") if isinstance(parameters, dict) else None
        told = declared_told(self.declared)
        versioned = bool(metadata.get("versions"))
        return structs.replace(told, digest=digest if isinstance(digest, str) else None, versioned=versioned)

    def _identity(self) -> str:
        if self.told.digest is not None:
            return "digest"
        if self._declared_digest:
            return "declared"
        return "version" if self.told.versioned or self._said_version else "unobservable"

    def _digest_now(self) -> str:
        """The version in force: the metadata's, and what the last reply called itself."""
        return fields_digest(b"foreseen v1 upstream answer", self._base_digest.encode(), self._said_version.encode())

    def _digest(self, response: Response) -> str:
        """Replies name a version at best. One that names another than the last is another model."""
        told = response.parameters.get("digest")
        said = told if isinstance(told, str) else response.version or ""
        if said != self._said_version:
            self._said_version = said
        return self._digest_now()

    def _together(self, rows: Sequence[Row]) -> bool:
        whole = [len(spec.shape) for spec in self._signature.keyed]
        ranks = [tensor.ndim for tensor in rows[0].tensors]
        if ranks == whole:
            return True
        if [rank + 1 for rank in ranks] != whole:
            raise DigestMoved(self._digest_now())  # rows of the signature that it had before
        return False

    def _parts(self, rows: Sequence[Row]) -> list[Sequence[int]]:
        """Rows of one shape go together: nobody knows what padding would do, unless a mask takes it off again."""
        masked = any(spec.role == "mask" for spec in self._signature.inputs)
        if masked or self._together(rows):
            return super()._parts(rows)
        shapes = [tuple(tensor.shape for tensor in row.tensors) for row in rows]
        parts: list[Sequence[int]] = []
        for _, group in groupby(sorted(range(len(rows)), key=lambda at: (shapes[at], at)), key=lambda at: shapes[at]):
            places = list(group)
            step = self._rows_per_request
            parts += [places[at : at + step] for at in range(0, len(places), step)]
        return parts

    def _firsts(self, rows: int) -> Mapping[str, int | None]:
        return {name: rows if first == -1 else first for name, first in self.told.firsts.items()}

    async def _asked(
        self, tensors: Tensors, parameters: dict[str, Any], options: RequestOptions, request_id: str
    ) -> Response:
        """Binary tensors where the server takes them, JSON where not; which of the two, its first answer shows."""
        if self._binary is not False:
            try:
                response = await self._asked_binary(tensors, parameters, options, request_id)
            except (BadInput, ModelFailed):
                if self._binary:
                    raise
            else:
                self._binary = True
                return response
        try:
            body = render_json_request(tensors, parameters, request_id)
        except BadRequest as error:
            raise BadInput(f"{error}; the server behind takes JSON only") from None
        response = await self._post(body, {"Content-Type": JSON}, options)
        self._binary = False
        return response

    async def _prove(self, digest: str) -> None:
        """Ask random rows alone, in a batch and in another order; it shows something of the version that answered."""
        name = self._manifest.name
        try:
            async with asyncio.timeout(PROBE_DEADLINE_SECONDS):
                digest, verdict = await self._probed(random_rows(self._signature, PROBE_ROWS))
        except (ModelUnavailable, TimeoutError):
            await asyncio.sleep(PROBE_PAUSE_SECONDS)  # the next look at the metadata starts another
            return
        except ForeseenError as error:
            verdict = Verdict(None, f"a random row was refused: {error}")
        except DigestMoved:
            return
        self._verdicts = {**dict(list(self._verdicts.items())[-7:]), digest: verdict}
        tell = log.warning if verdict.independent is False else log.info
        tell("upstream probed", model=name, rows_independent=verdict.independent, why=verdict.why)

    async def _probed(self, rows: list[Row]) -> tuple[str, Verdict]:
        options = RequestOptions(asyncio.get_running_loop().time() + PROBE_DEADLINE_SECONDS, "background")
        alone = [(await self._ask([row], b"", options))[0] for row in rows]
        try:
            batches = [await self._ask(rows, b"", options), (await self._ask(rows[::-1], b"", options))[::-1]]
        except (BadInput, ModelFailed) as error:
            return alone[0].digest, Verdict(False, f"a batch is refused: {error}")
        versions = {prediction.digest for prediction in (*alone, *batches[0], *batches[1])}
        if len(versions) > 1:
            raise DigestMoved(alone[0].digest)
        answers = [_arrays(prediction) for prediction in alone]
        if all(difference(answers[:1], [other]) == 0 for other in answers[1:]):
            return alone[0].digest, Verdict(None, "all random rows got one answer, which shows nothing")
        worst = max(difference(answers, [_arrays(prediction) for prediction in batch]) for batch in batches)
        if worst > self._tolerance:
            return alone[0].digest, Verdict(False, f"an answer changes by {worst:g} with its batch-mates")
        return alone[0].digest, Verdict(True, f"alone and in batches answers differ by {worst:g} at most")


def _listed(name: str, metadata: Mapping[str, Any], part: str) -> list[Any]:
    listed = metadata.get(part)
    if not isinstance(listed, list) or not listed:
        raise SetupError(f"model {name!r}: its metadata name no {part}; write a model.toml that does")
    return listed


def _tensor(name: str, one: Any, part: str) -> tuple[str, str, list[int]]:
    """Name, datatype and shape of one tensor of the metadata."""
    if not isinstance(one, dict) or not isinstance(one.get("name"), str):
        raise SetupError(f"model {name!r}: its metadata's {part} cannot be read")
    shape, datatype = one.get("shape"), one.get("datatype")
    if datatype not in DATATYPES:
        raise SetupError(f"model {name!r}: {part}.{one['name']}: the datatype is none of the protocol's")
    if not isinstance(shape, list) or not shape or not all(type(dim) is int and dim >= -1 for dim in shape):
        raise SetupError(f"model {name!r}: {part}.{one['name']}: the shape is not a list of sizes")
    return one["name"], datatype, shape


def _dims(tensor: str, shape: Sequence[int]) -> tuple[Dim, ...]:
    """Open dimensions get names that no other tensor shares, so that nothing is padded or cut."""
    return (BATCH, *(f"{tensor}.{axis}" if dim == -1 else dim for axis, dim in enumerate(shape[1:], 1)))


def _newest(versions: Sequence[str]) -> str:
    numbers = [one for one in versions if one.isdigit()]
    return max(numbers, key=int) if numbers else versions[-1] if versions else "1"


def _arrays(prediction: Prediction) -> RowOutputs:
    heads = zip(prediction.outputs, prediction.data, strict=True)
    return tuple(array_of_raw(data, DATATYPES[head.datatype], head.shape, head.name) for head, data in heads)
