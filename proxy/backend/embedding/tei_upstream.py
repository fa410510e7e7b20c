"""text-embeddings-inference: `POST /embed`, and its version from `GET /info`.

`/embed` is asked rather than `/v1/embeddings`, as only it obeys `truncate`, `normalize` and `prompt_name`. The tokens
of a request stand in the header `x-compute-tokens`. Source: router/src/http/server.rs and types.rs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from foreseen.errors import ModelFailed
from foreseen.protocol.openai_embeddings import EmbeddingReply, checked_vectors, vector_of
from foreseen.proxy.backend.embedding.embedding_server import Ask, ListedModel
from foreseen.proxy.backend.v2_server import Unusable

_STABLE = ("model_sha", "model_dtype", "version", "model_type", "max_input_length", "auto_truncate")


class TeiApi:
    """text-embeddings-inference's own API."""

    name = "tei"
    packs = False
    path = "/embed"

    def __init__(self, *, embeds: bool = False) -> None:
        """`embeds`: the operator says that the server embeds, whatever `/info` says."""
        self._embeds = embeds

    def again(self) -> TeiApi:
        return TeiApi(embeds=self._embeds)

    async def models(self, ask: Ask) -> Sequence[ListedModel] | None:
        reply = await ask("GET", "/info")
        info = None if reply is None else reply.document
        if not isinstance(info, dict) or not isinstance(info.get("model_id"), str):
            return None
        kind = info.get("model_type")
        if isinstance(kind, dict) and "embedding" not in kind and not self._embeds:
            said = f"GET /info says that the model is one of kind {', '.join(map(str, kind))}"
            raise Unusable("unusable", said, "it embeds no texts; if it does, say --upstream-kind embed")
        identity = {name: info[name] for name in _STABLE if info.get(name) is not None}
        most = info.get("max_client_batch_size")
        limit = most if type(most) is int and most > 0 else None
        return [ListedModel(info["model_id"], identity, "model_sha" in identity, limit)]

    def request(self, model: str, texts: Sequence[str], parameters: Mapping[str, Any], *, packed: bool) -> bytes:
        return orjson.dumps({**parameters, "inputs": list(texts)})

    def reply(self, body: bytes, headers: Mapping[str, str]) -> EmbeddingReply:
        try:
            rows = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise ModelFailed("the reply is not JSON") from None
        if type(rows) is not list or not rows:
            raise ModelFailed("the reply is no list of embeddings")
        tokens = headers.get("x-compute-tokens", "")
        known = tokens.isascii() and tokens.isdigit() and len(tokens) < 10
        return EmbeddingReply(checked_vectors([vector_of(row) for row in rows]), int(tokens) if known else None, False)
