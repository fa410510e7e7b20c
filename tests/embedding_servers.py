"""Embedding servers that are not ours: an honest stub of OpenAI's and of TEI's routes that may be told to lie."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from aiohttp import web

from foreseen.keys.secret import make_secret
from foreseen.proxy.assembly import Proxy
from foreseen.proxy.backend.discovery import upstream_of
from foreseen.proxy.from_settings import freshness_of
from foreseen.settings import ProxySettings
from tests.foreign import Front, listening

WIDTH = 8
Reply = Any


def vector(text: str, width: int = WIDTH) -> list[float]:
    """The embedding of a text: a unit vector of its hash, in float32."""
    numbers = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=width * 2).digest(), "<i2").astype(np.float32)
    made = (numbers / np.linalg.norm(numbers)).astype(np.float32)
    return [float(number) for number in made]


class EmbeddingStub:
    """Embeds by `vector`, and counts. `lie` changes a reply before it is sent."""

    def __init__(self, kind: str = "openai", prefix: str = "/v1") -> None:
        self.kind, self.prefix = kind, prefix
        self.id = "BAAI/bge-m3"
        self.identity: dict[str, Any] = {"root": "BAAI/bge-m3", "max_model_len": 512}
        self.info: dict[str, Any] = {
            "model_id": self.id, "model_sha": "5617", "model_dtype": "float16", "version": "1.8.3",
            "model_type": {"embedding": {"pooling": "cls"}}, "max_client_batch_size": 4, "max_input_length": 512,
        }  # fmt: skip
        self.version: str | None = "0.32.0"
        self.nim: dict[str, Any] | None = None
        """What NVIDIA NIM's `/v1/metadata` answers; None where the server is none."""
        self.packs = True
        self.embeds = True
        self.most: int | None = None
        self.key: str | None = None
        self.status: tuple[int, Any, dict[str, str]] | None = None
        self.noise = 0.0
        self.width = WIDTH
        self.lie: Callable[[Reply], Reply] = lambda reply: reply
        self.requests: list[dict[str, Any]] = []
        self.listings = 0
        self.gate = asyncio.Event()
        """Replies wait for it."""
        self.gate.set()

    def texts_like(self, text: str) -> int:
        """How often a text was embedded; the probe's are others."""
        return sum(list(asked.get("input") or asked.get("inputs")).count(text) for asked in self.requests)

    @property
    def batches(self) -> list[int]:
        """The number of texts of every request but the probe's."""
        listed = [list(asked.get("input") or asked.get("inputs")) for asked in self.requests]
        return [len(texts) for texts in listed if not any("foreseen" in text for text in texts)]

    def application(self) -> web.Application:
        app = web.Application(client_max_size=2**26)
        if self.kind == "tei":
            app.router.add_get("/info", self._info)
            app.router.add_post("/embed", self._embed)
            return app
        app.router.add_get(f"{self.prefix}/models", self._models)
        if self.embeds:
            app.router.add_post(f"{self.prefix}/embeddings", self._embeddings)
        app.router.add_get("/version", self._version)
        app.router.add_get("/v1/metadata", self._nim)
        return app

    async def _info(self, request: web.Request) -> web.Response:
        return web.json_response(self.info)

    async def _models(self, request: web.Request) -> web.Response:
        self.listings += 1
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "no key"}}, status=401)
        one = {"id": self.id, "object": "model", "created": self.listings, "stats": self.listings, **self.identity}
        return web.json_response({"object": "list", "data": [one]})

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": self.version}, status=404 if self.version is None else 200)

    async def _nim(self, request: web.Request) -> web.Response:
        return web.json_response(self.nim, status=404 if self.nim is None else 200)

    def _refused(self, request: web.Request, texts: list[str]) -> web.Response | None:
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "no key"}}, status=401)
        if self.status is not None:
            status, document, headers = self.status
            return web.json_response(document, status=status, headers=headers)
        if self.most is not None and len(texts) > self.most:
            message = f"batch size {len(texts)} > maximum allowed batch size {self.most}"
            return web.json_response({"error": message, "error_type": "Validation"}, status=422)
        return None

    def _vectors(self, texts: list[str], width: int | None) -> list[list[float]]:
        made = [vector(text, width or self.width) for text in texts]
        if self.noise and len(texts) > 1:
            made = [[number + self.noise * (-1) ** at for at, number in enumerate(row)] for row in made]
        return made

    async def _embeddings(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if "input" not in asked:
            return web.json_response({"error": {"message": "input is missing"}}, status=422)
        texts = [asked["input"]] if isinstance(asked["input"], str) else asked["input"]
        self.requests.append(asked)
        await self.gate.wait()
        refused = self._refused(request, texts)
        if refused is not None:
            return refused
        rows: list[Any] = self._vectors(texts, asked.get("dimensions"))
        if asked.get("encoding_format") == "base64":
            if not self.packs:
                return web.json_response({"detail": "encoding_format: not supported"}, status=422)
            rows = [base64.b64encode(np.array(row, "<f4").tobytes()).decode() for row in rows]
        data = [{"object": "embedding", "index": at, "embedding": row} for at, row in enumerate(rows)]
        tokens = sum(len(text.split()) + 2 for text in texts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        reply = {"object": "list", "data": data, "model": self.id, "usage": usage}
        return web.json_response(self.lie(reply))

    async def _embed(self, request: web.Request) -> web.Response:
        asked = await request.json()
        texts = [asked["inputs"]] if isinstance(asked["inputs"], str) else asked["inputs"]
        self.requests.append(asked)
        refused = self._refused(request, texts)
        if refused is not None:
            return refused
        tokens = sum(len(text.split()) + 2 for text in texts)
        rows = self._vectors(texts, asked.get("dimensions"))
        return web.json_response(self.lie(rows), headers={"x-compute-tokens": str(tokens)})


@contextlib.asynccontextmanager
async def embedding_proxy(data: Path, *upstreams: str, **more: Any) -> AsyncIterator[tuple[Front, str]]:
    """A proxy without a far tier in front of replicas of an embedding server, and its address."""
    make_secret(data / "secret")
    settings = ProxySettings(data=data, upstream=upstreams, redis="none", **more)
    proxy = Proxy(settings, await upstream_of(settings, freshness_of(settings)))
    async with proxy.running(), listening(proxy.application) as url, aiohttp.ClientSession() as client:
        yield Front(proxy, client, url), url
