"""The gRPC listener of a proxy process, if `--grpc-port` is set. Only then is grpcio imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foreseen.proxy.assembly import Proxy
from foreseen.proxy.backend.grpc.quiet_import import import_grpc
from foreseen.web.listen import reserve

if TYPE_CHECKING:
    from foreseen.proxy.grpc.server import GrpcServer


async def started_grpc(proxy: Proxy) -> GrpcServer | None:
    """The listener, accepting calls; None where no port is given. Raises SetupError where the port is taken or the
    extra is missing."""
    settings = proxy.settings
    if settings.grpc_port is None:
        return None
    import_grpc("--grpc-port")
    from foreseen.proxy.grpc.server import GrpcServer
    from foreseen.proxy.grpc.service import InferenceService
    from foreseen.proxy.grpc.tickets import GrpcTickets

    if settings.fd is None:  # else the supervisor has taken the port for its workers
        reserve(settings.host, settings.grpc_port, "--grpc-port").close()
    service = InferenceService(
        proxy.served,
        proxy.responder,
        settings,
        gate=proxy.gate,
        bodies=proxy.bodies,
        is_ready=lambda: proxy.status.why_not_ready() is None,
        tickets=None if proxy.jobs is None else GrpcTickets(proxy.jobs, proxy.responder),
    )
    server = GrpcServer(service, settings, proxy.gate.limits, proxy.tls)
    await server.start()
    return server
