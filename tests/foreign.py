"""V2 servers that are not ours: an honest one in this process that may be told to lie, and a proxy in front."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from foreseen.keys.secret import make_secret
from foreseen.proxy.assembly import Proxy
from foreseen.proxy.backend.discovery import upstream_of
from foreseen.proxy.from_settings import freshness_of
from foreseen.settings import ProxySettings
from tests.questions import fingerprint

Reply = dict[str, Any]
OPEN = [-1, 16]


class Held:
    """Requests that wait until they are released."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self._arrived = asyncio.Semaphore(0)

    async def until(self, count: int) -> None:
        """Until so many more requests have come."""
        for _ in range(count):
            await self._arrived.acquire()

    async def pass_through(self) -> None:
        self._arrived.release()
        await self.released.wait()


class Foreign:
    """Serves `fp` as JSON only, and counts. `lie` changes a reply before it is sent; `answer` computes a batch."""

    def __init__(self) -> None:
        self.metadata: dict[str, Any] = {
            "name": "fp",
            "platform": "",
            "inputs": [{"name": "x", "datatype": "INT64", "shape": OPEN}],
            "outputs": [{"name": "digest", "datatype": "INT64", "shape": [-1, 4]}],
        }
        self.listed: list[str] = ["fp"]
        self.without: set[str] = set()
        """Models that have no metadata."""
        self.ready = True
        self.version: str | None = None
        self.answer: Callable[[list[list[int]]], list[list[int]]] = lambda rows: [fingerprint(row) for row in rows]
        self.lie: Callable[[Reply], Reply] = lambda reply: reply
        self.batches: list[list[list[int]]] = []
        self.parameters: list[dict[str, Any]] = []
        self.documents: list[dict[str, Any]] = []
        """Whole requests that came as JSON, the latest last."""
        self.binary_tries = 0
        self._held: Held | None = None
        self.closing = False
        """Whether what it cannot read ends the connection, behind a 500 that does not say so (MLServer)."""

    def rows_like(self, row: list[int]) -> int:
        """How often a row was computed: the probe's rows are others."""
        return sum(batch.count(row) for batch in self.batches)

    def hold(self) -> Held:
        """Hold back the replies of what is asked from now on."""
        self._held = Held()
        return self._held

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v2/repository/index", self._index)
        app.router.add_get("/v2/models/{model}", self._metadata)
        app.router.add_get("/v2/models/{model}/ready", self._ready)
        app.router.add_post("/v2/models/{model}/infer", self._infer)
        return app

    async def _index(self, request: web.Request) -> web.Response:
        return web.json_response([{"name": name, "state": "READY"} for name in self.listed])

    async def _metadata(self, request: web.Request) -> web.Response:
        if request.match_info["model"] in self.without:
            return web.json_response({"error": "no metadata"}, status=404)
        return web.json_response({**self.metadata, "name": request.match_info["model"]})

    async def _ready(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.ready else 503)

    async def _infer(self, request: web.Request) -> web.Response:
        if "Inference-Header-Content-Length" in request.headers:
            self.binary_tries += 1
            if self.closing:
                return await _closed(request)
            return web.json_response({"detail": "not JSON"}, status=422)
        asked = await request.json()
        if self._held is not None:
            await self._held.pass_through()
        self.parameters.append(asked.get("parameters", {}))
        self.documents.append(asked)
        flat, (count, width) = asked["inputs"][0]["data"], asked["inputs"][0]["shape"]
        rows = [flat[at * width : (at + 1) * width] for at in range(count)]
        self.batches.append(rows)
        answers = self.answer(rows)
        data = [value for row in answers for value in row]
        output = {"name": "digest", "datatype": "INT64", "shape": [len(answers), 4], "data": data}
        reply: Reply = {"model_name": request.match_info["model"], "id": asked.get("id"), "outputs": [output]}
        if self.version is not None:
            reply["model_version"] = self.version
        return web.json_response(self.lie(reply))


async def _closed(request: web.Request) -> web.StreamResponse:
    """A 500 on a connection that ends right behind it."""
    reply = web.StreamResponse(status=500, headers={"Content-Length": "2"})
    await reply.prepare(request)
    await reply.write(b"no")
    await reply.write_eof()
    assert request.transport is not None
    request.transport.close()
    return reply


@contextlib.asynccontextmanager
async def listening(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    try:
        yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    finally:
        await runner.cleanup()


class Front:
    """A proxy of this process, and somebody who asks it."""

    def __init__(self, proxy: Proxy, client: aiohttp.ClientSession, url: str) -> None:
        self.proxy = proxy
        self._client = client
        self._url = url

    async def infer(self, *rows: list[int], model: str = "fp", **more: Any) -> tuple[int, str, Any]:
        """Status, Cache-Status and the digests, or the error."""
        flat = [value for row in rows for value in row]
        body = {"inputs": [{"name": "x", "shape": [len(rows), 16], "datatype": "INT64", "data": flat}], **more}
        async with self._client.post(f"{self._url}/v2/models/{model}/infer", json=body) as reply:
            told = json.loads(await reply.read())
            if reply.status != 200:
                return reply.status, "", told
            data = told["outputs"][0]["data"]
            return 200, reply.headers["Cache-Status"], [data[at : at + 4] for at in range(0, len(data), 4)]

    async def post(self, body: dict[str, Any], model: str = "fp") -> tuple[int, Mapping[str, str], Any]:
        """Status, headers and the document of a reply to any body."""
        async with self._client.post(f"{self._url}/v2/models/{model}/infer", json=body) as reply:
            return reply.status, reply.headers, json.loads(await reply.read())

    async def post_to(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and document of a reply on any path."""
        async with self._client.post(self._url + path, json=body) as reply:
            return reply.status, json.loads(await reply.read())

    async def get(self, path: str) -> Any:
        async with self._client.get(self._url + path) as reply:
            return json.loads(await reply.read())

    async def status(self, path: str) -> tuple[int, Any]:
        async with self._client.get(self._url + path) as reply:
            return reply.status, json.loads(await reply.read())

    async def until(self, wanted: Callable[[dict[str, Any]], bool], model: str = "fp") -> dict[str, Any]:
        """The `parameters` of a model's metadata, once they are as wanted."""
        told = await self.until_described(lambda told: wanted(told.get("parameters", {})), model)
        parameters: dict[str, Any] = told["parameters"]
        return parameters

    async def until_described(self, wanted: Callable[[dict[str, Any]], bool], model: str = "fp") -> dict[str, Any]:
        """A model's metadata, once they are as wanted."""
        async with asyncio.timeout(20):
            while True:
                told: dict[str, Any] = await self.get(f"/v2/models/{model}")
                if wanted(told):
                    return told


@contextlib.asynccontextmanager
async def fronted(upstream: str | None, data: Path, **more: Any) -> AsyncIterator[Front]:
    """A proxy without a far tier in front of a server."""
    make_secret(data / "secret")
    settings = ProxySettings(data=data, upstream=(upstream,) if upstream else (), redis="none", **more)
    proxy = Proxy(settings, await upstream_of(settings, freshness_of(settings)))
    async with proxy.running(), listening(proxy.application) as url, aiohttp.ClientSession() as client:
        yield Front(proxy, client, url)
