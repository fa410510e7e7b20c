"""A gRPC server in the event loop of one proxy worker: listening, health, reflection, graceful shutdown.

grpcio starts threads when it is imported, and a fork after that hangs (grpc/grpc#16001). So nothing imports this module
before its process is the one that serves. Workers share a port with SO_REUSEPORT; the kernel gives each connection to
one of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc
import structlog
from google.protobuf import descriptor_pool
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from foreseen.errors import SetupError
from foreseen.protocol.open_inference import SERVICE, pool
from foreseen.proxy.grpc.credentials import server_credentials
from foreseen.proxy.grpc.service import InferenceService
from foreseen.proxy.grpc.sockets import connections, stop_listening
from foreseen.settings import ProxySettings
from foreseen.tasks import end
from foreseen.web.limits import ListenerLimits
from foreseen.web.tls import TlsFiles

HEALTH_SECONDS = 0.5
"""Between two looks whether the health that watchers read has changed."""
LOOK_SECONDS = 0.05
"""Between two looks whether a connection is left."""
AGE_SHARE = 0.75
"""A connection is closed in good order when it is as old as this share of `--drain-seconds`: then those of a process
that drains end in time. It also spreads clients over workers anew."""
ENVELOPE_BYTES = 64 * 1024
"""What a message may have beside the tensors of a body of `--body-bytes`."""
STREAMS = 1024
"""Calls of one connection at a time; a client holds back more."""
CALLS = 8192
"""Calls of one process at a time; more are refused with RESOURCE_EXHAUSTED."""

log = structlog.get_logger()


class GrpcServer:
    """The gRPC listener of one proxy process."""

    def __init__(
        self, service: InferenceService, settings: ProxySettings, limits: ListenerLimits, tls: TlsFiles | None = None
    ) -> None:
        self._service = service
        self._settings, self._tls = settings, tls
        self._health = health.aio.HealthServicer()
        self._watch: asyncio.Task[None] | None = None
        self._port = 0
        self._server = aio.server(
            options=_options(settings, limits),
            maximum_concurrent_rpcs=CALLS,
            compression=grpc.Compression.NoCompression,
        )
        self._server.add_generic_rpc_handlers((service.handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server, pool=_Pools())

    async def start(self) -> int:
        """Listen; the port. Raises SetupError naming the port where it is taken."""
        settings = self._settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            credentials = server_credentials(settings, self._tls)
            place = f"{host}:{settings.grpc_port}"
            if credentials is None:
                port = self._server.add_insecure_port(place)
            else:
                port = self._server.add_secure_port(place, credentials)
        except RuntimeError:
            port = 0
        if not port:
            raise SetupError(f"cannot listen on {host}:{settings.grpc_port}; choose another with --grpc-port")
        await self._tell_health()
        await self._server.start()
        self._watch = asyncio.create_task(self._follow())
        self._port = int(port)
        return self._port

    async def drain(self, idle_seconds: float, busy_seconds: float) -> None:
        """Take no new connection, and end when those that are open have reached their age and every call is answered.
        Streams end after `idle_seconds`; what is under way then has `busy_seconds` more."""
        await self._health.enter_graceful_shutdown()
        stop_listening(self._port)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(idle_seconds):
                while connections(self._port):  # noqa: ASYNC110 - grpcio does not say
                    await asyncio.sleep(LOOK_SECONDS)
        self._service.ending.set()
        await self._server.stop(busy_seconds)

    async def close(self, seconds: float) -> None:
        """End calls that are under way after so long, and every connection."""
        self._service.ending.set()
        if self._watch is not None:
            await end(self._watch)
        await self._server.stop(seconds)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_SECONDS)
            with contextlib.suppress(RuntimeError):
                await self._tell_health()

    async def _tell_health(self) -> None:
        serving = health_pb2.HealthCheckResponse.ServingStatus
        status = serving.SERVING if self._service.is_ready() else serving.NOT_SERVING
        for name in (health.OVERALL_HEALTH, SERVICE):
            await self._health.set(name, status)


def _options(settings: ProxySettings, limits: ListenerLimits) -> list[tuple[str, int]]:
    """Limits as over HTTP, as far as grpcio has them."""
    return [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", settings.body_bytes + ENVELOPE_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", limits.head_bytes),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.max_concurrent_streams", STREAMS),
        ("grpc.max_connection_age_ms", int(1000 * AGE_SHARE * settings.drain_seconds) or 2**31 - 1),
        ("grpc.max_connection_idle_ms", int(1000 * settings.keepalive_seconds)),
        ("grpc.server_handshake_timeout_ms", int(1000 * limits.head_seconds)),
    ]


class _Pools:
    """Our descriptors and those of grpcio's own services, for reflection."""

    def __getattr__(self, name: str) -> Any:
        def find(*what: Any) -> Any:
            try:
                return getattr(pool(), name)(*what)
            except KeyError:
                return getattr(descriptor_pool.Default(), name)(*what)

        return find
