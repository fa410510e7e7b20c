"""A model of an embedding server → a model of this proxy: texts are sent, its embeddings are read and checked.

Whether rows are independent is judged by the cosine: servers on GPUs answer the same text with vectors that differ by
1e-4 a component, and 1 − cos is then 1e-7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from foreseen.errors import BadInput, ModelFailed
from foreseen.modelspec.row_outputs import RowOutputs
from foreseen.protocol.members import RequestMembers
from foreseen.protocol.wire import InputTensor, Response
from foreseen.proxy.backend.http_pool import HttpReply
from foreseen.proxy.backend.model import Tensors
from foreseen.proxy.backend.model_client import WrongReply
from foreseen.proxy.backend.model_metadata import ModelFacts
from foreseen.proxy.backend.text_servers.text_process import TextProcess, parameters_in, texts_in
from foreseen.proxy.backend.text_servers.text_server import TEXT, TextServer
from foreseen.proxy.backend.upstream_metadata import UpstreamMetadata
from foreseen.types import RequestOptions
from foreseen.web.http import JSON

MAX_WIDTHS = 64
"""Sets of parameters whose length of embeddings is remembered."""


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


class EmbeddingProcess(TextProcess):
    """A model of an embedding server."""

    _gap = staticmethod(_largest_cosine_distance)

    def __init__(self, reported: UpstreamMetadata, servers: Sequence[TextServer], **options: Any) -> None:
        super().__init__(reported, servers, **options)
        self._widths: dict[bytes, int] = {}
        self._of_digest = ""

    async def facts(self) -> ModelFacts:
        facts = await super().facts()
        if self._of_digest != facts.digest:
            self._of_digest, self._widths = facts.digest, {}
        return facts

    async def _asked(
        self, tensors: Tensors, members: RequestMembers, options: RequestOptions, request_id: str
    ) -> Response:
        """All texts, in as many requests as the server's limit makes them."""
        texts, parameters = texts_in(tensors, TEXT) or [], parameters_in(members)
        replies = await self._in_parts(len(texts), lambda part: self._asked_part(texts[part], parameters, options))
        self._check_widths(replies, orjson.dumps(parameters, option=orjson.OPT_SORT_KEYS))
        return self._joined(replies)

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
        return self._counted(await self._post(body, {"Content-Type": JSON}, options), len(texts))

    def _check_widths(self, replies: Sequence[Response], parameters: bytes) -> None:
        """Raises WrongReply where vectors differ in length from each other's, or from those that the same parameters
        had before."""
        widths = {reply.outputs[0].array.shape[1] for reply in replies}
        before = self._widths.pop(parameters, None)
        if len(widths | ({before} if before is not None else set())) != 1:
            raise WrongReply(f"model {self._manifest.name!r}: the length of its embeddings differs between replies")
        if len(self._widths) < MAX_WIDTHS:
            self._widths[parameters] = widths.pop()

    def _parsed(self, reply: HttpReply) -> Response:
        parsed = self._api.reply(reply.body, reply.headers)
        output = InputTensor(self._signature.outputs[0].name, "FP32", parsed.vectors)
        return self._response(parsed.tokens, output, base64=parsed.base64)
