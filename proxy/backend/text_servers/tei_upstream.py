"""text-embeddings-inference: `POST /embed`, `/rerank`, `/predict`, …, and its version and kind from `GET /info`.

`/embed` is asked rather than `/v1/embeddings`, as only it obeys `truncate`, `normalize` and `prompt_name`. The tokens
of a request stand in the header `x-compute-tokens`. Source: router/src/http/server.rs and types.rs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from foreseen.errors import ModelFailed
from foreseen.protocol.openai_embeddings import EmbeddingReply, checked_vectors, vector_of
from foreseen.protocol.texts import score_replies
from foreseen.proxy.backend.text_servers.openai_upstream import labels_of
from foreseen.proxy.backend.text_servers.text_server import Ask, ListedModel, PairScores, Task, TextEntries, TextLabels
from foreseen.proxy.backend.v2_server import Unusable

_STABLE = ("model_sha", "model_dtype", "version", "model_type", "max_input_length", "auto_truncate")
_PATHS: Mapping[Task, str] = {
    "embed": "/embed",
    "tokens": "/embed_all",
    "sparse": "/embed_sparse",
    "rerank": "/rerank",
    "classify": "/predict",
}
_KINDS: Mapping[str, Task] = {"reranker": "rerank", "classifier": "classify"}
MAX_TOKEN_DIGITS = 10


class TeiApi:
    """text-embeddings-inference's own API."""

    name = "tei"
    packs = False

    def __init__(self, *, kind: Task | None = None) -> None:
        """`kind`: the operator says what the server does, whatever `/info` says."""
        self._kind = kind

    def again(self) -> TeiApi:
        return TeiApi(kind=self._kind)

    def path(self, task: Task) -> str:
        return _PATHS[task]

    async def models(self, ask: Ask) -> Sequence[ListedModel] | None:
        reply = await ask("GET", "/info")
        info = None if reply is None else reply.document
        if not isinstance(info, dict) or not isinstance(info.get("model_id"), str):
            return None
        identity = {name: info[name] for name in _STABLE if info.get(name) is not None}
        most = info.get("max_client_batch_size")
        limit = most if type(most) is int and most > 0 else None
        return [
            ListedModel(
                info["model_id"], identity, "model_sha" in identity, limit, task, takes_pairs=task == "classify"
            )
            for task in await self._tasks(ask, info.get("model_type"))
        ]

    async def _tasks(self, ask: Ask, kind: Any) -> list[Task]:
        """What the server does. An embedding server has vectors of tokens, too, where it has the route."""
        if self._kind is not None:
            return [self._kind]
        if isinstance(kind, dict) and "embedding" not in kind:
            found = [_KINDS[name] for name in kind if name in _KINDS]
            if not found:
                said = f"GET /info says that the model is one of kind {', '.join(map(str, kind))}"
                raise Unusable("unusable", said, "if it embeds, ranks or classifies texts, say --upstream-kind")
            return found
        pooling = kind["embedding"].get("pooling") if isinstance(kind, dict) and kind["embedding"] else None
        if pooling == "splade":
            return ["sparse"]
        return ["embed", "tokens"] if await ask("POST", _PATHS["tokens"], b"{}") is not None else ["embed"]

    def request(self, model: str, texts: Sequence[str], parameters: Mapping[str, Any], *, packed: bool) -> bytes:
        return orjson.dumps({**parameters, "inputs": list(texts)})

    def reply(self, body: bytes, headers: Mapping[str, str]) -> EmbeddingReply:
        rows = _rows(body)
        return EmbeddingReply(checked_vectors([vector_of(row) for row in rows]), _tokens(headers), False)

    def entries(self, body: bytes, headers: Mapping[str, str]) -> TextEntries:
        rows = _rows(body)
        if any(type(row) is not list for row in rows):
            raise ModelFailed("the reply is no list of lists of vectors")
        return TextEntries([orjson.dumps(row) for row in rows], _tokens(headers))

    def rerank_request(self, model: str, query: str, documents: Sequence[str], parameters: Mapping[str, Any]) -> bytes:
        return orjson.dumps({**parameters, "query": query, "texts": list(documents)})

    def rerank_reply(self, body: bytes, headers: Mapping[str, str]) -> PairScores:
        ranks = _rows(body)
        return PairScores(score_replies.scores_by_index(ranks, "score", len(ranks)), _tokens(headers))

    def classify_request(
        self, model: str, texts: Sequence[str], seconds: Sequence[str] | None, parameters: Mapping[str, Any]
    ) -> bytes:
        items = [[text] for text in texts] if seconds is None else list(zip(texts, seconds, strict=True))
        return orjson.dumps({**parameters, "inputs": items})

    def classify_reply(self, body: bytes, headers: Mapping[str, str]) -> TextLabels:
        return labels_of(_rows(body), _tokens(headers))


def _rows(body: bytes) -> list[Any]:
    rows = score_replies.document_in(body)
    if type(rows) is not list or not rows:
        raise ModelFailed("the reply is no list, or an empty one")
    return rows


def _tokens(headers: Mapping[str, str]) -> int | None:
    tokens = headers.get("x-compute-tokens", "")
    return int(tokens) if tokens.isascii() and tokens.isdigit() and len(tokens) < MAX_TOKEN_DIGITS else None
