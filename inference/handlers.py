"""V2 requests → one `LoadedModel` model → replies: the routes of the model process.

Direct callers send `[model]` tensors; the proxy in front takes `[client]` tensors under the same name.
"""

from __future__ import annotations

import asyncio
import time
from importlib.metadata import version
from typing import Any

import structlog
from aiohttp import web

from foreseen.errors import BadInput, ForeseenError, ModelUnavailable, UnknownModel, Unsupported
from foreseen.inference.batching.queued import BatchOrder, Computed, QueuedRequest
from foreseen.inference.describe import EXTENSIONS, ModelStats, config, metadata
from foreseen.inference.row_requests import RowAsked, RowRequests, plain_reply
from foreseen.inference.served import LoadedModel
from foreseen.modelspec.manifest import wire_shape
from foreseen.protocol import wire, wire_render
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.tensors import raw_of
from foreseen.settings import InferenceSettings
from foreseen.telemetry.exposition import CONTENT_TYPE
from foreseen.telemetry.spans import SpanSink, computed_span, is_sampled
from foreseen.types import Array, Lane
from foreseen.web.http import (
    SERVER,
    Handler,
    as_foreseen,
    error_body,
    error_reply,
    header_length,
    infer_reply,
    internal,
    json_reply,
    read_body,
    traceparent,
)

_ROUTE = "/v2/models/{model}/infer"
MAX_CALLER_CHARACTERS, MAX_WEIGHT = 256, 100
_log = structlog.get_logger()


