"""A small embedding server for benchmarks: OpenAI's routes, 384 numbers made of each text's hash, no model.

python -m bench.embedding_server PORT
"""

from __future__ import annotations

import base64
import hashlib
import sys

import numpy as np
import orjson
from aiohttp import web

from foreseen.types import Array

MODEL, WIDTH = "bench-embed", 384


def vector(text: str) -> Array:
    """A unit vector of float32 that the text decides."""
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    made = np.random.default_rng(seed).standard_normal(WIDTH).astype("<f4")
    return np.asarray(made / np.linalg.norm(made), "<f4")


async def models(request: web.Request) -> web.Response:
    one = {"id": MODEL, "object": "model", "created": 1, "root": MODEL, "max_model_len": 512}
    return web.json_response({"object": "list", "data": [one]})


async def embeddings(request: web.Request) -> web.Response:
    asked = orjson.loads(await request.read())
    if "input" not in asked:
        return web.json_response({"error": {"message": "input is missing"}}, status=422)
    texts = [asked["input"]] if isinstance(asked["input"], str) else asked["input"]
    rows = [vector(text) for text in texts]
    packed = asked.get("encoding_format") == "base64"
    listed = [base64.b64encode(row.tobytes()).decode() if packed else row.tolist() for row in rows]
    data = [{"object": "embedding", "index": at, "embedding": row} for at, row in enumerate(listed)]
    tokens = sum(len(text.split()) + 2 for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    reply = {"object": "list", "data": data, "model": MODEL, "usage": usage}
    return web.Response(body=orjson.dumps(reply), content_type="application/json")


def main() -> None:
    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/embeddings", embeddings)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)


if __name__ == "__main__":
    main()
