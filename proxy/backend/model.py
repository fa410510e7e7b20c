"""Rows → predictions, by asking the model's own process over V2 with binary tensors.

The process is reached over a unix socket (`unix:/path`) or `http://host:port`. What it answers is held against the
signature and never trusted: another shape, datatype, count or id is refused and so never stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
import numpy as np
import orjson
import structlog
from msgspec import Struct

from foreseen.errors import (
    BadInput,
    BadRequest,
    DeadlineExceeded,
    ForeseenError,
    InputRejected,
    ModelFailed,
    ModelUnavailable,
    Overloaded,
    RowsRefused,
    TooLarge,
)
from foreseen.keys.key import Framer
from foreseen.modelspec.manifest import Manifest, ModelSignature
from foreseen.modelspec.rows import raw_of_outputs, raw_outputs, stack, whole_outputs
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.members import REPLY_HEAD, RequestMembers, read_canonical
from foreseen.protocol.wire import Response, parse_response, render_request
from foreseen.proxy.backend.http_pool import Broken, HttpPool, HttpReply, NotReached, Unreadable
from foreseen.proxy.backend.isolation import IsolationLock
from foreseen.proxy.backend.quarantine import Quarantine
from foreseen.proxy.backend.retry_budget import RetryBudget
from foreseen.types import Array, Prediction, RequestOptions, Row
from foreseen.web.http import BINARY, HEADER_LENGTH

log = structlog.get_logger()

Outcome = Prediction | ForeseenError
SPLITS = 32.0
"""Requests that may be sent beyond those that were asked for, to find the rows that the model refuses: one of 64 is
found with 12. Where the model refuses everything, what is sent grows by a tenth."""
Tensors = list[tuple[str, str, Array]]
"""Name, datatype and batch of every input of a request."""

PROBE_SECONDS = 2.0
MAX_ERROR_CHARACTERS = 300


RETURN_SECONDS = (0.02, 0.2)
"""Between two looks whether a process is back."""


class ConnectionBroke(ModelUnavailable):
    """The connection ended after the question was sent: its rows were aboard."""


class ModelFacts(Struct, frozen=True):
    """What a model process says of itself in its metadata's `parameters`."""

    digest: str
    preparation: str | None = ""
    """None of a foreign server, which knows nothing of what is done before it is asked."""
    precision: str = ""
    provider: str = ""
    row_independent: bool = True
    identity: str = "digest"
    """What a change of the model shows in: `digest`, `declared`, `version`, or `unobservable`."""
    artifact: str = ""
    """The artifact digest; empty of a foreign server."""


