"""Rows → predictions, by asking the model's own process over V2 with binary tensors.

The process is reached over a unix socket (`unix:/path`) or `http://host:port`. What it answers is held against the
signature and never trusted: another shape, datatype, count or id is refused and so never stored.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from typing import Any

import aiohttp
import orjson
from msgspec import Struct

from foreseen.datatypes import DATATYPES
from foreseen.errors import (
    BadInput,
    BadRequest,
    DeadlineExceeded,
    ForeseenError,
    ModelFailed,
    ModelUnavailable,
    Overloaded,
    TooLarge,
)
from foreseen.http import BINARY, HEADER_LENGTH
from foreseen.manifest import Manifest
from foreseen.nouns import Array, Output, Prediction, Row, Terms
from foreseen.rows import split_outputs, stack
from foreseen.tensors import raw_of
from foreseen.wire import Response, parse_response, render_request

PROBE_SECONDS = 2.0
MAX_ERROR_CHARACTERS = 300


class Facts(Struct, frozen=True):
    """What a model process says of itself in its metadata's `parameters`."""

    digest: str
    preparation: str = ""
    precision: str = ""
    provider: str = ""
    row_independent: bool = True


class ModelProcess:
    """One model's process, as the pipeline asks it."""

    def __init__(self, manifest: Manifest, address: str, *, rows_per_request: int, requests: int) -> None:
        self._manifest = manifest
        self._signature = manifest.model
        self._address = address
        self._rows_per_request = rows_per_request
        self._places = asyncio.Semaphore(requests)
        self._session: aiohttp.ClientSession | None = None
        self._base = "http://model" if address.startswith("unix:") else address.rstrip("/")
        self._infer = f"{self._base}/v2/models/{manifest.name}/infer"

    async def predict(self, rows: Sequence[Row], parameters: bytes, terms: Terms) -> list[Prediction]:
        """One prediction per row, in order. More rows than one request takes go as several, side by side.

        Raises ModelUnavailable, Overloaded, DeadlineExceeded, ModelFailed, or BadInput where the model itself refuses.
        """
        step = 1 if self._manifest.rows == "together" else self._rows_per_request
        parts = [rows[at : at + step] for at in range(0, len(rows), step)]
        if len(parts) == 1:
            return await self._predict(parts[0], parameters, terms)
        answered: list[list[Prediction]] = [[] for _ in parts]
        waiting = iter(enumerate(parts))

        async def ask() -> ForeseenError | None:
            for place, part in waiting:
                try:
                    answered[place] = await self._predict(part, parameters, terms)
                except ForeseenError as error:
                    return error
            return None

        # Two at a time keep the process busy between runs; all at once would overflow its queue and be refused.
        for error in await asyncio.gather(ask(), ask()):
            if error is not None:
                raise error
        return [prediction for part in answered for prediction in part]

    async def facts(self) -> Facts:
        """What the process says of itself. Raises ModelUnavailable unless it is there and ready."""
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
        told = document.get("parameters", {}) if isinstance(document, dict) else {}
        if not isinstance(told.get("digest"), str):
            raise ModelUnavailable(f"model {name!r} does not say its digest")
        known = {field: told[field] for field in Facts.__struct_fields__ if field in told}
        return Facts(**known)

    async def exposition(self) -> bytes:
        """What the process counts, in the Prometheus text format. Raises ModelUnavailable."""
        try:
            url = f"{self._base}/metrics"
            async with asyncio.timeout(PROBE_SECONDS), self._client().get(url) as reply:
                reply.raise_for_status()
                return await reply.read()
        except (aiohttp.ClientError, OSError, TimeoutError):
            raise ModelUnavailable(f"model {self._manifest.name!r} tells no metrics") from None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _predict(self, rows: Sequence[Row], parameters: bytes, terms: Terms) -> list[Prediction]:
        together = self._manifest.rows == "together"
        batch = _whole_batch(rows[0], self._manifest) if together else stack(rows, self._signature)
        left = terms.deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise DeadlineExceeded("the deadline passed before the model was asked")
        asked: dict[str, Any] = orjson.loads(parameters) if parameters else {}
        asked["timeout"] = int(left * 1e6)
        asked["priority"] = 1 if terms.lane == "online" else 2
        tensors = [(i.name, i.datatype, batch[i.name]) for i in self._signature.inputs]
        request_id = uuid.uuid4().hex
        body, length = render_request(tensors, asked, request_id)
        headers = {HEADER_LENGTH: str(length), "Content-Type": BINARY}
        if terms.traceparent is not None:
            headers["traceparent"] = terms.traceparent
        started = time.perf_counter()
        response = await self._post(body, headers, terms.deadline)
        return self._predictions(response, rows, request_id, time.perf_counter() - started)

    async def _post(self, body: bytes, headers: dict[str, str], deadline: float) -> Response:
        """Ask; once more where the connection broke, since a prediction is a pure function of its rows."""
        name = self._manifest.name
        try:
            async with asyncio.timeout_at(deadline), self._places:
                try:
                    return await self._exchange(body, headers)
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                    if isinstance(error, aiohttp.ClientConnectorError):
                        raise
                    return await self._exchange(body, headers)
        except TimeoutError:
            raise DeadlineExceeded(f"model {name!r} did not answer before the deadline") from None
        except (aiohttp.ClientConnectionError, OSError):
            raise ModelUnavailable(f"model {name!r} cannot be reached") from None
        except aiohttp.ClientError as error:
            raise ModelFailed(f"model {name!r}: its reply cannot be read ({type(error).__name__})") from None

    async def _exchange(self, body: bytes, headers: dict[str, str]) -> Response:
        async with self._client().post(self._infer, data=body, headers=headers) as reply:
            content = await reply.read()
            if reply.status != 200:
                raise _refusal(self._manifest.name, reply.status, content, reply.headers.get("Retry-After"))
            length = reply.headers.get(HEADER_LENGTH)
        try:
            return parse_response(content, int(length) if length is not None else None)
        except (BadRequest, ValueError) as error:
            raise ModelFailed(f"model {self._manifest.name!r}: {error}") from None

    def _predictions(self, response: Response, rows: Sequence[Row], asked: str, seconds: float) -> list[Prediction]:
        """Hold a reply against the question, then cut it into rows."""
        name = self._manifest.name
        if response.model != name or response.id != asked:
            raise ModelFailed(f"model {name!r}: the reply belongs to another question")
        digest = response.parameters.get("digest")
        if not isinstance(digest, str):
            raise ModelFailed(f"model {name!r}: the reply does not say its digest")
        outputs: dict[str, Array] = {output.name: output.array for output in response.outputs}
        told = response.parameters.get("seconds")
        each = float(told) if isinstance(told, int | float) else seconds / len(rows)
        if self._manifest.rows == "together":
            answered = [tuple(outputs[spec.name] for spec in self._signature.outputs if spec.name in outputs)]
        else:
            answered = split_outputs(outputs, rows, self._signature)
        now = time.time()
        predictions = []
        for arrays in answered:
            heads = tuple(
                Output(spec.name, spec.datatype, array.shape)
                for spec, array in zip(self._signature.outputs, arrays, strict=True)
            )
            data = tuple(raw_of(array, DATATYPES[head.datatype]) for head, array in zip(heads, arrays, strict=True))
            predictions.append(Prediction(heads, data, digest, now, now, each))
        return predictions

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector: aiohttp.BaseConnector
            if self._address.startswith("unix:"):
                connector = aiohttp.UnixConnector(self._address.removeprefix("unix:"), limit=0)
            else:
                connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None),  # the deadline of every question bounds it instead
                auto_decompress=False,
                skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
            )
        return self._session


def _whole_batch(row: Row, manifest: Manifest) -> dict[str, Array]:
    """The batch of a model whose rows belong together: its one row is the request."""
    return {spec.name: tensor for spec, tensor in zip(manifest.model.keyed, row.tensors, strict=True)}


def _refusal(name: str, status: int, content: bytes, retry_after: str | None) -> ForeseenError:
    """A model process's error as ours. Only what it says of the input is passed on."""
    try:
        said = str(orjson.loads(content)["error"])[:MAX_ERROR_CHARACTERS]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        said = f"status {status}"
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
