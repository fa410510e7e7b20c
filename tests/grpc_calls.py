"""gRPC calls of tests: a channel to a proxy, and its messages. Private descriptors, so nothing here is generated."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from aiohttp import web
from grpc import aio

from foreseen.protocol.grpc_messages import CONTENTS
from foreseen.protocol.open_inference import SERVICE, message, methods
from foreseen.proxy.grpc.server import GrpcServer
from foreseen.proxy.grpc_listener import started_grpc
from tests.foreign import Front, fronted, listening
from tests.ports import free_port


class Answer(NamedTuple):
    """How a call ended."""

    code: grpc.StatusCode
    details: str
    reply: Any
    trailers: dict[str, Any]

    @property
    def cache(self) -> str:
        return str(self.trailers.get("cache-status", ""))

    @property
    def rows(self) -> list[list[int]]:
        """Of the one INT64 output, whichever way it came."""
        import numpy as np

        raw = self.reply.raw_output_contents
        flat = np.frombuffer(raw[0], "<i8").tolist() if raw else list(self.reply.outputs[0].contents.int64_contents)
        width = self.reply.outputs[0].shape[1]
        return [flat[at : at + width] for at in range(0, len(flat), width)]


class Channel:
    """A client of one address."""

    def __init__(self, address: str, **options: Any) -> None:
        self.channel = aio.insecure_channel(address, **options)

    async def ask(self, method: str, request: Any = b"", *, seconds: float | None = None, **metadata: str) -> Answer:
        """One unary call; `request` is a message or bytes. Metadata names have `_` for `-`."""
        content = request if isinstance(request, bytes) else request.SerializeToString()
        given = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
        call = self.channel.unary_unary(f"/{SERVICE}/{method}")(content, metadata=given, timeout=seconds)
        try:
            body = await call
        except aio.AioRpcError as error:
            return Answer(error.code(), error.details() or "", None, dict(error.trailing_metadata() or ()))
        trailers = dict(await call.trailing_metadata())
        return Answer(grpc.StatusCode.OK, "", methods()[method][1].FromString(body), trailers)

    async def infer(self, *rows: Sequence[int], raw: bool = False, model: str = "fp", **metadata: Any) -> Answer:
        return await self.ask("ModelInfer", asking(*rows, raw=raw, model=model), **metadata)

    async def stream(self, requests: Iterable[Any]) -> tuple[list[Any], grpc.StatusCode]:
        """All requests at once, then all answers."""
        call = self.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(
            iter([one if isinstance(one, bytes) else one.SerializeToString() for one in requests])
        )
        kind = message("ModelStreamInferResponse")
        return [kind.FromString(one) async for one in call], await call.code()

    async def close(self) -> None:
        await self.channel.close()


def asking(*rows: Sequence[int], raw: bool = False, model: str = "fp", **more: Any) -> Any:
    """A request for rows of sixteen INT64."""
    made = message("ModelInferRequest")(model_name=model, **more)
    tensor = made.inputs.add(name="x", datatype="INT64", shape=[len(rows), 16])
    flat = [value for row in rows for value in row]
    if raw:
        made.raw_input_contents.append(b"".join(value.to_bytes(8, "little", signed=True) for value in flat))
    else:
        getattr(tensor.contents, CONTENTS["INT64"]).extend(flat)
    return made


class GrpcFront(NamedTuple):
    """A proxy with a gRPC listener, its HTTP client and its gRPC client."""

    front: Front
    server: GrpcServer
    client: Channel
    address: str


@contextlib.asynccontextmanager
async def grpc_front(data: Path, application: web.Application, **more: Any) -> AsyncIterator[GrpcFront]:
    """A proxy of this process in front of a server, asked by HTTP and by gRPC."""
    address = f"127.0.0.1:{free_port()}"
    port = int(address.rpartition(":")[2])
    async with listening(application) as upstream, fronted(upstream, data, grpc_port=port, **more) as front:
        server = await started_grpc(front.proxy)
        assert server is not None
        client = Channel(address)
        try:
            yield GrpcFront(front, server, client, address)
        finally:
            await client.close()
            await server.close(1.0)
