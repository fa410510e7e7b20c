"""Rows → predictions, by asking the model's own process over V2 with binary tensors.

The reply is checked against the signature and never trusted: another shape, datatype, count or id is refused and so
never stored. HTTP is in `model_client.py`, the metadata in `model_metadata.py`, and `poison/` finds the rows that the
model refuses or that end its process.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from foreseen.errors import DeadlineExceeded, ForeseenError, InputRejected, ModelFailed, RowsRefused
from foreseen.keys.key import Framer
from foreseen.modelspec.manifest import Manifest, ModelSignature
from foreseen.modelspec.row_outputs import firsts_of, raw_of_outputs, raw_outputs, whole_outputs
from foreseen.modelspec.rows import row_count, stack
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.members import NO_MEMBERS, REPLY_HEAD, RequestMembers, read_canonical
from foreseen.protocol.wire import Response
from foreseen.protocol.wire_render import render_request
from foreseen.proxy.backend.model_client import ModelClient
from foreseen.proxy.backend.model_metadata import ModelFacts, facts_of, read_metadata
from foreseen.proxy.backend.poison.bisecting import Outcome, PoisonIsolation
from foreseen.proxy.backend.poison.isolation import IsolationLock
from foreseen.proxy.backend.poison.quarantine import Quarantine
from foreseen.proxy.backend.row_templates import RowTemplate, RowTemplates
from foreseen.types import Array, Prediction, RequestOptions, Row
from foreseen.web.http import BINARY, HEADER_LENGTH

Tensors = list[tuple[str, str, Array]]
"""Name, datatype and batch of every input of a request."""

ROWS_PER_REQUEST = 256
"""Rows of one request to a model process; more are split."""
MAX_REQUESTS = 96
"""Requests to one model process at a time; more wait."""


class ModelProcess(ModelClient):
    """One model's process, as the pipeline asks it."""

    _silent_ids: tuple[str | None, ...] = ()
    """What a reply's id may be when it is not the request's."""

    def __init__(
        self,
        manifest: Manifest,
        address: str,
        *,
        rows_per_request: int = ROWS_PER_REQUEST,
        requests: int = MAX_REQUESTS,
        quarantine_seconds: float = 600.0,
        trials: IsolationLock | None = None,
    ) -> None:
        self.quarantine = Quarantine(Framer(manifest.model), quarantine_seconds)
        self._poison = PoisonIsolation(
            manifest.name, self._ask, self.fetch_metadata, self.quarantine, trials or IsolationLock()
        )
        super().__init__(manifest.name, address, requests=requests, on_send=self._poison.sent)
        self._manifest = manifest
        self._signature = manifest.model
        self._templates = RowTemplates(manifest.model) if self.ours and manifest.rows == "each" else None
        self._rows_per_request = rows_per_request
        self._ids = map(f"{secrets.token_hex(8)}-{{:x}}".format, itertools.count())

    async def predict(self, rows: Sequence[Row], parameters: bytes, options: RequestOptions) -> list[Prediction]:
        """One prediction per row, in order. More rows than one request takes go as several, side by side.

        Raises ModelUnavailable, Overloaded, DeadlineExceeded, ModelFailed, or BadInput where the model itself refuses;
        RowsRefused where some rows are in quarantine or refused by themselves, with what the others got.
        """
        template = self._template(rows, parameters, options)
        if template is not None:
            ask = partial(self._ask_row, template, rows, options)
            outcomes = await self._poison.predict(rows, parameters, options, ask)
        elif not self.quarantine:
            outcomes = await self._outcomes(rows, parameters, options)
        else:
            outcomes = await self._poison.around_suspects(rows, parameters, options, self._outcomes)
        answered = [outcome for outcome in outcomes if isinstance(outcome, Prediction)]
        if len(answered) == len(outcomes):
            return answered
        if len(outcomes) == 1 and not isinstance(outcomes[0], InputRejected):
            raise outcomes[0]  # type: ignore[misc] # it is no prediction
        raise RowsRefused(outcomes)

    async def _outcomes(self, rows: Sequence[Row], parameters: bytes, options: RequestOptions) -> list[Outcome]:
        """One per row, in order, by as many requests as that takes."""
        parts = self._parts(rows)
        if len(parts) == 1:
            return await self._poison.predict(rows, parameters, options)
        answered: dict[int, Outcome] = {}
        waiting = iter(parts)

        async def ask() -> ForeseenError | None:
            for part in waiting:
                try:
                    outcomes = await self._poison.predict([rows[at] for at in part], parameters, options)
                except ForeseenError as error:
                    return error
                answered.update(zip(part, outcomes, strict=True))
            return None

        # Two at a time keep the process busy between runs; all at once would overflow its queue and be refused.
        for error in await asyncio.gather(ask(), ask()):
            if error is not None:
                raise error
        return [answered[at] for at in range(len(rows))]

    async def facts(self) -> ModelFacts:
        """What the process reports about itself. Raises ModelUnavailable unless it is reachable and ready."""
        return self._facts(await self.fetch_metadata())

    async def fetch_metadata(self) -> dict[str, Any]:
        """Its V2 metadata. Raises ModelUnavailable unless it is reachable and ready."""
        return await read_metadata(self._client(), self._base, self._manifest.name)

    def _facts(self, metadata: dict[str, Any]) -> ModelFacts:
        return facts_of(self._manifest.name, metadata)

    async def _ask(self, rows: Sequence[Row], parameters: bytes, options: RequestOptions) -> list[Prediction]:
        """One request as it is. Raises ConnectionBroke where it was under way when the connection ended."""
        signature = self._signature.of(rows[0].given)
        batch = whole_batch(rows[0], signature) if self._together(rows) else stack(rows, signature)
        left = options.deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise DeadlineExceeded("the deadline passed before the model was asked")
        tensors = [(i.name, i.datatype, batch[i.name]) for i in signature.inputs]
        request_id = next(self._ids)
        started = time.perf_counter()
        members = read_canonical(parameters)
        response = await self._asked(tensors, members, options, request_id)
        return self._predictions(response, rows, members, request_id, time.perf_counter() - started)

    def _template(self, rows: Sequence[Row], parameters: bytes, options: RequestOptions) -> RowTemplate | None:
        """What one row is asked by where nothing has to be waited for, and nothing else is to be said."""
        if len(rows) != 1 or self._templates is None or parameters or self.quarantine or self.quarantine.is_trying:
            return None
        line = self._line
        if options.traceparent is not None or self.passed is not None or line is None or not line.has_idle:
            return None
        if self._places.locked():
            return None
        return self._templates.of(rows[0], options, _own_parameters(options))

    async def _ask_row(
        self, template: RowTemplate, rows: Sequence[Row], options: RequestOptions
    ) -> list[Prediction]:  # fmt: skip
        """`_ask` of one row by its template, before any other request that is tried alone; bounded by the deadline."""
        left = options.deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise DeadlineExceeded("the deadline passed before the model was asked")
        request_id = next(self._ids)
        own = request_id.encode()
        body, length = template.request(rows[0], own, max(1, int(left * 1e6)))
        started = time.perf_counter()
        await self.quarantine.enter()
        try:
            reply = await self._post_row(body, length, left)
        finally:
            self.quarantine.leave()
        json_length = reply.json_length
        if template.reply is not None and json_length is not None:
            prediction = template.reply.read(reply.body, json_length, own)
            if prediction is not None:
                return [prediction]
        response = self._read(reply)
        predictions = self._predictions(response, rows, NO_MEMBERS, request_id, time.perf_counter() - started)
        if json_length is not None:
            template.learn(reply.body, json_length, own, response, predictions[0])
        return predictions

    # How our own process is asked; `upstream.py` overrides this for other servers.

    def _together(self, rows: Sequence[Row]) -> bool:
        """Whether each of the rows is a whole request."""
        return self._manifest.rows == "together"

    def _parts(self, rows: Sequence[Row]) -> list[Sequence[int]]:
        """Which rows go into one request."""
        step = 1 if self._together(rows) else self._rows_per_request
        return [range(at, min(at + step, len(rows))) for at in range(0, len(rows), step)]

    async def _asked(
        self, tensors: Tensors, members: RequestMembers, options: RequestOptions, request_id: str
    ) -> Response:
        left = options.deadline - asyncio.get_running_loop().time()
        ours = {"timeout": max(1, int(left * 1e6)), **_own_parameters(options)}
        own = RequestMembers({**members.parameters, **ours})
        return await self._asked_binary(tensors, own, options, request_id)

    def _digest(self, response: Response) -> str:
        """Which version of the model made a reply. Raises ModelFailed where it belongs to another question."""
        digest = response.parameters.get("digest")
        if not isinstance(digest, str):
            raise ModelFailed(f"model {self._manifest.name!r}: the reply has no digest")
        return digest

    def _firsts(self, rows: int | None) -> Mapping[str, int | None]:
        """How many rows each output of a whole request has; None where any number may be right."""
        return firsts_of(self._signature, rows)

    def _signature_of(
        self, response: Response, members: RequestMembers, given: tuple[int, ...] | None
    ) -> ModelSignature:
        """What was asked with these inputs, and what the outputs of a reply have to be."""
        return self._signature.of(given)

    def _beside(self, response: Response) -> bytes | None:
        """What is to be stored of a reply beside its tensors."""
        return None

    # The rest is the same for all servers.

    async def _asked_binary(
        self, tensors: Tensors, members: RequestMembers, options: RequestOptions, request_id: str, *, last: bool = False
    ) -> Response:
        """`last`: the connection is used for nothing else."""
        body, length = render_request(tensors, members.parameters, request_id, members)
        headers = {HEADER_LENGTH: str(length), "Content-Type": BINARY}
        return await self._post(body, {**headers, "Connection": "close"} if last else headers, options)

    def _predictions(
        self, response: Response, rows: Sequence[Row], members: RequestMembers, asked: str, seconds: float
    ) -> list[Prediction]:
        """Check a reply against the request, then cut it into rows."""
        name = self._manifest.name
        if response.model != name or response.id not in (asked, *self._silent_ids):
            raise ModelFailed(f"model {name!r}: the reply belongs to another request")
        digest = self._digest(response)
        outputs: dict[str, Array] = {output.name: output.array for output in response.outputs}
        took = response.parameters.get("seconds")
        each = float(took) if isinstance(took, int | float) else seconds / len(rows)
        signature = self._signature_of(response, members, rows[0].given)
        if self._together(rows):
            count = row_count(rows[0].tensors, signature.keyed)
            raw = [raw_of_outputs(whole_outputs(outputs, signature, self._firsts(count)), signature)]
        else:
            raw = raw_outputs(outputs, rows, signature)
        beside = self._beside(response)
        if beside is not None:
            raw = [((*heads, REPLY_HEAD), (*data, beside)) for heads, data in raw]
        now = time.time()
        return [Prediction(heads, data, digest, now, now, each) for heads, data in raw]


def _own_parameters(options: RequestOptions) -> dict[str, Any]:
    """What our own process is told of a request beside its timeout."""
    ours: dict[str, Any] = {"priority": 1 if options.lane == "online" else 2}
    return ours | {"caller": options.caller, "weight": options.weight} if options.caller else ours


def whole_batch(row: Row, signature: ModelSignature) -> dict[str, Array]:
    """The batch of a model whose rows belong together: its one row is the request."""
    batch = {spec.name: tensor for spec, tensor in zip(signature.keyed, row.tensors, strict=True)}
    for spec in signature.inputs:
        if spec.of is not None and spec.role is not None:  # nothing is padded, so a mask is all ones
            made = np.ones if spec.role == "mask" else np.zeros
            batch[spec.name] = made(batch[spec.of].shape, DATATYPES[spec.datatype].dtype)
    return batch