class ModelProcess:
    """One model's process, as the pipeline asks it."""

    _silent_ids: tuple[str | None, ...] = ()
    """What a reply's id may be when it is not the question's."""
    ours = True
    """Whether it is our own model process: it batches rows of several requests by itself, and says what each took."""

    def __init__(
        self,
        manifest: Manifest,
        address: str,
        *,
        rows_per_request: int,
        requests: int,
        quarantine_seconds: float = 600.0,
        trials: IsolationLock | None = None,
    ) -> None:
        self._trials = trials or IsolationLock()
        self.quarantine = Quarantine(Framer(manifest.model), quarantine_seconds)
        self._manifest = manifest
        self._signature = manifest.model
        self._address = address
        self._rows_per_request = rows_per_request
        self._places = asyncio.Semaphore(requests)
        self._retries, self._splits = RetryBudget(), RetryBudget(SPLITS)
        self._session: aiohttp.ClientSession | None = None
        self._line = HttpPool(address.removeprefix("unix:")) if address.startswith("unix:") else None
        self._ids = map(f"{secrets.token_hex(8)}-{{:x}}".format, itertools.count())
        self._path = f"/v2/models/{manifest.name}/infer"
        self._base = "http://model" if address.startswith("unix:") else address.rstrip("/")

    async def predict(self, rows: Sequence[Row], parameters: bytes, options: RequestOptions) -> list[Prediction]:
        """One prediction per row, in order. More rows than one request takes go as several, side by side.

        Raises ModelUnavailable, Overloaded, DeadlineExceeded, ModelFailed, or BadInput where the model itself refuses;
        RowsRefused where some rows are in quarantine or refused by themselves, with what the others got.
        """
        if not self.quarantine:
            outcomes = await self._outcomes(rows, parameters, options)
        else:
            outcomes = await self._around_suspects(rows, parameters, options)
        answered = [outcome for outcome in outcomes if isinstance(outcome, Prediction)]
        if len(answered) == len(outcomes):
            return answered
        if len(outcomes) == 1 and not isinstance(outcomes[0], InputRejected):
            raise outcomes[0]  # type: ignore[misc] # it is no prediction
        raise RowsRefused(outcomes)

    async def _outcomes(self, rows: Sequence[Row], parameters: bytes, options: RequestOptions) -> list[Outcome]:
        """One per row, in order, whatever it takes in requests."""
        parts = self._parts(rows)
        if len(parts) == 1:
            return await self._predict(rows, parameters, options)
        answered: dict[int, Outcome] = {}
        waiting = iter(parts)

        async def ask() -> ForeseenError | None:
            for part in waiting:
                try:
                    outcomes = await self._predict([rows[at] for at in part], parameters, options)
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
        """What the process says of itself. Raises ModelUnavailable unless it is there and ready."""
        return self._facts(await self._metadata())

    async def _metadata(self) -> dict[str, Any]:
        """Its V2 metadata. Raises ModelUnavailable unless it is there and ready."""
        name = self._manifest.name
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                async with self._client().get(f"{self._base}/v2/models/{name}/ready") as reply:
                    if reply.status != 200:
                        raise ModelUnavailable(f"model {name!r} is not ready")
                async with self._client().get(f"{self._base}/v2/models/{name}") as reply:
                    document = orjson.loads(await reply.read())
        except (aiohttp.ClientError, OSError, TimeoutError, orjson.JSONDecodeError):
            raise ModelUnavailable(f"model {name!r} cannot be reached") from None
        if not isinstance(document, dict):
            raise ModelUnavailable(f"model {name!r} describes itself in a way that cannot be read")
        return document

    def _facts(self, metadata: dict[str, Any]) -> ModelFacts:
        told = metadata.get("parameters", {})
        if not isinstance(told.get("digest"), str):
            raise ModelUnavailable(f"model {self._manifest.name!r} does not say its digest")
        known = {field: told[field] for field in ModelFacts.__struct_fields__ if field in told}
        return ModelFacts(**known)

    async def exposition(self) -> bytes:
        """What the process counts, in the Prometheus text format. Raises ModelUnavailable."""
        try:
            url = f"{self._base}/metrics"
            async with asyncio.timeout(PROBE_SECONDS), self._client().get(url) as reply:
                reply.raise_for_status()
                return await reply.read()
        except (aiohttp.ClientError, OSError, TimeoutError):
            raise ModelUnavailable(f"model {self._manifest.name!r} tells no metrics") from None

    def renew(self) -> None:
        """Another process has taken the address over: who holds a connection to the old one uses it no more."""
        if self._line is not None:
            self._line.close()
            self._line = HttpPool(self._address.removeprefix("unix:"))

    async def close(self) -> None:
        if self._line is not None:
            self._line.close()
        if self._session is not None:
            await self._session.close()

    async def _predict(self, rows: Sequence[Row], parameters: bytes, options: RequestOptions) -> list[Outcome]:
        """One request. Where the model refuses it, its halves: its rows are of many callers, and whoever asks for what
        the model cannot answer is not to spoil the others' answers."""
        try:
            return await self._predict_together(rows, parameters, options)
        except (BadInput, ModelFailed, TooLarge) as error:
            if len(rows) == 1:
                return [error]
            if not (self._splits.spend() and self._splits.spend()):
                raise
        half = len(rows) // 2
        outcomes: list[Outcome] = []
        for part in (rows[:half], rows[half:]):
            try:
                outcomes += await self._predict(part, parameters, options)
            except ForeseenError as error:
                outcomes += [error] * len(part)
        return outcomes

    async def _predict_together(self, rows: Sequence[Row], parameters: bytes, options: RequestOptions) -> list[Outcome]:
        """One request. Where its connection breaks, once more as it was: a prediction is a pure function of its rows.
        Where the process has ended, one by one."""
        try:
            return [*await self._ask_among_others(rows, parameters, options)]
        except ConnectionBroke:
            if not self._retries.spend():  # it would add to what broke it
                raise
        with contextlib.suppress(ModelUnavailable):  # an idle connection may be closed just when it is used
            return [*await self._ask_among_others(rows, parameters, options)]
        return await self._one_by_one(rows, parameters, options)

    async def _around_suspects(self, rows: Sequence[Row], parameters: bytes, options: RequestOptions) -> list[Outcome]:
        """Whoever has ended the process before is asked alone or not at all; the rest as ever."""
        places = [at for at, row in enumerate(rows) if self.quarantine.crashes(row, parameters)]
        rest = [at for at in range(len(rows)) if at not in set(places)]
        outcomes: dict[int, Outcome] = {}
        if rest:
            answered = await self._outcomes([rows[at] for at in rest], parameters, options)
            outcomes.update(zip(rest, answered, strict=True))
        tried = await self._one_by_one([rows[at] for at in places], parameters, options)
        outcomes.update(zip(places, tried, strict=True))
        return [outcomes[at] for at in range(len(rows))]

    async def _one_by_one(self, rows: Sequence[Row], parameters: bytes, options: RequestOptions) -> list[Outcome]:
        """Each row with nobody else aboard; who ends the process is tried once more when the others have answers."""
        outcomes: dict[int, Outcome] = {}
        waiting = list(range(len(rows)))
        while waiting:
            for at in waiting:
                outcome = await self._alone(rows[at], parameters, options)
                if outcome is not None:
                    outcomes[at] = outcome
            waiting = [at for at in waiting if at not in outcomes]
        return [outcomes[at] for at in range(len(rows))]

    async def _alone(self, row: Row, parameters: bytes, options: RequestOptions) -> Outcome | None:
        """One row's prediction or refusal; None where it has ended the process for the first time."""
        refusal = self.quarantine.refusal(row, parameters)
        if refusal is not None:
            return refusal
        while True:
            await self._until_there(options)
            try:
                turn = self._trials.turn(self._manifest.name)
                async with asyncio.timeout_at(options.deadline), self.quarantine.alone(turn):
                    await self._metadata()  # whoever had the turn before may have ended it
                    predictions = await self._ask([row], parameters, options)
            except TimeoutError:
                raise DeadlineExceeded(f"model {self._manifest.name!r} did not answer before the deadline") from None
            except ConnectionBroke:
                self.quarantine.crashed(row, parameters)
                log.error("a row has ended the model's process", model=self._manifest.name)
                return self.quarantine.refusal(row, parameters)
            except ModelUnavailable:
                continue  # somebody else has ended it before this row was aboard
            self.quarantine.cleared(row, parameters)
            return predictions[0]

    async def _until_there(self, options: RequestOptions) -> None:
        """Wait for a process that is being started again. Raises ModelUnavailable at the deadline."""
        while True:
            try:
                await self._metadata()
            except ModelUnavailable:
                pause = random.uniform(*RETURN_SECONDS)  # noqa: S311 - so that two proxies seldom try at once
                if asyncio.get_running_loop().time() + pause >= options.deadline:
                    raise
                await asyncio.sleep(pause)
            else:
                return

    async def _ask_among_others(
        self, rows: Sequence[Row], parameters: bytes, options: RequestOptions
    ) -> list[Prediction]:
        try:
            async with asyncio.timeout_at(options.deadline), self.quarantine.among_others():
                return await self._ask(rows, parameters, options)
        except TimeoutError:
            raise DeadlineExceeded(f"model {self._manifest.name!r} did not answer before the deadline") from None

    async def _ask(self, rows: Sequence[Row], parameters: bytes, options: RequestOptions) -> list[Prediction]:
        """One request as it is. Raises ConnectionBroke where it was aboard when the connection ended."""
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

    # What follows is how this kind of server is asked; `upstream.py` says it of any other.

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
        told = {"timeout": max(1, int(left * 1e6)), "priority": 1 if options.lane == "online" else 2}
        own = RequestMembers({**members.parameters, **told})
        return await self._asked_binary(tensors, own, options, request_id)

    def _digest(self, response: Response) -> str:
        """Which version of the model made a reply. Raises ModelFailed where it belongs to another question."""
        digest = response.parameters.get("digest")
        if not isinstance(digest, str):
            raise ModelFailed(f"model {self._manifest.name!r}: the reply does not say its digest")
        return digest

    def _firsts(self, rows: int) -> Mapping[str, int | None]:
        """How many rows each output of a whole request has; None where any number may be right."""
        return dict.fromkeys((spec.name for spec in self._signature.outputs), rows)

    def _signature_of(
        self, response: Response, members: RequestMembers, given: tuple[int, ...] | None
    ) -> ModelSignature:
        """What was asked with these inputs, and what the outputs of a reply have to be."""
        return self._signature.of(given)

    def _beside(self, response: Response) -> bytes | None:
        """What is to be stored of a reply beside its tensors."""
        return None

    # From here on all are alike.

    async def _asked_binary(
        self, tensors: Tensors, members: RequestMembers, options: RequestOptions, request_id: str, *, last: bool = False
    ) -> Response:
        """`last`: the connection is used for nothing else."""
        body, length = render_request(tensors, members.parameters, request_id, members)
        headers = {HEADER_LENGTH: str(length), "Content-Type": BINARY}
        return await self._post(body, {**headers, "Connection": "close"} if last else headers, options)

    async def _post(self, body: bytes, headers: dict[str, str], options: RequestOptions) -> Response:
        """One exchange, without a bound on its time: whoever calls has one."""
        name = self._manifest.name
        if options.traceparent is not None:
            headers["traceparent"] = options.traceparent
        try:
            async with self._places:
                self._retries.sent()
                self._splits.sent()
                told = await self._exchange(body, headers)
        except (aiohttp.ClientConnectorError, NotReached):
            raise ModelUnavailable(f"model {name!r} cannot be reached") from None
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientPayloadError, Broken):
            raise ConnectionBroke(f"model {name!r} cannot be reached") from None
        except TimeoutError:  # an OSError, too
            raise
        except (aiohttp.ClientConnectionError, OSError):
            raise ModelUnavailable(f"model {name!r} cannot be reached") from None
        except (aiohttp.ClientError, Unreadable) as error:
            raise ModelFailed(f"model {name!r}: its reply cannot be read ({type(error).__name__})") from None
        return self._read(told)

    async def _exchange(self, body: bytes, headers: dict[str, str]) -> HttpReply:
        if self._line is not None:
            return await self._line.post(self._path, headers, body)
        async with self._client().post(self._base + self._path, data=body, headers=headers) as reply:
            told = {name.lower(): value for name, value in reply.headers.items()}
            return HttpReply(reply.status, told, await reply.read())

    def _read(self, told: HttpReply) -> Response:
        name = self._manifest.name
        if told.status != 200:
            raise _refusal(name, told.status, told.body, told.headers.get("retry-after"))
        length = told.headers.get(HEADER_LENGTH.lower())
        try:
            return parse_response(told.body, int(length) if length is not None else None, ours=self.ours)
        except (BadRequest, ValueError) as error:
            raise ModelFailed(f"model {name!r}: {error}") from None

    def _predictions(
        self, response: Response, rows: Sequence[Row], members: RequestMembers, asked: str, seconds: float
    ) -> list[Prediction]:
        """Hold a reply against the question, then cut it into rows."""
        name = self._manifest.name
        if response.model != name or response.id not in (asked, *self._silent_ids):
            raise ModelFailed(f"model {name!r}: the reply belongs to another question")
        digest = self._digest(response)
        outputs: dict[str, Array] = {output.name: output.array for output in response.outputs}
        told = response.parameters.get("seconds")
        each = float(told) if isinstance(told, int | float) else seconds / len(rows)
        signature = self._signature_of(response, members, rows[0].given)
        if self._together(rows):
            count = len(rows[0].tensors[0])
            raw = [raw_of_outputs(whole_outputs(outputs, signature, self._firsts(count)), signature)]
        else:
            raw = raw_outputs(outputs, rows, signature)
        beside = self._beside(response)
        if beside is not None:
            raw = [((*heads, REPLY_HEAD), (*data, beside)) for heads, data in raw]
        now = time.time()
        return [Prediction(heads, data, digest, now, now, each) for heads, data in raw]

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector: aiohttp.BaseConnector
            if self._address.startswith("unix:"):
                # a new connection each, as they are few and ask who is there now
                connector = aiohttp.UnixConnector(self._address.removeprefix("unix:"), limit=0, force_close=True)
            else:
                connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None),  # the deadline of every question bounds it instead
                auto_decompress=False,
                skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
            )
        return self._session


