"""The routes of rerank, score and classification, and text-embeddings-inference's own. A body may name its model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.predict.ask import Protocol
from foreseen.proxy.predict.dialects.text_codecs import ROUTES
from foreseen.proxy.tei_info import tei_info
from foreseen.web.authentication import tenant_of
from foreseen.web.http import Handler, json_reply

Answer = Callable[[web.Request, Protocol], Awaitable[web.StreamResponse]]


class TextRoutes:
    """One handler for each dialect; `answer` is what they have in common."""

    def __init__(self, answer: Answer, served: Mapping[str, ServedModel]) -> None:
        self._answer = answer
        self._served = served

    def add_to(self, app: web.Application, predict: Callable[[str, Handler], None]) -> None:
        """Add the routes: of each path in `ROUTES` the method that has its protocol's name. `predict` adds one."""
        for path, protocol in ROUTES.items():
            predict(path, getattr(self, protocol.replace("-", "_")))
        app.router.add_get("/info", self.info)

    async def info(self, request: web.Request) -> web.StreamResponse:
        """text-embeddings-inference: what the caller's only model of texts is. 400 where there are several."""
        tenant = tenant_of(request)
        return json_reply(tei_info({name: one for name, one in self._served.items() if tenant.may_use(name)}))

    async def rerank_v1(self, request: web.Request) -> web.StreamResponse:
        """Jina's, vLLM's and Cohere's (v1) rerank API: documents by their relevance to a query, best first."""
        return await self._answer(request, "rerank-v1")

    async def rerank_v2(self, request: web.Request) -> web.StreamResponse:
        """Cohere's rerank API, v2."""
        return await self._answer(request, "rerank-v2")

    async def rerank(self, request: web.Request) -> web.StreamResponse:
        """text-embeddings-inference's rerank API where the body has `texts`; else infinity's, as on `/v1/rerank`."""
        return await self._answer(request, "rerank")

    async def score(self, request: web.Request) -> web.StreamResponse:
        """vLLM's score API: a score for each pair of texts, in their order."""
        return await self._answer(request, "score")

    async def ranking(self, request: web.Request) -> web.StreamResponse:
        """NVIDIA NIM's ranking API: logits, best first."""
        return await self._answer(request, "ranking")

    async def predict(self, request: web.Request) -> web.StreamResponse:
        """text-embeddings-inference: labels with scores. `["a", "b"]` is one pair of texts."""
        return await self._answer(request, "predict")

    async def classify(self, request: web.Request) -> web.StreamResponse:
        """infinity: labels with scores of each text."""
        return await self._answer(request, "classify")

    async def embed(self, request: web.Request) -> web.StreamResponse:
        """text-embeddings-inference: a vector for each text."""
        return await self._answer(request, "embed")

    async def embed_all(self, request: web.Request) -> web.StreamResponse:
        """text-embeddings-inference: a vector for every token of each text."""
        return await self._answer(request, "embed-all")

    async def embed_sparse(self, request: web.Request) -> web.StreamResponse:
        """text-embeddings-inference: a sparse vector for each text."""
        return await self._answer(request, "embed-sparse")

    async def similarity(self, request: web.Request) -> web.StreamResponse:
        """text-embeddings-inference: the cosine of a text's vector and each of other texts'."""
        return await self._answer(request, "similarity")
