"""A model on an embedding server: sends texts, reads and checks the embeddings.

Requests are split at the server's limit on a batch. Whether rows are independent is judged by the cosine: servers on
GPUs answer the same text with vectors that differ by 1e-4 a component, and 1 − cos is then 1e-7.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
import numpy as np
import orjson
from msgspec import structs

from foreseen.errors import (
    BadInput,
    DeadlineExceeded,
    ForeseenError,
    ModelFailed,
    ModelUnavailable,
    Overloaded,
    SetupError,
    TooLarge,
)
from foreseen.modelspec.row_outputs import RowOutputs
from foreseen.protocol.members import REPLY_HEAD, ReplyMembers, RequestMembers, pack_reply
from foreseen.protocol.openai_embeddings import EmbeddingReply, split_tokens
from foreseen.protocol.wire import InputTensor, Response
from foreseen.proxy.backend.embedding.embedding_server import EmbeddingServer, named
from foreseen.proxy.backend.embedding.replicas import Replicas
from foreseen.proxy.backend.http_pool import HttpReply
from foreseen.proxy.backend.model import Tensors
from foreseen.proxy.backend.model_client import MAX_ERROR_CHARACTERS, WrongReply
from foreseen.proxy.backend.model_metadata import ModelFacts
from foreseen.proxy.backend.upstream import UpstreamProcess
from foreseen.proxy.backend.upstream_metadata import UpstreamMetadata
from foreseen.proxy.backend.v2_server import Unusable
from foreseen.types import Prediction, RequestOptions, Row
from foreseen.web.http import JSON

FIRST_PROBE_SECONDS = 5.0
"""How long a model that has just been found is not ready because its probe has not ended."""
METADATA_SECONDS = 5.0
_BATCH = re.compile(r"\bbatch", re.IGNORECASE)
_RESERVED = frozenset(("input", "inputs", "model", "encoding_format", "user"))


class BatchRefused(TooLarge):
    """The server takes no request of so many texts."""


def cosine_distance(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """1 − cos, and how far their lengths are apart, whichever is larger; infinite where the shapes differ."""
    if one.shape != other.shape:
        return float("inf")
    a, b = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    lengths = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if not lengths[0] or not lengths[1]:
        return 0.0 if lengths[0] == lengths[1] else float("inf")
    # 1 − cos by the difference of the unit vectors: 1 − a·b would lose what is below 1e-16, and half of it may be noise
    cosine = float(np.square(a / lengths[0] - b / lengths[1]).sum()) / 2
    return max(cosine, abs(lengths[0] / lengths[1] - 1) ** 2)


def _largest_cosine_distance(left: Sequence[RowOutputs], right: Sequence[RowOutputs]) -> float:
    """The largest 1 − cos of a row alone and in a batch."""
    return max(cosine_distance(one[0], other[0]) for one, other in zip(left, right, strict=True))


class EmbeddingProcess(UpstreamProcess):
    """A model of an embedding server."""

    _gap = staticmethod(_largest_cosine_distance)
    _compares_members = False
    """The tokens of a group are split by length, so those of a row differ with its batch-mates; no answer does."""

    def __init__(self, reported: UpstreamMetadata, servers: Sequence[EmbeddingServer], **options: Any) -> None:
        """`options` are those of `UpstreamProcess`; `servers` are replicas of one another."""
        first = servers[0]
        super().__init__(reported, first.address, **options)
        self._replicas = Replicas(servers)
        self._api = first.api
        self._access = first.access
        self._most_texts = self._rows_per_request
        self._model_id = self._manifest.name
        self._widths: dict[bytes, int] = {}
        self._of_digest = ""
        self._first_probe_ended = False

    async def close(self) -> None:
        await self._replicas.close()
        await super().close()

    async def facts(self) -> ModelFacts:
        facts = await super().facts()
        if not self._first_probe_ended and self._probe.is_running:
            await self._probe.wait(FIRST_PROBE_SECONDS)
            facts = await super().facts()
        self._first_probe_ended = True
        if self._of_digest != facts.digest:
            self._of_digest, self._widths = facts.digest, {}
        probed = self._probe.result(facts.digest)
        return structs.replace(facts, worst_difference=None if probed is None else probed.worst)

    async def _config(self) -> Any:
        return None

    async def _metadata(self) -> dict[str, Any]:
        """Of the replicas that agree. Raises ModelUnavailable."""
        try:
            metadata, server = await self._replicas.metadata(self._manifest.name, METADATA_SECONDS)
        except (Unusable, SetupError) as error:
            raise ModelUnavailable(f"model {self._manifest.name!r} is not ready: {error}") from None
        model = server.models[self._manifest.name]
        self._model_id = model.id
        if model.most_rows is not None:
            self._most_texts = min(self._most_texts, model.most_rows)
            self._rows_per_request = min(self._rows_per_request, model.most_rows)
        return metadata

    def _reported(self, name: str, metadata: dict[str, Any]) -> UpstreamMetadata:
        reported = super()._reported(name, metadata)
        return structs.replace(reported, manifest=named(reported.manifest, metadata))

    async def _asked(
        self, tensors: Tensors, members: RequestMembers, options: RequestOptions, request_id: str
    ) -> Response:
        """All texts, in as many requests as the server's limit makes them."""
        texts = _texts(tensors)
        parameters = {name: v for name, v in {**members.top, **members.parameters}.items() if name not in _RESERVED}
        replies: list[Response] = []
        at = 0
        while at < len(texts):
            part = texts[at : at + self._most_texts]
            try:
                replies.append(await self._asked_part(part, parameters, options))
            except BatchRefused:
                if len(part) == 1:
                    raise
                self._most_texts = max(1, len(part) // 2)
                self._rows_per_request = min(self._rows_per_request, self._most_texts)
            else:
                at += len(part)
        return self._joined(replies, orjson.dumps(parameters, option=orjson.OPT_SORT_KEYS))

    async def _asked_part(
        self, texts: Sequence[str], parameters: Mapping[str, Any], options: RequestOptions
    ) -> Response:
        """base64 where the server understands it, numbers where not; which of the two, its first answer shows."""
        if self._api.packs and self._binary is not False:
            try:
                response = await self._sent(texts, parameters, options, packed=True)
            except (BadInput, ModelFailed):
                if self._binary:
                    raise
            else:
                self._binary = bool(response.parameters["base64"])
                return response
        response = await self._sent(texts, parameters, options, packed=False)
        self._binary = False
        return response

    async def _sent(
        self, texts: Sequence[str], parameters: Mapping[str, Any], options: RequestOptions, *, packed: bool
    ) -> Response:
        body = self._api.request(self._model_id, texts, parameters, packed=packed)
        response = await self._post(body, {"Content-Type": JSON}, options)
        found = len(response.outputs[0].array)
        if found != len(texts):
            raise WrongReply(f"model {self._manifest.name!r}: the reply has {found} embeddings of {len(texts)} texts")
        return response

    def _joined(self, replies: Sequence[Response], parameters: bytes) -> Response:
        """Several replies as one. Raises ModelFailed where their vectors differ in length from each other's, or from
        those that the same parameters had before."""
        arrays = [reply.outputs[0].array for reply in replies]
        widths = {array.shape[1] for array in arrays}
        before = self._widths.pop(parameters, None)
        if len(widths | ({before} if before is not None else set())) != 1:
            raise WrongReply(f"model {self._manifest.name!r}: the length of its embeddings differs between replies")
        if len(self._widths) < 64:
            self._widths[parameters] = widths.pop()
        tokens = [reply.parameters["tokens"] for reply in replies]
        total = None if None in tokens else sum(tokens)
        joined = InputTensor(self._signature.outputs[0].name, "FP32", np.concatenate(arrays))
        return structs.replace(replies[0], outputs=(joined,), parameters={"tokens": total})

    async def _exchange(self, body: bytes, headers: dict[str, str]) -> HttpReply:
        try:
            credential = self._access.headers()
        except SetupError as error:
            raise ModelUnavailable(str(error)) from None
        for _ in self._replicas.servers[1:]:
            with contextlib.suppress(aiohttp.ClientConnectorError):  # nothing was sent: the next one is asked
                return await self._exchange_once(body, {**headers, **credential})
        return await self._exchange_once(body, {**headers, **credential})

    async def _exchange_once(self, body: bytes, headers: dict[str, str]) -> HttpReply:
        async with self._replicas.chosen() as server:
            url = server.address.rstrip("/") + server.api.path
            async with self._client().post(url, data=body, headers=headers) as reply:
                lowered = {name.lower(): value for name, value in reply.headers.items()}
                return HttpReply(reply.status, lowered, await reply.read())

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = self._access.session(self._address, aiohttp.ClientTimeout(total=None))
        return self._session

    def _read(self, reply: HttpReply) -> Response:
        name = self._manifest.name
        if reply.status != 200:
            raise refusal(name, reply)
        try:
            parsed: EmbeddingReply = self._api.reply(reply.body, reply.headers)
        except ModelFailed as error:
            raise WrongReply(f"model {name!r}: {error}") from None
        output = InputTensor(self._signature.outputs[0].name, "FP32", parsed.vectors)
        return Response(name, None, None, {"tokens": parsed.tokens, "base64": parsed.base64}, (output,))

    def _beside(self, response: Response) -> bytes | None:
        return None

    def _predictions(
        self, response: Response, rows: Sequence[Row], members: RequestMembers, asked: str, seconds: float
    ) -> list[Prediction]:
        """With the tokens of every row, where the server has counted them."""
        made = super()._predictions(response, rows, members, asked, seconds)
        total = response.parameters["tokens"]
        if total is None:
            return made
        texts = [b"".join(row.tensors[0].ravel().tolist()) for row in rows]
        return [_with_tokens(one, tokens) for one, tokens in zip(made, split_tokens(total, texts), strict=True)]


def refusal(name: str, reply: HttpReply) -> ForeseenError:
    """An embedding server's error as ours. Only what it says of the input is passed on."""
    said = said_of(reply.body) or f"status {reply.status}"
    given = reply.headers.get("retry-after", "")
    seconds = int(given) if given.isascii() and given.isdigit() and len(given) < 6 else 1
    what = f"model {name!r}: {said}"
    if reply.status == 413 or (reply.status in (400, 422) and _BATCH.search(said)):
        return BatchRefused(said)
    match reply.status:
        case 400 | 422:
            return BadInput(said, param="input")
        case 429 | 503:
            return Overloaded(what, retry_after=seconds)
        case 424:  # TEI's: the backend failed at this request
            return ModelFailed(what, retry_after=seconds)
        case 401 | 403:
            return ModelFailed(f"model {name!r}: its server refuses the credential (--upstream-key-file)")
        case 504:
            return DeadlineExceeded(what)
        case _:
            return ModelFailed(what)


def said_of(body: bytes) -> str:
    """The message of an error in OpenAI's, TEI's or FastAPI's form; empty where there is none."""
    with contextlib.suppress(orjson.JSONDecodeError, AttributeError):
        document = orjson.loads(body)
        error = document.get("error")
        inner = error if isinstance(error, dict) else document
        for value in (error, inner.get("message"), inner.get("detail"), document.get("message")):
            if isinstance(value, str):
                return value[:MAX_ERROR_CHARACTERS]
    return ""


def _texts(tensors: Tensors) -> list[str]:
    try:
        return [text.decode() for text in tensors[0][2].ravel().tolist()]
    except UnicodeDecodeError:
        raise BadInput("inputs.text.data: is not UTF-8 text", param="input") from None


def _with_tokens(prediction: Prediction, tokens: int) -> Prediction:
    packed = pack_reply(ReplyMembers({"usage": {"prompt_tokens": tokens}}))
    assert packed is not None
    return structs.replace(prediction, outputs=(*prediction.outputs, REPLY_HEAD), data=(*prediction.data, packed))
