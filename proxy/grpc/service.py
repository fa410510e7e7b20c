"""`inference.GRPCInferenceService`: its methods → the same way as over HTTP. Messages are bytes here.

`ModelInfer` is decoded by a codec like any other dialect (`predict/dialects`); this file knows calls and their ends.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from importlib.metadata import version as installed_version
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from grpc import aio

from foreseen.errors import ForeseenError, NotPermitted, Unauthorized, UnknownModel
from foreseen.protocol import grpc_messages as messages
from foreseen.protocol.open_inference import SERVICE, methods
from foreseen.proxy import describe
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.fastpath.responder import Responder
from foreseen.proxy.grpc.call import (
    CallMetadata,
    address_in_peer,
    caller_of,
    head_of,
    is_plain,
    plain_caller,
    read_metadata,
    traceparent_of,
)
from foreseen.proxy.grpc.credentials import peer_subject
from foreseen.proxy.grpc.status import Metadata, Status, status_of, trailers_of
from foreseen.proxy.grpc.tickets import GrpcTickets
from foreseen.proxy.predict.answer_cache import MAX_REQUEST_BYTES
from foreseen.proxy.predict.dialects.codecs import CODECS
from foreseen.proxy.predict.response_bytes import Reply, lines_of
from foreseen.settings import ProxySettings
from foreseen.tenants.audit import audit_refusal
from foreseen.tenants.tenant import PUBLIC_TENANT, Tenant
from foreseen.web.bodies import FREE_BYTES, Bodies, Charge
from foreseen.web.http import internal
from foreseen.web.limits import Gate

STREAM_WINDOW = 32
"""Requests of one stream that are under way at a time; more are not read until one is answered."""

ANSWERED = (200, 202)
"""Statuses of replies that are answers, or tickets for them."""
FREE = ("ServerLive", "ServerReady")
"""Methods that no rate limits, as over HTTP: those who ask them watch over the rest."""

OPEN = (*FREE, "ModelReady")
"""Methods that need no key, as over HTTP."""

Context = Any
"""A call, as grpcio's servicer gets it."""
Handler = Callable[[bytes, Context], Awaitable[bytes]]