class ModelRoutes:
    """The routes."""

    def __init__(self, served: LoadedModel, settings: InferenceSettings, spans: SpanSink | None = None) -> None:
        """`spans` takes those of sampled requests, where there are traces."""
        self._spans = spans
        self._served = served
        self._settings = settings
        self._stats = ModelStats()
        self._rows = RowRequests(served.manifest)

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._count], client_max_size=self._settings.body_bytes)
        routes = app.router
        paths = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
        for path in paths:  # first, because aiohttp tries routes in this order: 10 µs a request
            routes.add_post(f"{path}/infer", self._infer)
        for path in ("/v2", "/v2/"):
            routes.add_get(path, self._server)
        routes.add_get("/v2/health/live", self._live)
        routes.add_get("/v2/health/ready", self._ready)
        routes.add_get("/v2/models", self._models)
        routes.add_get("/v2/models/stats", self._all_stats)
        for path in paths:
            routes.add_get(path, self._metadata)
            routes.add_get(f"{path}/ready", self._model_ready)
            routes.add_get(f"{path}/config", self._config)
            routes.add_get(f"{path}/stats", self._model_stats)
        routes.add_get("/metrics", self._metrics)
        return app

    @web.middleware
    async def _count(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every error is `{"error", "code"}`, and every request is counted before its answer is sent."""
        started = time.perf_counter()
        inferring = request.path.endswith("/infer")
        try:
            response = await handler(request)
        except Exception as error:  # noqa: BLE001 -- this is the edge: what gets here is answered, logged and counted
            known = as_foreseen(error, request)
            self._served.metrics.error(known.code)
            if inferring:
                self._stats.failed(time.perf_counter() - started)
            response = error_reply(known)
        if inferring:
            self._served.metrics.request(response.status)
        return response

    async def _server(self, _: web.Request) -> web.Response:
        return json_reply({"name": "foreseen-inference", "version": version("foreseen"), "extensions": EXTENSIONS})

    async def _live(self, _: web.Request) -> web.Response:
        return json_reply({"live": True})

    async def _ready(self, _: web.Request) -> web.Response:
        self._check_ready()
        return json_reply({"ready": True, "live": True})  # the spec prints the one, KServe serves the other

    async def _models(self, _: web.Request) -> web.Response:
        return json_reply({"models": [self._served.manifest.name]})

    async def _metadata(self, request: web.Request) -> web.Response:
        self._check_model(request)
        return json_reply(metadata(self._served.session, self._served.row_independent))

    async def _model_ready(self, request: web.Request) -> web.Response:
        self._check_model(request)
        self._check_ready()
        return json_reply({"name": self._served.manifest.name, "ready": True})

    async def _config(self, request: web.Request) -> web.Response:
        self._check_model(request)
        return json_reply(config(self._served.manifest, self._served.limits.max_rows))

    async def _model_stats(self, request: web.Request) -> web.Response:
        self._check_model(request)
        return await self._all_stats(request)

    async def _all_stats(self, _: web.Request) -> web.Response:
        return json_reply(self._stats.document(self._served.manifest, self._served.runs))

    async def _metrics(self, _: web.Request) -> web.Response:
        text = await asyncio.to_thread(self._served.metrics.exposition)
        return web.Response(body=text, headers={"ModelRoutes": SERVER, "Content-Type": CONTENT_TYPE})

    async def _infer(self, request: web.Request) -> web.Response:
        started = time.perf_counter()
        self._check_model(request)
        session = self._served.session
        body, length = await read_body(request, self._settings.body_seconds), header_length(request)
        asked = self._parsed(body, length)
        self._check_outputs(asked)
        order = self._order(asked.parameters)
        tensors = {tensor.name: tensor.array for tensor in asked.inputs}
        outputs, computed = await self._served.answer(tensors, order)
        rows = len(next(iter(outputs.values()))) if self._served.manifest.model.has_rows else 1
        seconds, queued = sum(c.seconds for c in computed), max((c.queued for c in computed), default=0.0)
        facts = {"digest": session.digest, "seconds": seconds / rows if rows else 0.0}
        self._rows.learn(body, length, asked, order)
        rendered, length = self._rendered(asked, outputs, facts)
        self._stats.succeeded(rows, time.perf_counter() - started, queued, seconds, time.time())
        trace = traceparent(request)
        if trace is not None:
            if self._spans is not None and is_sampled(trace):
                self._spans.add(computed_span(self._served.manifest.name, rows, started, seconds, queued, trace))
            _log.info("infer", rows=rows, seconds=round(seconds, 6), queued=round(queued, 6), traceparent=trace)
        return infer_reply(rendered, length)

    # One row that our own proxy asks for, without aiohttp: `row_connection.py`.

    def row_asked(self, data: bytes) -> RowAsked | None:
        """The row that a request is recognised to ask for."""
        return self._rows.read(data, asyncio.get_running_loop().time()) if self._served.ready else None

    def begin_row(self, asked: RowAsked) -> tuple[QueuedRequest, str]:
        """Queue it; with the digest that computes it. Raises as `Batcher.submit`."""
        return self._served.batcher.submit([asked.row], asked.order), self._served.session.digest

    def drop(self, pending: QueuedRequest) -> None:
        """Nobody waits for it any more."""
        self._served.batcher.drop(pending)

    def end_row(
        self, asked: RowAsked, digest: str, future: asyncio.Future[list[Computed]], started: float
    ) -> bytes:  # fmt: skip
        """The reply, counted."""
        error = future.exception()
        if error is not None:
            return self.failed_row(error, started)
        (computed,) = future.result()
        reply = self._rows.reply(computed.outputs, asked.id, digest, computed.seconds)
        took, now = time.perf_counter() - started, time.time()
        self._stats.succeeded(1, took, computed.queued, computed.seconds, now)
        self._served.metrics.request(200)
        return reply

    def failed_row(self, error: BaseException, started: float) -> bytes:
        """The reply that an error becomes, counted."""
        if isinstance(error, ForeseenError):
            known = error
        else:
            known = internal(error if isinstance(error, Exception) else RuntimeError(), _ROUTE)
        self._served.metrics.error(known.code)
        self._stats.failed(time.perf_counter() - started)
        self._served.metrics.request(known.status)
        headers, body = error_body(known)
        return plain_reply(known.status, headers, body)

    def _check_model(self, request: web.Request) -> None:
        name, asked = request.match_info["model"], request.match_info.get("version")
        manifest = self._served.manifest
        if name != manifest.name or asked not in (None, manifest.version):
            raise UnknownModel(name, asked)

    def _check_ready(self) -> None:
        if not self._served.ready:
            raise ModelUnavailable(f"model '{self._served.manifest.name}' is not ready")

    def _parsed(self, body: bytes, length: int | None) -> wire.Request:
        """`Inference-Header-Content-Length: 0` is a raw request: the body is the bytes of the one input."""
        if length != 0:
            return wire.parse_request(body, length)
        keyed = self._served.manifest.model.keyed
        if len(keyed) != 1:
            raise BadInput(f"inputs: a raw binary request needs a model with one input, this has {len(keyed)}")
        return wire.parse_raw(body, keyed[0].name, keyed[0].datatype, wire_shape(keyed[0].shape))

    def _check_outputs(self, asked: wire.Request) -> None:
        known = {output.name for output in self._served.manifest.model.outputs}
        for output in asked.outputs or ():
            if output.name not in known:
                raise BadInput(
                    f"outputs.{output.name}: the model has no such output; it has {', '.join(sorted(known))}"
                )
            if output.classification is not None:
                raise Unsupported(f"outputs.{output.name}.parameters.classification: ask the proxy for it")

    def _order(self, parameters: dict[str, Any]) -> BatchOrder:
        """When a request is computed: by its `timeout` (µs), `priority` (1 is the most urgent, 0 unset), and the
        `caller` that its rows are charged to, with its `weight`."""
        timeout, caller = _number(parameters, "timeout"), parameters.get("caller", "")
        if type(caller) is not str or len(caller) > MAX_CALLER_CHARACTERS:
            raise BadInput(f"parameters.caller: must be a string of at most {MAX_CALLER_CHARACTERS} characters")
        seconds = timeout / 1e6 if timeout else self._settings.deadline_seconds
        lane: Lane = "background" if _number(parameters, "priority") > 1 else "online"
        weight = min(max(1, _number(parameters, "weight")), MAX_WEIGHT)
        return BatchOrder(asyncio.get_running_loop().time() + seconds, lane, caller, weight)

    def _rendered(
        self, asked: wire.Request, outputs: dict[str, Array], facts: dict[str, Any]
    ) -> tuple[bytes, int | None]:
        """The requested outputs in the requested order and encoding; by default all, in the signature's order."""
        manifest = self._served.manifest
        datatypes = {output.name: output.datatype for output in manifest.model.outputs}
        if asked.outputs is None:
            wanted = [(name, asked.binary) for name in datatypes]
        else:
            wanted = [(o.name, asked.binary if o.binary is None else o.binary) for o in asked.outputs]
        tensors = [
            wire_render.OutputTensor(
                name, datatypes[name], outputs[name].shape, raw_of(outputs[name], DATATYPES[datatypes[name]]), binary
            )
            for name, binary in wanted
        ]
        return wire_render.render_response(manifest.name, manifest.version, asked.id, tensors, facts)


def _number(parameters: dict[str, Any], name: str) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int or value < 0:
        raise BadInput(f"parameters.{name}: must be a whole number, 0 or more")
    return value
