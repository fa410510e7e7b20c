"""The HTTP routes of predict requests in every dialect, and those that operators alone may use."""

from __future__ import annotations

import asyncio
import re
import time

from aiohttp import web
from multidict import CIMultiDict

from foreseen.errors import BadRequest, WebhookRefused
from foreseen.proxy.admin.admin import Operators
from foreseen.proxy.admin.operator_routes import ENDINGS as OPERATED
from foreseen.proxy.admin.operator_routes import OperatorRoutes
from foreseen.proxy.cache.freshness import NO_CONTROL, Control, control_of
from foreseen.proxy.fastpath.fast_connection import FastConnection
from foreseen.proxy.fastpath.responder import Responder
from foreseen.proxy.jobs.predictions import Predictions
from foreseen.proxy.jobs.ticket_options import WEBHOOK, Prefer
from foreseen.proxy.predict.ask import Protocol, RequestHead
from foreseen.proxy.predict.dialects.codecs import CODECS
from foreseen.proxy.predict.dialects.text_codecs import ERROR_FORMS
from foreseen.proxy.predict.serve import Server
from foreseen.proxy.status_handlers import OPENAI, V1_MODEL, StatusHandlers
from foreseen.proxy.text_routes import TextRoutes
from foreseen.settings import ProxySettings
from foreseen.web.authentication import KEYRING, is_open, tenant_of
from foreseen.web.caller import caller_of
from foreseen.web.connection import Connection
from foreseen.web.cors import Cors
from foreseen.web.http import (
    Handler,
    as_foreseen,
    errors,
    expect,
    header_length,
    read_body,
    route_name,
    route_of,
    traceparent,
)

PREDICTED: web.AppKey[set[str]] = web.AppKey("predicted", set[str])
"""Predict routes. They admit a caller themselves, since what they refuse is counted under the model's name."""
_OPENAI_PATHS = ("/v1/embeddings", "/v1/files", "/v1/batches", "/openai/")
FREE = ("/v2/health/live", "/v2/health/ready", "/metrics", "/metrics/{model}")
"""Routes without a rate limit: health checks and scrapes."""
WATCHED = ("/metrics", "/metrics/{model}", "/stats")
"""Ends of routes that ask for an operator's key by themselves."""
REQUEST_ID = "X-Request-Id"
MAX_ID_CHARACTERS = 256
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")


class Handlers:
    """The routes of one proxy process."""

    def __init__(
        self,
        *,
        server: Server,
        responder: Responder,
        settings: ProxySettings,
        operators: Operators,
        status: StatusHandlers,
        predictions: Predictions | None = None,
    ) -> None:
        self._server = server
        self._responder = responder
        self._settings = settings
        self._operators = operators
        self._status = status
        self._predictions = predictions

    def application(self) -> web.Application:
        app = web.Application(middlewares=[errors, openai_errors, admitted], client_max_size=self._settings.body_bytes)
        predicted = app[PREDICTED] = set()

        def predict(path: str, handler: Handler) -> None:
            for method in ("POST", "QUERY"):
                predicted.add(route_name(app.router.add_route(method, path, handler, expect_handler=expect)))

        self._status.add_to(app)
        operated = OperatorRoutes(
            self._server,
            self._responder,
            self._operators,
            body_seconds=self._settings.body_seconds,
            deadline_seconds=self._settings.deadline_seconds,
        )
        for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            predict(f"{model}/infer", self.infer)
            operated.add_v2(app, model)
        for prefix in OPENAI:
            predict(f"{prefix}/embeddings", self.embeddings)
        TextRoutes(self.by_body, self._responder.served).add_to(app, predict)
        for model in V1_MODEL:
            predict(f"{model}:predict", self.v1_predict)
            operated.add_v1(app, model)
        if self._predictions is not None:
            self._predictions.add_to(app)
        app[KEYRING] = self._responder.keyring
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
        return await self.by_body(request, "openai")

    async def by_body(self, request: web.Request, protocol: Protocol) -> web.StreamResponse:
        """A dialect whose bodies name the model, or none. `X-Request-Id` is echoed."""
        return _echoing(request, await self._predict(request, protocol))

    async def _predict(self, request: web.Request, protocol: Protocol) -> web.StreamResponse:
        started, begun, responder = time.perf_counter(), asyncio.get_running_loop().time(), self._responder
        name = request.match_info.get("model", "")
        try:
            admit(request)
            tenant = tenant_of(request)
            if name:
                responder.find(name, request.match_info.get("version"), tenant)
            body = await read_body(request, self._settings.body_seconds)
            head = self._ask(request, protocol)
            ask = responder.traced(responder.named(head, body))
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
            echoes = not head.model and REQUEST_ID in request.headers
            if isinstance(connection, FastConnection) and not echoes:
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

    def _ask(self, request: web.Request, protocol: Protocol) -> RequestHead:
        """What the request's head asks. Raises BadRequest."""
        path = request.match_info
        return RequestHead(
            path.get("model", ""),
            path.get("version"),
            protocol,
            tenant_of(request),
            header_length(request) if protocol == "v2" else None,
            self._seconds(request),
            self._control(request),
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


def admit(request: web.Request) -> None:
    """Raises RateLimited where the caller's address asks too often."""
    if isinstance(request.protocol, Connection):
        request.protocol.admit(request)


def _echoing(request: web.Request, reply: web.StreamResponse) -> web.StreamResponse:
    """A reply with the request's own id."""
    given = request.headers.get(REQUEST_ID)
    if given is not None and len(given) <= MAX_ID_CHARACTERS and given.isascii() and given.isprintable():
        reply.headers[REQUEST_ID] = given
    return reply


@web.middleware
async def openai_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors under the routes of OpenAI's API have its form, those of other dialects theirs."""
    protocol = ERROR_FORMS.get(request.path, "openai" if request.path.startswith(_OPENAI_PATHS) else "")
    if not protocol:
        return await handler(request)
    try:
        return await handler(request)
    except Exception as error:  # noqa: BLE001 - this is the edge: what gets here is answered, logged and counted
        known = as_foreseen(error, request)
        headers, body = CODECS[protocol].error_body(known)
        return _echoing(request, web.Response(body=body, status=known.status, headers=headers))


@web.middleware
async def admitted(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Admission of every request on the public listener, but for routes that admit callers themselves and FREE ones."""
    route = route_of(request)
    if route not in request.app[PREDICTED]:
        if route not in FREE:
            admit(request)
        if not is_open(route) and not route.endswith((*OPERATED, *WATCHED)):
            tenant_of(request)
    return await handler(request)
