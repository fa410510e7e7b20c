"""A model on a server of texts: what every kind of them has in common.

Requests are split at the server's limit on a batch, replicas share the work, errors become ours, and the tokens that a
server has counted for a request are split over its rows.
"""

from __future__ import annotations

import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
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
from foreseen.protocol.members import REPLY_HEAD, ReplyMembers, RequestMembers, pack_reply
from foreseen.protocol.openai_embeddings import split_tokens
from foreseen.protocol.wire import InputTensor, Response
from foreseen.proxy.backend.http_pool import HttpReply
from foreseen.proxy.backend.model import Tensors
from foreseen.proxy.backend.model_client import MAX_ERROR_CHARACTERS, WrongReply, posted
from foreseen.proxy.backend.model_metadata import ModelFacts
from foreseen.proxy.backend.replicas.replicas import Replicas
from foreseen.proxy.backend.text_servers.text_server import Task, TextServer, named
from foreseen.proxy.backend.upstream import UpstreamProcess
from foreseen.proxy.backend.upstream_metadata import UpstreamMetadata
from foreseen.proxy.backend.v2_server import Unusable
from foreseen.types import Prediction, Row

FIRST_PROBE_SECONDS = 5.0
"""How long a model that has just been found is not ready because its probe has not ended."""
METADATA_SECONDS = 5.0
_BATCH = re.compile(r"\bbatch", re.IGNORECASE)
_RESERVED = frozenset(("input", "inputs", "model", "encoding_format", "user"))


class BatchRefused(TooLarge):
    """The server takes no request of so many texts."""


class TextProcess(UpstreamProcess, ABC):
    """A model of a server of texts. Each kind sends its own requests (`_asked`) and reads its replies (`_parsed`)."""

    task: Task = "embed"
    _compares_members = False
    """The tokens of a group are split by length, so those of a row differ with its batch-mates; no answer does."""

    def __init__(self, reported: UpstreamMetadata, servers: Sequence[TextServer], **options: Any) -> None:
        """`options` are those of `UpstreamProcess`; `servers` are replicas of one another."""
        first = servers[0]
        super().__init__(reported, first.address, **options)
        self._replicas = Replicas(servers)
        self._api = first.api
        self._most_texts = self._rows_per_request
        self._model_id = self._manifest.name
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
        probed = self._probe.result(facts.digest)
        return structs.replace(facts, worst_difference=None if probed is None else probed.worst)

    async def fetch_config(self) -> Any:
        return None

    async def fetch_metadata(self) -> dict[str, Any]:
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

    @abstractmethod
    def _parsed(self, reply: HttpReply) -> Response:
        """What a reply of status 200 says. Raises ModelFailed."""

    async def _in_parts(self, count: int, ask: Callable[[slice], Awaitable[Response]]) -> list[Response]:
        """The replies to so many items, in as many requests as the server's limit makes them."""
        replies: list[Response] = []
        at = 0
        while at < count:
            part = slice(at, min(at + self._most_texts, count))
            size = part.stop - part.start
            try:
                replies.append(await ask(part))
            except BatchRefused:
                if size == 1:
                    raise
                self._most_texts = max(1, size // 2)
                self._rows_per_request = min(self._rows_per_request, self._most_texts)
            else:
                at = part.stop
        return replies

    def _counted(self, response: Response, count: int) -> Response:
        """A reply that answers each of so many items. Raises WrongReply for another."""
        found = len(response.outputs[0].array)
        if found != count:
            raise WrongReply(f"model {self._manifest.name!r}: the reply has {found} results of {count} texts")
        return response

    def _joined(self, replies: Sequence[Response]) -> Response:
        """Several replies as one. Raises WrongReply where they do not fit together."""
        outputs = []
        for column in zip(*(reply.outputs for reply in replies), strict=True):
            arrays = [output.array for output in column]
            if len({array.shape[1:] for array in arrays}) != 1:
                raise WrongReply(f"model {self._manifest.name!r}: {column[0].name} differs in shape between replies")
            outputs.append(InputTensor(column[0].name, column[0].datatype, np.concatenate(arrays)))
        tokens = [reply.parameters["tokens"] for reply in replies]
        total = None if None in tokens else sum(tokens)
        return structs.replace(replies[0], outputs=tuple(outputs), parameters={"tokens": total})

    async def exchange(self, body: bytes, headers: dict[str, str]) -> HttpReply:
        credential = self._access.credential(self._model)

        async def ask(server: TextServer) -> HttpReply:
            url = server.address.rstrip("/") + server.api.path(self.task)
            return await posted(self._client(), url, body, {**credential, **headers})

        return await self._replicas.exchange(ask)

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = self._access.session(self._address, aiohttp.ClientTimeout(total=None))
        return self._session

    def _read(self, reply: HttpReply) -> Response:
        name = self._manifest.name
        if reply.status != 200:
            raise refusal(name, reply)
        try:
            return self._parsed(reply)
        except ModelFailed as error:
            raise WrongReply(f"model {name!r}: {error}") from None

    def _response(self, tokens: int | None, *outputs: InputTensor, **parameters: Any) -> Response:
        return Response(self._manifest.name, None, None, {"tokens": tokens, **parameters}, outputs)

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
        texts = [b"".join(b"".join(tensor.ravel().tolist()) for tensor in row.tensors) for row in rows]
        return [_with_tokens(one, tokens) for one, tokens in zip(made, split_tokens(total, texts), strict=True)]


def refusal(name: str, reply: HttpReply) -> ForeseenError:
    """Such a server's error as ours. Only what it says of the input is passed on."""
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


def texts_in(tensors: Tensors, name: str) -> list[str] | None:
    """The texts of one input, None where it was not given. Raises BadInput."""
    array = next((array for tensor, _, array in tensors if tensor == name), None)
    try:
        return None if array is None else [text.decode() for text in array.ravel().tolist()]
    except UnicodeDecodeError:
        raise BadInput(f"inputs.{name}.data: is not UTF-8 text", param="input") from None


def parameters_in(members: RequestMembers) -> dict[str, Any]:
    """The fields of a request that go on to the server."""
    return {name: value for name, value in {**members.top, **members.parameters}.items() if name not in _RESERVED}


def _with_tokens(prediction: Prediction, tokens: int) -> Prediction:
    packed = pack_reply(ReplyMembers({"usage": {"prompt_tokens": tokens}}))
    assert packed is not None
    return structs.replace(prediction, outputs=(*prediction.outputs, REPLY_HEAD), data=(*prediction.data, packed))
