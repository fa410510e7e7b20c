"""A model of a rerank server → a model of this proxy: one row is a (query, document) pair.

A server is asked once for each query and its documents, split at the server's limit. Whether a pair's score depends on
the documents beside it is probed with texts of our own: a listwise reranker scores a document by its neighbours, and a
server that sorts its results without saying which is which mixes them up. Such a model is cached by the whole request,
which is then sent as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foreseen.modelspec.manifest import ModelSignature
from foreseen.protocol.members import RequestMembers
from foreseen.protocol.wire import InputTensor, Response
from foreseen.proxy.backend.http_pool import HttpReply
from foreseen.proxy.backend.model import Tensors
from foreseen.proxy.backend.row_probe import ORDERS, RowProbe
from foreseen.proxy.backend.text_servers.text_process import TextProcess, parameters_in, texts_in
from foreseen.types import Array, RequestOptions, Row
from foreseen.web.http import JSON

PROBE_QUERY = "foreseen probe: which animals live in the sea?"
PROBE_DOCUMENTS = (
    "Whales are mammals that live in the sea.",
    "The train to the mountains leaves at noon.",
    "Many animals live in the sea: fish, crabs and squid.",
    "Whales are large mammals that live in all seas.",
    "A list of prime numbers below one hundred.",
    "Horses and cows live on land.",
)
"""Some say the same, some have nothing to do with the query: neighbours that a listwise model would look at."""


class PairProbe(RowProbe):
    """Asks one query's documents alone, together, in other orders, and with some of them left out."""

    orders = (*ORDERS, (3, 0, 4, 2), (1, 5), (2, 1, 0))

    def _rows(self, signature: ModelSignature) -> list[Row]:
        query = _scalar(PROBE_QUERY)
        return [Row((query, _scalar(document))) for document in PROBE_DOCUMENTS]


class PairProcess(TextProcess):
    """A model of a rerank server."""

    task = "rerank"
    _probe_kind = PairProbe

    async def _asked(
        self, tensors: Tensors, members: RequestMembers, options: RequestOptions, request_id: str
    ) -> Response:
        """All pairs, by one request for each query or, at the server's limit, several."""
        queries, documents = texts_in(tensors, "query") or [], texts_in(tensors, "document") or []
        parameters = parameters_in(members)
        places: dict[str, list[int]] = {}
        for at, query in enumerate(queries):
            places.setdefault(query, []).append(at)
        asked = (
            self._ranked(query, [documents[at] for at in found], parameters, options) for query, found in places.items()
        )
        replies = await asyncio.gather(*asked, return_exceptions=True)
        answered: list[Response] = []
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
            answered.append(reply)
        joined = self._joined(answered)
        scores = np.empty(len(queries), np.float64)
        scores[[at for found in places.values() for at in found]] = joined.outputs[0].array
        return self._response(joined.parameters["tokens"], self._output(scores))

    async def _ranked(
        self, query: str, documents: Sequence[str], parameters: Mapping[str, Any], options: RequestOptions
    ) -> Response:
        """One query's documents. A request of a model whose rows go together is never split."""

        async def ask(part: slice) -> Response:
            some = documents[part]
            body = self._api.rerank_request(self._model_id, query, some, parameters)
            return self._counted(await self._post(body, {"Content-Type": JSON}, options), len(some))

        if self.rows == "together":
            return await ask(slice(0, len(documents)))
        return self._joined(await self._in_parts(len(documents), ask))

    def _parsed(self, reply: HttpReply) -> Response:
        parsed = self._api.rerank_reply(reply.body, reply.headers)
        return self._response(parsed.tokens, self._output(parsed.scores))

    def _output(self, scores: Array) -> InputTensor:
        return InputTensor(self._signature.outputs[0].name, "FP64", scores)


def _scalar(text: str) -> Array:
    made = np.empty((), object)
    made[()] = text.encode()
    return made
