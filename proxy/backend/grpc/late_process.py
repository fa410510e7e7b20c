"""Creates the client of a gRPC server only if one is configured, since that imports grpcio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foreseen.proxy.backend.grpc.quiet_import import import_grpc
from foreseen.proxy.backend.upstream import UpstreamProcess
from foreseen.proxy.backend.upstream_metadata import UpstreamMetadata


def grpc_process(reported: UpstreamMetadata, addresses: Sequence[str], options: dict[str, Any]) -> UpstreamProcess:
    """A model of a gRPC server, or of several. Raises SetupError without its extra."""
    import_grpc(f"upstream {addresses[0]}")
    from foreseen.proxy.backend.grpc.grpc_upstream import GrpcProcess, ReplicatedGrpcProcess

    if len(addresses) > 1:
        return ReplicatedGrpcProcess(reported, addresses, **options)
    return GrpcProcess(reported, addresses[0], **options)
