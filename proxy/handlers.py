"""HTTP routes → what they do: the V2 and V1 predict API, health, metadata, metrics."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version
from typing import Any

from aiohttp import web
from multidict import CIMultiDict

from foreseen.errors import BadRequest, WebhookRefused
from foreseen.proxy import describe
from foreseen.proxy.admin.admin import Token, explained
from foreseen.proxy.admin.explain_rows import explain_request
from foreseen.proxy.admin.import_rows import import_request
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.cache.freshness import NO_CONTROL, Control, control_of
from foreseen.proxy.fastpath.fast_connection import FastConnection
from foreseen.proxy.fastpath.responder import Responder
from foreseen.proxy.jobs.predictions import Predictions
from foreseen.proxy.jobs.ticket_options import WEBHOOK, Prefer
from foreseen.proxy.predict.dialects import codecs
from foreseen.proxy.predict.ask import Protocol, RequestHead
from foreseen.proxy.predict.serve import Server
from foreseen.settings import ProxySettings
from foreseen.telemetry.exposition import CONTENT_TYPE
from foreseen.web.caller import caller_of
from foreseen.web.connection import Connection
from foreseen.web.cors import Cors
from foreseen.web.http import (
    SERVER,
    Handler,
    as_foreseen,
    errors,
    expect,
    header_length,
    json_reply,
    read_body,
    route_of,
    traceparent,
)

COUNTED = ("/infer", ":predict", "/embeddings")
"""Routes that admit a caller themselves, since what they refuse is counted under the model's name."""
OPENAI = ("/v1", "/openai/v1")
"""Before the routes of OpenAI's API."""
_OPENAI_PATHS = ("/v1/embeddings", "/v1/files", "/v1/batches", "/openai/")
FREE = ("/v2/health/live", "/v2/health/ready", "/metrics", "/metrics/{model}")
"""Routes that no rate limits: those who ask them watch over the rest."""
REQUEST_ID = "X-Request-Id"
MAX_ID_CHARACTERS = 256
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")


