"""The gRPC listener of a proxy process, where `--grpc-port` asks for one. Only then grpcio is imported."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from foreseen.errors import SetupError
from foreseen.proxy.assembly import Proxy
from foreseen.web.listen import reserve

if TYPE_CHECKING:
    from foreseen.proxy.grpc.server import GrpcServer


QUIET = {"GRPC_VERBOSITY": "NONE", "GRPC_ENABLE_FORK_SUPPORT": "0"}
"""grpcio's own lines on stderr are not in the form of our log, and would name what clients send."""


async def started_grpc(proxy: Proxy) -> GrpcServer | None:
    """The listener, accepting calls; None where no port is given. Raises SetupError where the port is taken or the
    extra is missing."""
    settings = proxy.settings
    if settings.grpc_port is None:
        return None
    for name, value in QUIET.items():  # read when it is imported
        os.environ.setdefault(name, value)
    try:
        from foreseen.proxy.grpc.server import GrpcServer
        from foreseen.proxy.grpc.service import InferenceService
    except ImportError as error:
        raise SetupError(f"--grpc-port needs the extra: pip install foreseen[grpc] ({error})") from None
    if settings.fd is None:  # else the supervisor has taken the port for its workers
        reserve(settings.host, settings.grpc_port, "--grpc-port").close()
    service = InferenceService(
        proxy.served,
        proxy.responder,
        settings,
        gate=proxy.gate,
        bodies=proxy.bodies,
        is_ready=lambda: proxy.status.why_not_ready() is None,
    )
    server = GrpcServer(service, settings, proxy.gate.limits)
    await server.start()
    return server