class InferenceService:
    """The methods of one proxy process."""

    def __init__(
        self,
        served: Mapping[str, ServedModel],
        responder: Responder,
        settings: ProxySettings,
        *,
        gate: Gate,
        bodies: Bodies,
        is_ready: Callable[[], bool],
        tickets: GrpcTickets | None = None,
    ) -> None:
        self._served = served
        self._responder = responder
        self._settings = settings
        self._gate = gate
        self._bodies = bodies
        self._tickets = tickets
        self._mark = secrets.token_bytes(16)
        """Before the bytes of calls in the answer cache: what a client sends over HTTP cannot begin so."""
        self.is_ready = is_ready
        self.ending = asyncio.Event()
        """From now on streams end when what they have asked is answered."""

    async def infer(self, body: bytes, context: Context) -> bytes:
        """One request, one answer."""
        given, peer = context.invocation_metadata(), context.peer()
        raw = self._whole(given, body)
        reply = None if raw is None else self._responder.repeat(raw, plain_caller(peer))
        if not isinstance(reply, Reply):
            subject = peer_subject(context) if self._responder.keyring.certified else None
            call = read_metadata(given, peer, context.time_remaining(), subject)
            reply = await self._answered(body, call, "ModelInfer", raw)
            if reply.status not in ANSWERED:
                await _abort(context, status_of(reply))
        context.set_trailing_metadata(trailers_of(reply.lines))
        return reply.body

    def _whole(self, given: Metadata, body: bytes) -> bytes | None:
        """The bytes of a call that may be known as a whole: short, and nothing but its message decides what it gets."""
        keyring, rate = self._responder.keyring, self._gate.limits.rate
        if rate or keyring.certified or not keyring.is_open or len(body) > MAX_REQUEST_BYTES or not is_plain(given):
            return None
        return self._mark + body

    async def stream(self, _: Any, context: Context) -> None:
        """One answer for each request, in the order of the requests; an error ends its request, not the stream."""
        call = read_metadata(context.invocation_metadata(), context.peer(), None, peer_subject(context))
        window: asyncio.Queue[tuple[bytes, asyncio.Task[Reply]] | None] = asyncio.Queue(STREAM_WINDOW)
        reading = asyncio.create_task(self._read_stream(context, call, window))
        try:
            while (begun := await window.get()) is not None:
                body, task = begun
                reply = await task
                answer = (
                    messages.stream_response(reply.body) if reply.status in ANSWERED else _stream_error(body, reply)
                )
                await context.write(answer)
            ended = await reading
        finally:
            reading.cancel()
            while not window.empty():
                left = window.get_nowait()
                if left is not None:
                    left[1].cancel()
        if ended is not None:
            await _abort(context, ended)

    async def _read_stream(self, context: Context, call: CallMetadata, window: asyncio.Queue[Any]) -> Status | None:
        """Begin each request of a stream as it comes; why the stream has to end, None where its client ended it."""
        ending = asyncio.create_task(self.ending.wait())
        try:
            while True:
                reading = asyncio.ensure_future(context.read())
                try:
                    await asyncio.wait((reading, ending), return_when=asyncio.FIRST_COMPLETED)
                    if not reading.done():
                        return Status("UNAVAILABLE", "this process ends; open another stream", ())
                finally:
                    reading.cancel()
                body = reading.result()
                if body is aio.EOF:
                    return None
                answering = asyncio.create_task(self._answered(body, call, "ModelStreamInfer"))
                await window.put((body, answering))
        finally:
            ending.cancel()
            await window.put(None)

    async def _answered(self, body: bytes, call: CallMetadata, method: str, raw: bytes | None = None) -> Reply:
        """The reply to one message, counted and logged, whatever becomes of it."""
        started, charge, responder = time.perf_counter(), None, self._responder
        model, caller = "", caller_of(call, method, self._settings.forwarded_hops)
        try:
            model, version, *_ = messages.read_head(body)
            self.admit(call)
            head = responder.traced(head_of(call, self._settings, self.tenant_of(call), model, version, caller))
            if len(body) > FREE_BYTES:
                charge = Charge(self._bodies)
                charge.grow(len(body))
            if self._tickets is None or "prefer" not in call.values:
                return await responder.answer(head, body, raw=raw)
            return await self._tickets.submit(head, body, call) or await responder.answer(head, body)
        except Exception as error:  # noqa: BLE001 - every error becomes a reply
            return responder.failed(model, "grpc", error, started, traceparent_of(call), caller)
        finally:
            if charge is not None:
                charge.release()

    def admit(self, call: CallMetadata) -> None:
        """Raises RateLimited where the caller's address asks too often."""
        if self._gate.limits.rate:
            address = address_in_peer(call.peer)
            self._gate.admit(self._gate.bucket(address))

    def tenant_of(self, call: CallMetadata) -> Tenant:
        """The tenant of a call, or of a message of a stream: keys may be revoked meanwhile. Raises Unauthorized."""
        try:
            return self._responder.keyring.authenticate(call.credentials, call.subject)
        except Unauthorized as error:
            audit_refusal("call", address_in_peer(call.peer), str(error))
            raise

    # What else there is to ask. Requests and replies are messages.

    async def ServerLive(self, request: Any, reply: Any, tenant: Tenant) -> Any:  # noqa: N802 - the protocol's name, as below
        return reply(live=True)

    async def ServerReady(self, request: Any, reply: Any, tenant: Tenant) -> Any:  # noqa: N802
        return reply(ready=self.is_ready())

    async def ServerMetadata(self, request: Any, reply: Any, tenant: Tenant) -> Any:  # noqa: N802
        return reply(name="foreseen", version=installed_version("foreseen"), extensions=describe.EXTENSIONS)

    async def ModelReady(self, request: Any, reply: Any, tenant: Tenant) -> Any:  # noqa: N802
        """An unknown model is not ready, as Triton answers it."""
        try:
            return reply(ready=self._find(request, tenant).ready)
        except UnknownModel:
            return reply(ready=False)

    async def ModelMetadata(self, request: Any, reply: Any, tenant: Tenant) -> Any:  # noqa: N802
        return _filled(reply, describe.metadata(self._find(request, tenant)))

    async def ModelConfig(self, request: Any, reply: Any, tenant: Tenant) -> Any:  # noqa: N802
        return _filled(reply, {"config": describe.config(self._find(request, tenant))})

    async def ModelStatistics(self, request: Any, reply: Any, tenant: Tenant) -> Any:  # noqa: N802
        if not (self._responder.keyring.is_open or self._settings.metrics_open):
            raise NotPermitted("statistics cover all tenants: read them over HTTP with an operator's key")
        models = [self._find(request, tenant)] if request.name else self._allowed(tenant)
        return _filled(reply, {"model_stats": [describe.statistics(one) for one in models]})

    async def RepositoryIndex(self, request: Any, reply: Any, tenant: Tenant) -> Any:  # noqa: N802
        models = [one for one in self._allowed(tenant) if one.ready or not request.ready]
        return _filled(reply, {"models": [describe.repository_entry(one) for one in models]})

    def _find(self, request: Any, tenant: Tenant) -> ServedModel:
        return self._responder.find(request.name, request.version or None, tenant)

    def _allowed(self, tenant: Tenant) -> list[ServedModel]:
        return [served for name, served in self._served.items() if tenant.may_use(name)]

    def handlers(self) -> _Handlers:
        return _Handlers(self)


