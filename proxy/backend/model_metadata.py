"""Reads the V2 metadata of our own model process, and the facts in its `parameters`."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import orjson
from msgspec import Struct

from foreseen.errors import ModelUnavailable

PROBE_SECONDS = 2.0


class ModelFacts(Struct, frozen=True):
    """What a model process reports in its metadata's `parameters`."""

    digest: str
    preparation: str | None = ""
    """None of a foreign server, which does not know how inputs are prepared."""
    precision: str = ""
    provider: str = ""
    row_independent: bool = True
    worst_difference: float | None = None
    """The largest difference that a probe has seen between an answer alone and in a batch; of embeddings, 1 − cos."""
    rows_why: str = ""
    """Why a foreign server's rows are keyed as they are."""
    identity: str = "digest"
    """What a change of the model shows in: `digest`, `declared`, `version`, or `unobservable`."""
    artifact: str = ""
    """The artifact digest; empty of a foreign server."""


async def read_metadata(client: aiohttp.ClientSession, base: str, name: str) -> dict[str, Any]:
    """A model's V2 metadata. Raises ModelUnavailable unless the server is there and ready."""
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            async with client.get(f"{base}/v2/models/{name}/ready") as reply:
                if reply.status != 200:
                    raise ModelUnavailable(f"model {name!r} is not ready")
            async with client.get(f"{base}/v2/models/{name}") as reply:
                document = orjson.loads(await reply.read())
    except (aiohttp.ClientError, OSError, TimeoutError, orjson.JSONDecodeError):
        raise ModelUnavailable(f"model {name!r} cannot be reached") from None
    if not isinstance(document, dict):
        raise ModelUnavailable(f"model {name!r} has metadata that cannot be read")
    return document


def facts_of(name: str, metadata: dict[str, Any]) -> ModelFacts:
    """The facts in the metadata's `parameters`. Raises ModelUnavailable where the digest is missing."""
    parameters = metadata.get("parameters", {})
    if not isinstance(parameters.get("digest"), str):
        raise ModelUnavailable(f"model {name!r} does not report its digest")
    return ModelFacts(**{field: parameters[field] for field in ModelFacts.__struct_fields__ if field in parameters})
