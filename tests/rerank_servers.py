"""Servers that rank and label texts, and are not ours: honest stubs of Jina's, TEI's and V2 routes that may lie."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web

Scores = Callable[[str, Sequence[str]], list[float]]
LABELS = ("contradiction", "entailment", "neutral")


def score(query: str, document: str) -> float:
    """The score of a pair: a number of its hash, between 0 and 1."""
    digest = hashlib.blake2b(f"{query}\n{document}".encode(), digest_size=4).digest()
    return (int.from_bytes(digest, "big") + 1) / (2**32 + 2)


def logit(query: str, document: str) -> float:
    value = score(query, document)
    return math.log(value / (1 - value))


def each(query: str, documents: Sequence[str]) -> list[float]:
    return [score(query, document) for document in documents]


def listwise(query: str, documents: Sequence[str]) -> list[float]:
    """A score that depends on the documents beside it."""
    own = each(query, documents)
    return [value / sum(own) for value in own]


class RerankStub:
    """Scores by `scores`, and counts. `lie` changes a reply before it is sent."""

    def __init__(self, kind: str = "openai", prefix: str = "/v1", task: str = "rerank") -> None:
        self.kind, self.prefix, self.task = kind, prefix, task
        self.id = "BAAI/bge-reranker-v2-m3"
        self.identity: dict[str, Any] = {"root": self.id, "max_model_len": 512}
        self.capabilities: list[str] | None = None
        self.lists = True
        self.scores: Scores = each
        self.most: int | None = None
        self.status: tuple[int, Any, dict[str, str]] | None = None
        self.lie: Callable[[Any], Any] = lambda reply: reply
        self.requests: list[dict[str, Any]] = []
        self.gate = asyncio.Event()
        """Replies wait for it."""
        self.gate.set()
        model_type: dict[str, Any] = {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}
        if task == "classify":
            model_type = {"classifier": {"id2label": {str(at): label for at, label in enumerate(LABELS)}}}
        if task == "embed":
            model_type = {"embedding": {"pooling": "cls"}}
        if task == "sparse":
            model_type = {"embedding": {"pooling": "splade"}}
        self.info: dict[str, Any] = {
            "model_id": self.id, "model_sha": "953d", "model_dtype": "float16", "version": "1.8.3",
            "model_type": model_type, "max_client_batch_size": 16,
        }  # fmt: skip

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The requests but the probe's."""
        return [one for one in self.requests if "foreseen" not in str(one)]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs that were scored, but the probe's."""
        return [(one["query"], document) for one in self.asked for document in one.get("documents") or one.get("texts")]

    def application(self) -> web.Application:
        app = web.Application(client_max_size=2**26)
        if self.kind == "tei":
            app.router.add_get("/info", self._info)
            routes = {"rerank": "/rerank", "classify": "/predict", "sparse": "/embed_sparse", "embed": "/embed"}
            handlers = {"rerank": self._tei_rerank, "classify": self._predict}
            app.router.add_post(routes[self.task], handlers.get(self.task, self._vectors))
            if self.task == "embed":
                app.router.add_post("/embed_all", self._vectors)
            return app
        if self.lists:
            app.router.add_get(f"{self.prefix}/models", self._models)
        if self.task == "classify":
            app.router.add_post(f"{self.prefix}/classify", self._classify)
        else:
            app.router.add_post(f"{self.prefix}/rerank", self._rerank)
        return app

    async def _info(self, request: web.Request) -> web.Response:
        return web.json_response(self.info)

    async def _models(self, request: web.Request) -> web.Response:
        one = {"id": self.id, "object": "model", "created": len(self.requests), **self.identity}
        if self.capabilities is not None:
            one["capabilities"] = self.capabilities
        return web.json_response({"object": "list", "data": [one]})

    async def _refused(self, asked: dict[str, Any], count: int) -> web.Response | None:
        self.requests.append(asked)
        await self.gate.wait()
        if self.status is not None:
            status, document, headers = self.status
            return web.json_response(document, status=status, headers=headers)
        if self.most is not None and count > self.most:
            message = f"batch size {count} > maximum allowed batch size {self.most}"
            return web.json_response({"error": message, "error_type": "Validation"}, status=422)
        return None

    async def _rerank(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if "query" not in asked:
            return web.json_response({"error": {"message": "query is missing"}}, status=422)
        documents = asked["documents"]
        refused = await self._refused(asked, len(documents))
        if refused is not None:
            return refused
        scores = self.scores(asked["query"], documents)
        if asked.get("raw_scores") or asked.get("use_activation") is False:
            scores = [math.log(one / (1 - one)) for one in scores]
        order = sorted(range(len(scores)), key=lambda at: -scores[at])
        results = [{"index": at, "relevance_score": scores[at], "document": {"text": documents[at]}} for at in order]
        tokens = sum(len(text.split()) + 3 for text in documents)
        reply = {"id": "rerank-1", "model": self.id, "usage": {"total_tokens": tokens}, "results": results}
        return web.json_response(self.lie(reply))

    async def _tei_rerank(self, request: web.Request) -> web.Response:
        asked = await request.json()
        refused = await self._refused(asked, len(asked["texts"]))
        if refused is not None:
            return refused
        scores = self.scores(asked["query"], asked["texts"])
        if asked.get("raw_scores"):
            scores = [math.log(one / (1 - one)) for one in scores]
        order = sorted(range(len(scores)), key=lambda at: -scores[at])
        tokens = sum(len(text.split()) + 3 for text in asked["texts"])
        ranks = [{"index": at, "score": scores[at]} for at in order]
        return web.json_response(self.lie(ranks), headers={"x-compute-tokens": str(tokens)})

    async def _predict(self, request: web.Request) -> web.Response:
        asked = await request.json()
        refused = await self._refused(asked, len(asked["inputs"]))
        if refused is not None:
            return refused
        return web.json_response(self.lie([labelled(" | ".join(item)) for item in asked["inputs"]]))

    async def _classify(self, request: web.Request) -> web.Response:
        asked = await request.json()
        refused = await self._refused(asked, len(asked["input"]))
        if refused is not None:
            return refused
        data = [labelled(text) for text in asked["input"]]
        return web.json_response(self.lie({"object": "classify", "data": data, "usage": {"prompt_tokens": 7}}))

    async def _vectors(self, request: web.Request) -> web.Response:
        """`/embed`, `/embed_all`, `/embed_sparse`."""
        asked = await request.json()
        if "inputs" not in asked:
            return web.json_response({"error": "inputs is missing", "error_type": "Validation"}, status=422)
        refused = await self._refused(asked, len(asked["inputs"]))
        if refused is not None:
            return refused
        make = {"/embed": dense, "/embed_all": of_tokens, "/embed_sparse": sparse}[request.path]
        return web.json_response(self.lie([make(text) for text in asked["inputs"]]))


def labelled(text: str) -> list[dict[str, Any]]:
    """Labels of a text with their scores, the highest first."""
    scores = {label: score(label, text) for label in LABELS}
    total = sum(scores.values())
    return [{"label": label, "score": scores[label] / total} for label in sorted(LABELS, key=lambda one: -scores[one])]


def dense(text: str) -> list[float]:
    return [score(str(at), text) for at in range(4)]


def of_tokens(text: str) -> list[list[float]]:
    return [dense(word) for word in text.split()]


def sparse(text: str) -> list[dict[str, Any]]:
    return [{"index": len(word) * 7 + at, "value": score("s", word)} for at, word in enumerate(text.split())]


class PairV2:
    """A V2 server of `ranker`: query, document → logits [rows, 1], as JSON; `answer` gives the logits of a batch."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[str, str]]] = []
        self.parameters: list[dict[str, Any]] = []
        self.answer: Callable[[list[tuple[str, str]]], list[float]] = lambda pairs: [logit(*pair) for pair in pairs]
        self.width = 1

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [pair for batch in self.batches for pair in batch if "foreseen" not in pair[0]]

    def application(self) -> web.Application:
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/v2/models", self._models)
        app.router.add_get("/v2/models/{model}", self._metadata)
        app.router.add_get("/v2/models/{model}/ready", self._ready)
        app.router.add_post("/v2/models/{model}/infer", self._infer)
        return app

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"models": ["ranker"]})

    async def _metadata(self, request: web.Request) -> web.Response:
        texts = [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in ("query", "document")]
        output = {"name": "logits", "datatype": "FP32", "shape": [-1, self.width]}
        return web.json_response({"name": "ranker", "versions": ["1"], "inputs": texts, "outputs": [output]})

    async def _ready(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _infer(self, request: web.Request) -> web.Response:
        if "Inference-Header-Content-Length" in request.headers:
            return web.json_response({"detail": "not JSON"}, status=422)
        asked = await request.json()
        columns = {one["name"]: one["data"] for one in asked["inputs"]}
        pairs = list(zip(columns["query"], columns["document"], strict=True))
        self.batches.append(pairs)
        self.parameters.append(asked.get("parameters", {}))
        data = self.answer(pairs)
        shape = [len(pairs), self.width]
        output = {"name": "logits", "datatype": "FP32", "shape": shape, "data": data}
        return web.json_response({"model_name": "ranker", "id": asked.get("id"), "outputs": [output]})
