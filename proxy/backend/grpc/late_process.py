"""The process that asks a gRPC server, made where there is one: grpcio is imported then."""

from __future__ import annotations

from typing import Any

from foreseen.proxy.backend.grpc.quiet_import import import_grpc
from foreseen.proxy.backend.upstream import UpstreamProcess
from foreseen.proxy.backend.upstream_metadata import UpstreamMetadata


def grpc_process(reported: UpstreamMetadata, address: str, options: dict[str, Any]) -> UpstreamProcess:
    """A model of a gRPC server. Raises SetupError without its extra."""
    import_grpc(f"upstream {address}")
    from foreseen.proxy.backend.grpc.grpc_upstream import GrpcProcess

    return GrpcProcess(reported, address, **options)
