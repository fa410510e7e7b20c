"""A model on another V2 server: its metadata become a manifest and a digest.

Nothing is assumed that the server does not state. A request is one key until a probe has shown that its rows do not
depend on each other. Replies carry no digest. So the version of an answer is made of the whole metadata, the reply's
`model_version` and a string that the operator declares. A change that shows in none of these cannot be noticed; where
there is no version at all, log and metadata say `unobservable`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Literal
from urllib.parse import quote

import aiohttp
import orjson
from msgspec import structs

from foreseen.errors import BadInput, BadRequest, DigestMoved, ModelFailed, ModelUnavailable, SetupError
from foreseen.modelspec.artifact import fields_digest, preparation_digest
from foreseen.modelspec.invariance import difference
from foreseen.modelspec.manifest import BATCH, Manifest, ModelOutput, ModelSignature
from foreseen.protocol.members import RequestMembers, naming, pack_reply
from foreseen.protocol.wire import Response
from foreseen.protocol.wire_render import render_json_request
from foreseen.proxy.backend.http_pool import HttpReply
from foreseen.proxy.backend.model import ModelProcess, Tensors
from foreseen.proxy.backend.model_client import posted
from foreseen.proxy.backend.model_metadata import PROBE_SECONDS, ModelFacts
from foreseen.proxy.backend.poison.isolation import IsolationLock
from foreseen.proxy.backend.row_probe import Gap, RowProbe
from foreseen.proxy.backend.upstream_access import UpstreamAccess
from foreseen.proxy.backend.upstream_metadata import (
    UpstreamMetadata,
    declared_beside,
    document_of,
    metadata_of,
    optional_inputs,
)
from foreseen.types import RequestOptions, Row
from foreseen.web.http import JSON

Rows = Literal["each", "together"]


class UpstreamProcess(ModelProcess):
    """A model on another server, asked by whole requests and single rows alike. `manifest` is None where only the
    metadata describe the model."""

    _silent_ids = (None, "")
    ours = False
    _gap: Gap = staticmethod(difference)
    _probe_kind: type[RowProbe] = RowProbe
    """How far apart two sets of answers to the same rows are, for the probe."""
    _compares_members = True
    """Whether the probe compares what replies hold beside their tensors."""

    def __init__(
        self,
        reported: UpstreamMetadata,
        address: str,
        *,
        manifest: Manifest | None,
        digest: str | None,
        tolerance: float,
        probe: bool,
        quarantine_seconds: float,
        trials: IsolationLock | None = None,
        access: UpstreamAccess | None = None,
    ) -> None:
        self.reported = reported
        self._access = access or UpstreamAccess()
        self.declared = manifest
        own = manifest or reported.manifest
        super().__init__(own, address, quarantine_seconds=quarantine_seconds, trials=trials)
        self._declared_digest = digest or ""
        self._probing = probe
        self._probe = self._probe_kind(
            own.name, self._ask, self._gap, tolerance, compares_members=self._compares_members
        )
        self._base_digest = ""
        self._said_version = ""
        self._binary: bool | None = None
        self._answers_some = False
        self._known_metadata: dict[str, Any] | None = None
        self._optional: frozenset[str] | None = None

    @property
    def rows(self) -> Rows:
        """How its rows are to be keyed by what is known now."""
        if self.declared is not None:
            return self.declared.rows
        probed = self._probe.result(self._digest_now())
        return "each" if probed is not None and probed.independent else "together"

    @property
    def outputs(self) -> Literal["all", "requested"]:
        """Whether it answers with all its outputs whatever is asked for."""
        if self.declared is not None:
            return self.declared.outputs
        return "requested" if self._answers_some else "all"

    @property
    def settled(self) -> bool:
        """Whether nothing is about to be found out."""
        return not self._probe.is_running

    @property
    def why(self) -> str:
        """Why its rows are keyed so."""
        probed = self._probe.result(self._digest_now())
        return "not probed" if probed is None else probed.why

    async def close(self) -> None:
        await self._probe.close()
        await super().close()

    async def facts(self) -> ModelFacts:
        metadata = await self.fetch_metadata()
        if self.declared is None and metadata != self._known_metadata:
            self._optional = optional_inputs(metadata, await self.fetch_config())
            self._known_metadata = metadata
        return self._facts(metadata)

    async def fetch_config(self) -> Any:
        """Triton's model configuration, None where there is none to be had."""
        name = self._manifest.name
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                status, content = await self._got(f"/v2/models/{name}/config")
                return orjson.loads(content) if status == 200 else None
        except (aiohttp.ClientError, OSError, TimeoutError, orjson.JSONDecodeError):
            return None

    async def fetch_metadata(self) -> dict[str, Any]:
        """Its V2 metadata; without any, nothing where an operator's manifest says all. Raises ModelUnavailable."""
        name = self._manifest.name
        path = f"/v2/models/{quote(name, safe='')}"
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                status, _ = await self._got(f"{path}/ready")
                if status != 200:
                    raise ModelUnavailable(f"model {name!r} is not ready: GET {path}/ready answered {status}")
                status, content = await self._got(path)
        except (aiohttp.ClientError, OSError) as error:
            late = isinstance(error, TimeoutError)
            why = f"was not answered in {PROBE_SECONDS:g} seconds" if late else f"failed ({type(error).__name__})"
            raise ModelUnavailable(f"model {name!r} cannot be reached: GET {path} {why}") from None
        document = document_of(content) if status == 200 else None
        if document is None and self.declared is None:
            raise ModelUnavailable(f"model {name!r}: GET {path} answered {status} and no metadata")
        return document or {}

    async def _got(self, path: str) -> tuple[int, bytes]:
        async with self._client().get(self._base + path, headers=self._access.credential(self._model)) as reply:
            return reply.status, await reply.read()

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = self._access.tensor_session(self._base)
        return self._session

    async def exchange(self, body: bytes, headers: dict[str, str]) -> HttpReply:
        headers = {**self._access.credential(self._model), **headers}
        if "Connection" not in headers:
            return await super().exchange(body, headers)
        async with self._access.tensor_session(self._base) as client:
            return await posted(client, self._base + self._path, body, headers)

    def _facts(self, metadata: dict[str, Any]) -> ModelFacts:
        """Raises ModelUnavailable where the server has no such model any more, SetupError where it is another one."""
        name = self._manifest.name
        self.reported = reported = self._reported(name, metadata)
        if self.declared is None and reported.manifest.model != self._signature:
            raise SetupError(f"model {name!r}: its signature has changed")
        preparation = preparation_digest(structs.replace(self._manifest, rows="together"), ())
        whole = orjson.dumps(reported.digest if reported.digest is not None else metadata, option=orjson.OPT_SORT_KEYS)
        base = fields_digest(b"foreseen v1 upstream", whole, self._declared_digest.encode(), preparation.encode())
        if base != self._base_digest:
            self._base_digest, self._binary = base, None
        digest = self._digest_now()
        if self._probing:
            self._probe.start(digest, self._signature)
        probed = self._probe.result(digest)
        dependent = probed is not None and probed.independent is False
        free, identity = self.rows == "together" or not dependent, self._identity()
        return ModelFacts(digest, None, row_independent=free, identity=identity, rows_why=self.why)

    def _reported(self, name: str, metadata: dict[str, Any]) -> UpstreamMetadata:
        """A manifest of the operator's may say of a tensor what the metadata leave out, but not otherwise."""
        if self.declared is None:
            return metadata_of(name, metadata, self._optional)
        return declared_beside(self.declared, metadata)

    def _identity(self) -> str:
        if self.reported.digest is not None:
            return "digest"
        if self._declared_digest:
            return "declared"
        return "version" if self.reported.versioned or self._said_version else "unobservable"

    def _digest_now(self) -> str:
        """The version in force: the metadata's, and what the last reply called itself."""
        return fields_digest(b"foreseen v1 upstream answer", self._base_digest.encode(), self._said_version.encode())

    def _digest(self, response: Response) -> str:
        """Replies name a version at best. One that names another than the last is another model."""
        reported = response.parameters.get("digest")
        said = reported if isinstance(reported, str) else response.version or ""
        self._said_version = said
        return self._digest_now()

    def _together(self, rows: Sequence[Row]) -> bool:
        whole = [len(spec.shape) for spec in self._signature.of(rows[0].given).keyed]
        ranks = [tensor.ndim for tensor in rows[0].tensors]
        if ranks == whole:
            return True
        if [rank + 1 for rank in ranks] != whole:
            raise DigestMoved(self._digest_now())  # rows of the signature that it had before
        return False

    def _parts(self, rows: Sequence[Row]) -> list[Sequence[int]]:
        """Rows of the same inputs and of one shape go together: without a mask, padding might change their answers. A
        whole request goes alone, also where it waited with rows: those that came before the probe had ended."""
        masked = any(spec.role == "mask" for spec in self._signature.inputs)
        complete = all(row.given is None for row in rows)
        if (masked and complete) or self._together(rows):
            return super()._parts(rows)
        shapes = [(row.given or (), *(tensor.shape for tensor in row.tensors)) for row in rows]
        parts: list[Sequence[int]] = []
        for _, group in groupby(sorted(range(len(rows)), key=lambda at: (shapes[at], at)), key=lambda at: shapes[at]):
            places = list(group)
            step = 1 if self._together([rows[places[0]]]) else self._rows_per_request
            parts += [places[at : at + step] for at in range(0, len(places), step)]
        return parts

    def _firsts(self, rows: int | None) -> Mapping[str, int | None]:
        return self.reported.firsts

    async def _asked(
        self, tensors: Tensors, members: RequestMembers, options: RequestOptions, request_id: str
    ) -> Response:
        """Binary tensors where the server takes them, JSON where not; which of the two, its first answer shows."""
        if members.outputs and self.outputs == "all":  # an entry holds all outputs, so all are asked for
            members = naming(members, [spec.name for spec in self._signature.outputs])
        if self._binary is not False:
            try:
                # Bytes that a server cannot read it may answer, and close the connection without a word (MLServer's
                # 500): what is sent on it next, the same as JSON, would look like a row that ended its process.
                last = self._binary is None
                response = await self._asked_binary(tensors, members, options, request_id, last=last)
            except (BadInput, ModelFailed):
                if self._binary:
                    raise
            else:
                self._binary = True
                return response
        try:
            body = render_json_request(tensors, members.parameters, request_id, members)
        except BadRequest as error:
            raise BadInput(f"{error}; the upstream accepts JSON only") from None
        response = await self._post(body, {"Content-Type": JSON}, options)
        self._binary = False
        return response

    def _signature_of(
        self, response: Response, members: RequestMembers, given: tuple[int, ...] | None
    ) -> ModelSignature:
        """An output that was to be classified is text where the server has done it."""
        texts = {output.name: output.array for output in response.outputs if output.datatype == "BYTES"}
        classified = {
            name
            for name, more in members.outputs.items()
            if name in texts and more.get("parameters", {}).get("classification")
        }
        signature = self._answering(response, members, self._signature.of(given))
        if not classified:
            return signature
        outputs = tuple(
            ModelOutput(spec.name, "BYTES", (BATCH, *texts[spec.name].shape[1:])) if spec.name in classified else spec
            for spec in signature.outputs
        )
        return structs.replace(signature, outputs=outputs)

    def _answering(self, response: Response, members: RequestMembers, signature: ModelSignature) -> ModelSignature:
        """The signature with those outputs that a reply has to have: what was named where the server answers just that;
        else all. A server that leaves some out where none was named is one that does (MLServer's scikit-learn)."""
        listed, there = signature.outputs, {output.name for output in response.outputs}
        wanted = {spec.name for spec in listed}
        if not members.outputs:
            answered = wanted & there
            if answered and answered < wanted:
                self._answers_some = True
            if answered and self.outputs == "requested":
                wanted = answered
        elif self.outputs == "requested":
            wanted = set(members.outputs)
        return structs.replace(signature, outputs=tuple(spec for spec in listed if spec.name in wanted))

    def _beside(self, response: Response) -> bytes | None:
        return pack_reply(response.members)