def whole_batch(row: Row, signature: ModelSignature) -> dict[str, Array]:
    """The batch of a model whose rows belong together: its one row is the request."""
    batch = {spec.name: tensor for spec, tensor in zip(signature.keyed, row.tensors, strict=True)}
    for spec in signature.inputs:
        if spec.of is not None and spec.role is not None:  # nothing is padded, so a mask is all ones
            made = np.ones if spec.role == "mask" else np.zeros
            batch[spec.name] = made(batch[spec.of].shape, DATATYPES[spec.datatype].dtype)
    return batch


def _refusal(name: str, status: int, content: bytes, retry_after: str | None) -> ForeseenError:
    """A model process's error as ours. Only what it says of the input is passed on."""
    said = f"status {status}"
    with contextlib.suppress(orjson.JSONDecodeError, KeyError, TypeError):
        error = orjson.loads(content)["error"]
        said = error[:MAX_ERROR_CHARACTERS] if isinstance(error, str) else said
    seconds = int(retry_after) if retry_after is not None and retry_after.isdigit() else 1
    match status:
        case 400 | 422:
            return BadInput(said)
        case 413:
            return TooLarge(said)
        case 429 | 503:
            return Overloaded(f"model {name!r}: {said}", retry_after=seconds)
        case 504:
            return DeadlineExceeded(f"model {name!r}: {said}")
        case _:
            return ModelFailed(f"model {name!r}: {said}")