class Handlers:
    """The routes of one proxy process."""

    def __init__(
        self,
        *,
        served: Mapping[str, ServedModel],
        server: Server,
        responder: Responder,
        settings: ProxySettings,
        exposition: Callable[[], Awaitable[bytes]],
        token: Token,
        stalled: Callable[[], bool],
        lost: Callable[[], list[str]] = list,
        missing: Callable[[], str | None] = lambda: None,
        predictions: Predictions | None = None,
    ) -> None:
        self._served = served
        self._server = server
        self._responder = responder
        self._settings = settings
        self._exposition = exposition
        self._stalled = stalled
        self._lost = lost
        self._missing = missing
        self._token = token
        self._predictions = predictions

    def application(self) -> web.Application:
        app = web.Application(middlewares=[errors, openai_errors, admitted], client_max_size=self._settings.body_bytes)
        route = app.router.add_route
        app.router.add_get("/", self.alive)
        for path in ("/v2", "/v2/"):
            app.router.add_get(path, self.server_metadata)
        app.router.add_get("/v2/health/live", self.live)
        app.router.add_get("/v2/health/ready", self.ready)
        app.router.add_get("/v2/models", self.models)
        app.router.add_get("/v2/models/stats", self.all_statistics)
        app.router.add_post("/v2/repository/index", self.repository)
        for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            app.router.add_get(model, self.model_metadata)
            app.router.add_get(f"{model}/ready", self.model_ready)
            app.router.add_get(f"{model}/config", self.model_config)
            app.router.add_get(f"{model}/stats", self.model_statistics)
            for method in ("POST", "QUERY"):
                route(method, f"{model}/infer", self.infer, expect_handler=expect)
            app.router.add_post(f"{model}/explain", self.explain)
            app.router.add_post(f"{model}/import", self.import_rows)
        for prefix in OPENAI:
            for method in ("POST", "QUERY"):
                route(method, f"{prefix}/embeddings", self.embeddings, expect_handler=expect)
            app.router.add_get(f"{prefix}/models", self.v1_models)
        app.router.add_get("/openai/v1/models/{model:[^/:]+}", self.v1_model)
        v1 = "/v1/models/{model:[^/:]+}"  # GET …:predict is a method that is not allowed, and no model of that name
        for model in (v1, v1 + "/versions/{version:[^/:]+}"):
            app.router.add_get(model, self.v1_model)
            for method in ("POST", "QUERY"):
                route(method, f"{model}:predict", self.v1_predict, expect_handler=expect)
            app.router.add_post(f"{model}:explain", self.v1_explain)
        if self._predictions is not None:
            self._predictions.add_to(app)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_get("/metrics/{model}", self.model_metrics)
        Cors(self._settings.cors_origin).add_to(app)
        return app

    async def infer(self, request: web.Request) -> web.StreamResponse:
        """V2: `POST …/infer`."""
        return await self._predict(request, "v2")

    async def v1_predict(self, request: web.Request) -> web.StreamResponse:
        """V1: `POST …:predict`."""
        return await self._predict(request, "v1")

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        """OpenAI's embeddings API; the body names the model. `X-Request-Id` is echoed."""
        return _echoing(request, await self._predict(request, "openai"))

    async def _predict(self, request: web.Request, protocol: Protocol) -> web.StreamResponse:
        started, begun, responder = time.perf_counter(), asyncio.get_running_loop().time(), self._responder
        name = request.match_info.get("model", "")
        try:
            if name:
                responder.find(name, request.match_info.get("version"))
            admit(request)
            body = await read_body(request, self._settings.body_seconds)
            head = self._ask(request, protocol)
            ask = responder.named(head, body)
            name = ask.model
            ticket = await self._ticket(request, ask, body, started)
            if ticket is not None:
                return ticket
        except Exception as error:  # noqa: BLE001 - counted here, where the model is known
            known, caller = as_foreseen(error, request), caller_of(request)
            reply = responder.failed(name, protocol, known, started, traceparent(request), caller)
        else:
            reply = await responder.answer(ask, body, started, begun + ask.seconds)
            connection = request.protocol
            if isinstance(connection, FastConnection) and not (protocol == "openai" and REQUEST_ID in request.headers):
                connection.learn(request, head, reply)
        return web.Response(body=reply.body, status=reply.status, headers=CIMultiDict(reply.headers()))

    async def _ticket(
        self, request: web.Request, ask: RequestHead, body: bytes, started: float
    ) -> web.StreamResponse | None:
        """The 202 of a request that prefers one; None where it is answered at once."""
        if self._predictions is not None and "Prefer" in request.headers:
            ticket = await self._predictions.submit(request, ask, body, started)
            if ticket is not None or Prefer(request).respond_async:
                return ticket
        if WEBHOOK in request.headers:
            raise WebhookRefused(f"{WEBHOOK}: is for requests with Prefer: respond-async, where there is a queue")
        return None

    async def explain(self, request: web.Request) -> web.Response:
        """Operators only: where the rows of an `/infer` body are, or why they would be misses."""
        return await self._explain(request, "v2")

    async def import_rows(self, request: web.Request) -> web.Response:
        """Operators only: store what a batch run has computed, as `foreseen warm --url --outputs` sends it."""
        self._token.check(request, "import")
        served = self._find(request)
        body = await read_body(request, self._settings.body_seconds)
        rows, had = await import_request(self._server, served, header_length(request), body)
        return json_reply({"model": served.manifest.name, "rows": rows, "had": had})

    async def v1_explain(self, request: web.Request) -> web.Response:
        """The same for a `:predict` body."""
        return await self._explain(request, "v1")

    async def _explain(self, request: web.Request, protocol: Protocol) -> web.Response:
        self._token.check(request, "explain")
        served = self._find(request)
        body = await read_body(request, self._settings.body_seconds)
        ask = self._ask(request, protocol, seconds=self._settings.deadline_seconds)
        rows = await explain_request(self._server, served, ask, body)
        return json_reply(explained(rows, served.manifest.name, served.space().digest))

    def _ask(self, request: web.Request, protocol: Protocol, seconds: float | None = None) -> RequestHead:
        """What the request's head asks. Raises BadRequest."""
        path = request.match_info
        return RequestHead(
            path.get("model", ""),
            path.get("version"),
            protocol,
            header_length(request) if protocol == "v2" else None,
            self._seconds(request) if seconds is None else seconds,
            NO_CONTROL if seconds is not None else self._control(request),
            traceparent(request),
            caller_of(request),
        )

    def _seconds(self, request: web.Request) -> float:
        """How long the request has: what its Request-Timeout says, in seconds. Raises BadRequest."""
        given = request.headers.get("Request-Timeout")
        if given is None:
            return self._settings.deadline_seconds
        if not _SECONDS.fullmatch(given) or not float(given):
            raise BadRequest("Request-Timeout: must be a number of seconds above 0")
        return min(float(given), self._settings.longest_deadline_seconds)

    def _control(self, request: web.Request) -> Control:
        """What the request's Cache-Control asks for, unless the operator does not let clients decide."""
        lines = request.headers.getall("Cache-Control", ())
        return control_of(", ".join(lines)) if lines and not self._settings.ignore_client_cache_control else NO_CONTROL

    async def alive(self, request: web.Request) -> web.Response:
        """Something answers here."""
        return json_reply({"status": "alive"})

    async def server_metadata(self, request: web.Request) -> web.Response:
        """V2 server metadata: name, version, extensions."""
        return json_reply({"name": "foreseen", "version": version("foreseen"), "extensions": describe.EXTENSIONS})

    async def live(self, request: web.Request) -> web.Response:
        """V2: whether the server is live."""
        return json_reply({"live": True})

    async def ready(self, request: web.Request) -> web.Response:
        """Ready once every configured model has been; afterwards readiness is per model. Redis never decides it. A
        worker whose event loop was more than a second late a moment ago is not. `error` says why it is not; `lost`
        names what a store that does not answer costs meanwhile, and is left out without one."""
        missing, lost = self._missing(), self._lost()
        whys = [served.why for served in self._served.values() if not served.been_ready]
        ready = missing is None and not whys and not self._stalled()
        told: dict[str, Any] = {"ready": ready, "live": True}
        if not ready:
            told["error"] = missing or "; ".join(whys[:3]) or "the event loop was more than a second late a moment ago"
        return json_reply({**told, "lost": lost} if lost else told, 200 if ready else 503)

    async def models(self, request: web.Request) -> web.Response:
        """Names of the models served."""
        return json_reply({"models": list(self._served)})

    async def repository(self, request: web.Request) -> web.Response:
        """Triton's model repository index, as much of it as there is."""
        states = [
            {"name": s.manifest.name, "version": s.manifest.version, "state": "READY" if s.ready else "UNAVAILABLE"}
            for s in self._served.values()
        ]
        return json_reply(states)

    async def model_metadata(self, request: web.Request) -> web.Response:
        """V2 model metadata: inputs and outputs as clients see them, and the model digest in force."""
        return json_reply(describe.metadata(self._find(request)))

    async def model_ready(self, request: web.Request) -> web.Response:
        """Whether a miss of this model would be answered now; if not, why."""
        served = self._find(request)
        told: dict[str, Any] = {"name": served.manifest.name, "ready": served.ready}
        if served.ready:
            return json_reply(told)
        why = f"model {served.manifest.name!r} is not ready: {served.why}"
        return json_reply({**told, "error": why, "code": "model_unavailable"}, 503, {"Retry-After": "1"})

    async def model_config(self, request: web.Request) -> web.Response:
        """The model's configuration, as Triton's clients read it."""
        return json_reply(describe.config(self._find(request)))

    async def model_statistics(self, request: web.Request) -> web.Response:
        """One model's statistics, as Triton's clients read them; of the worker that answers."""
        return json_reply({"model_stats": [describe.statistics(self._find(request))]})

    async def all_statistics(self, request: web.Request) -> web.Response:
        """The statistics of all models."""
        return json_reply({"model_stats": [describe.statistics(served) for served in self._served.values()]})

    async def v1_models(self, request: web.Request) -> web.Response:
        """Names of the models served, in KServe's V1 form and OpenAI's at once."""
        return json_reply(describe.model_list(self._served.values()))

    async def v1_model(self, request: web.Request) -> web.Response:
        """V1 status: KServe's, TensorFlow Serving's and OpenAI's in one. Aliases are known, too."""
        name = request.match_info["model"]
        served = self._responder.find_named(name, request.match_info.get("version"))
        return json_reply({**describe.v1_status(served), **describe.openai_model(name)})

    async def metrics(self, request: web.Request) -> web.Response:
        """The Prometheus exposition over all workers."""
        text = await self._exposition()
        return web.Response(body=text, headers={"Server": SERVER, "Content-Type": CONTENT_TYPE})

    async def model_metrics(self, request: web.Request) -> web.Response:
        """A model process's own exposition, for a Prometheus that cannot reach its unix socket."""
        text = await self._find(request).process.exposition()
        return web.Response(body=text, headers={"Server": SERVER, "Content-Type": CONTENT_TYPE})

    def _find(self, request: web.Request) -> ServedModel:
        return self._responder.find(request.match_info["model"], request.match_info.get("version"))


def admit(request: web.Request) -> None:
    """Raises RateLimited where the caller's address asks too often."""
    if isinstance(request.protocol, Connection):
        request.protocol.admit()


def _echoing(request: web.Request, reply: web.StreamResponse) -> web.StreamResponse:
    """A reply with the request's own id."""
    given = request.headers.get(REQUEST_ID)
    if given is not None and len(given) <= MAX_ID_CHARACTERS and given.isascii() and given.isprintable():
        reply.headers[REQUEST_ID] = given
    return reply


@web.middleware
async def openai_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors under the routes of OpenAI's API have its form."""
    if not request.path.startswith(_OPENAI_PATHS):
        return await handler(request)
    try:
        return await handler(request)
    except Exception as error:  # noqa: BLE001 - this is the edge: what gets here is answered, logged and counted
        known = as_foreseen(error, request)
        headers, body = codecs.error_body("openai", known)
        return _echoing(request, web.Response(body=body, status=known.status, headers=headers))


@web.middleware
async def admitted(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every request of the public listener but those that admit their callers themselves, and those of watchers."""
    route = route_of(request)
    if not route.endswith(COUNTED) and route not in FREE:
        admit(request)
    return await handler(request)