class _Handlers:
    """The service's methods by their names; one of the protocol's that is left out says so."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service
        self._methods: dict[str, Any] = {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(service.infer),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(service.stream),
        }
        for name in methods().keys() - self._methods.keys():
            self._methods[name] = grpc.unary_unary_rpc_method_handler(self._asking(name))

    def service(self, details: Any) -> Any:
        """The handler of a call; None where another service may have it."""
        name, _, method = details.method.lstrip("/").partition("/")
        if name != SERVICE:
            return None
        return self._methods.get(method) or grpc.unary_unary_rpc_method_handler(partial(_unsupported, method[:64]))

    def _asking(self, name: str) -> Handler:
        request, reply = methods()[name]
        method = getattr(self._service, name)

        async def ask(body: bytes, context: Context) -> bytes:
            try:
                call, tenant = _metadata(context), PUBLIC_TENANT
                if name not in FREE:
                    self._service.admit(call)
                if name not in OPEN:
                    tenant = self._service.tenant_of(call)
                message = await method(messages.read_message(request, body), reply, tenant)
                content: bytes = message.SerializeToString()
            except Exception as error:  # noqa: BLE001 - every error becomes a status
                await _abort(context, status_of(_refusal(error, name)))
            return content

        return ask


def _refusal(error: Exception, method: str) -> Reply:
    """The reply of an error that is not of a prediction, and so not counted as one."""
    known = error if isinstance(error, ForeseenError) else internal(error, f"/{SERVICE}/{method}")
    headers, body = CODECS["grpc"].error_body(known)
    return Reply(known.status, lines_of(headers.items()), body)


def _metadata(context: Context) -> CallMetadata:
    return read_metadata(context.invocation_metadata(), context.peer(), None, peer_subject(context))


async def _unsupported(method: str, body: bytes, context: Context) -> bytes:
    text = f"{method}: Foreseen does not load models by request, and has no shared memory, traces or log settings"
    await _abort(context, Status("UNIMPLEMENTED", text, ()))
    return b""


async def _abort(context: Context, status: Status) -> None:
    """End a call without an answer. Raises."""
    await context.abort(getattr(grpc.StatusCode, status.code), status.message, status.trailers)


def _stream_error(body: bytes, reply: Reply) -> bytes:
    """An answer of a stream that says why there is none."""
    try:
        model, _, own, _ = messages.read_head(body)
    except ForeseenError:
        model, own = "", None
    request_id = "" if own is None else own.decode(errors="replace")
    return messages.stream_error(status_of(reply).message, model, request_id)


def _filled(reply: Any, document: dict[str, Any]) -> Any:
    """A message of a V2 document; members that it has no field for are left out."""
    return ParseDict(document, reply(), ignore_unknown_fields=True)
