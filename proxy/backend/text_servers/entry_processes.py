"""Models of servers of texts that answer each text by itself: labels with scores, and vectors without a common shape.

Vectors of every token, and sparse ones, are kept as the JSON of each text: a whole entry for each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from foreseen.modelspec.row_outputs import RowOutputs
from foreseen.protocol.members import RequestMembers
from foreseen.protocol.wire import InputTensor, Response
from foreseen.proxy.backend.http_pool import HttpReply
from foreseen.proxy.backend.model import Tensors
from foreseen.proxy.backend.text_servers.embedding_process import cosine_distance
from foreseen.proxy.backend.text_servers.text_process import TextProcess, parameters_in, texts_in
from foreseen.proxy.backend.text_servers.text_server import TEXT, Task
from foreseen.types import Array, RequestOptions
from foreseen.web.http import JSON


class LabelProcess(TextProcess):
    """A model of a classification server."""

    task = "classify"

    async def _asked(
        self, tensors: Tensors, members: RequestMembers, options: RequestOptions, request_id: str
    ) -> Response:
        texts, seconds = texts_in(tensors, TEXT) or [], texts_in(tensors, "text_pair")
        parameters = parameters_in(members)

        async def ask(part: slice) -> Response:
            pairs = None if seconds is None else seconds[part]
            body = self._api.classify_request(self._model_id, texts[part], pairs, parameters)
            return self._counted(await self._post(body, {"Content-Type": JSON}, options), len(texts[part]))

        return self._joined(await self._in_parts(len(texts), ask))

    def _parsed(self, reply: HttpReply) -> Response:
        parsed = self._api.classify_reply(reply.body, reply.headers)
        return self._response(
            parsed.tokens, InputTensor("label", "BYTES", parsed.labels), InputTensor("score", "FP64", parsed.scores)
        )


def _farthest_entries(left: Sequence[RowOutputs], right: Sequence[RowOutputs]) -> float:
    """The largest cosine distance of what two entries' JSON holds."""
    return max(
        max(map(_distance, _vectors(one), _vectors(other)), default=0.0)
        if len(_vectors(one)) == len(_vectors(other))
        else float("inf")
        for one, other in zip(left, right, strict=True)
    )


class EntryProcess(TextProcess):
    """A model that makes vectors of tokens, or sparse ones."""

    task: Task = "tokens"
    _gap = staticmethod(_farthest_entries)

    async def _asked(
        self, tensors: Tensors, members: RequestMembers, options: RequestOptions, request_id: str
    ) -> Response:
        texts, parameters = texts_in(tensors, TEXT) or [], parameters_in(members)

        async def ask(part: slice) -> Response:
            body = self._api.request(self._model_id, texts[part], parameters, packed=False)
            return self._counted(await self._post(body, {"Content-Type": JSON}, options), len(texts[part]))

        return self._joined(await self._in_parts(len(texts), ask))

    def _parsed(self, reply: HttpReply) -> Response:
        parsed = self._api.entries(reply.body, reply.headers)
        column = np.empty(len(parsed.entries), object)
        column[:] = parsed.entries
        return self._response(parsed.tokens, InputTensor(self._signature.outputs[0].name, "BYTES", column))


class SparseProcess(EntryProcess):
    """A model that makes sparse vectors."""

    task: Task = "sparse"


def _vectors(outputs: RowOutputs) -> list[Any]:
    """The vectors of one entry: of every token, or one that is sparse."""
    document = orjson.loads(outputs[0].item())
    sparse = not document or isinstance(document[0], Mapping)
    return [{one["index"]: one["value"] for one in document}] if sparse else document


def _distance(one: Any, other: Any) -> float:
    return cosine_distance(*_dense(one, other))


def _dense(one: Any, other: Any) -> tuple[Array, Array]:
    if isinstance(one, dict) and isinstance(other, dict):
        places = sorted({*one, *other})
        one, other = ([values.get(at, 0.0) for at in places] for values in (one, other))
    return np.asarray(one, np.float64), np.asarray(other, np.float64)
