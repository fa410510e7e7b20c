"""Detects which API an upstream server speaks: V2, text-embeddings-inference's or OpenAI's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from foreseen.proxy.backend.grpc.quiet_import import import_grpc
from foreseen.proxy.backend.text_servers.openai_upstream import OpenAIApi
from foreseen.proxy.backend.text_servers.tei_upstream import TeiApi
from foreseen.proxy.backend.text_servers.text_server import Task, TextApi, TextServer
from foreseen.proxy.backend.upstream_access import UpstreamAccess
from foreseen.proxy.backend.v2_server import Unusable, V2Server

GRPC = "grpc://"


def grpc_server_at(address: str) -> V2Server:
    """The V2 server at a grpc:// address; grpcio is imported now. Raises SetupError without its extra."""
    import_grpc(f"upstream {address}")
    from foreseen.proxy.backend.grpc.grpc_upstream import GrpcV2Server

    return GrpcV2Server(address)


async def server_at(
    address: str,
    api: Literal["auto", "v2", "openai", "tei"],
    access: UpstreamAccess,
    kind: Task | None = None,
    names: Sequence[str] = (),
) -> V2Server:
    """The server at an address; one at grpc:// speaks V2. With `auto` another is asked `/v2`, `/info`,
    `/v1/models`, `/models`. One that answers none of them is taken for a V2 server, which then says what is wrong.
    `kind` is what the operator says that it does, `names` its models. Raises Unusable where it cannot be reached."""
    if address.startswith(GRPC):
        return grpc_server_at(address)
    listed = names if api == "openai" else ()
    apis: dict[str, TextApi] = {"tei": TeiApi(kind=kind), "openai": OpenAIApi(kind=kind, names=listed)}
    if api in apis:
        return TextServer(address, apis[api], access)
    server = V2Server(address, access)
    try:
        if api == "v2" or await server.speaks_v2():
            return server
        for one in apis.values():
            candidate = TextServer(address, one, access)
            try:
                await candidate.listed()
            except Unusable as error:
                if error.problem in ("not-v2", "credentials", "unreachable") and not candidate.found:
                    await candidate.close()
                    continue
            await server.close()
            return candidate
    except BaseException:
        await server.close()
        raise
    return server
