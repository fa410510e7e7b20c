"""A Ray Serve application that asks its models through Foreseen: rows that were answered before cost no replica.

Foreseen runs beside Ray (`foreseen up`, or the Helm chart), in front of the server that holds the model. The deployment
keeps one HTTP session and sends what it gets as V2. It needs aiohttp, which Ray brings.

    serve run deploy.ray.serve_app:app
"""

from __future__ import annotations

import os
from typing import Any

import aiohttp
from ray import serve

URL = os.environ.get("FORESEEN_PROXY", "http://127.0.0.1:8000")
MODEL = os.environ.get("FORESEEN_PROXY_MODEL", "minilm")


@serve.deployment(num_replicas=2, max_ongoing_requests=64, ray_actor_options={"num_cpus": 0.1})
class Predictor:
    """Texts in, rows out, by the cache or by the model behind it."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, request: Any) -> dict[str, Any]:
        """`{"inputs": [...]}`, V2's tensors, as JSON; the answer with what the cache said of it."""
        body = await request.json()
        return await self.predict(body["inputs"])

    async def predict(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """The same for other deployments: `handle.predict.remote(inputs)`."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60))
        async with self._session.post(f"{URL}/v2/models/{MODEL}/infer", json={"inputs": inputs}) as reply:
            reply.raise_for_status()
            answer = await reply.json()
            return {"outputs": answer["outputs"], "cache": reply.headers.get("Cache-Status", "")}


app = Predictor.bind()
