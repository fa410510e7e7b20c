"""A V2 server of somebody else that speaks gRPC alone: honest, scripted, counting."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import numpy as np
from grpc import aio

from foreseen.protocol.open_inference import message, methods
from tests.questions import fingerprint

Change = Callable[[Any], Any]


class GrpcForeign:
    """Serves `fp`. `lie` changes a reply; `refuse` is the code that every infer ends with."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        self.seconds: list[float | None] = []
        self.lists = True
        self.lie: Change = lambda reply: reply
        self.refuse: tuple[grpc.StatusCode, str] | None = None

    def rows_like(self, row: list[int]) -> int:
        """How often a row was computed."""
        wanted = np.array(row, "<i8").tobytes()
        raws = [request.raw_input_contents[0] for request in self.requests]
        return sum(raw[at : at + 128] == wanted for raw in raws for at in range(0, len(raw), 128))

    def service(self, details: Any) -> Any:
        method = details.method.rpartition("/")[2]
        if method == "ModelInfer":
            return grpc.unary_unary_rpc_method_handler(self._infer)
        if method == "RepositoryIndex" and not self.lists:
            return None
        plain = {
            "ServerLive": {"live": True},
            "ModelReady": {"ready": True},
            "RepositoryIndex": {"models": [{"name": "fp", "state": "READY"}]},
            "ModelMetadata": {
                "name": "fp",
                "versions": ["3"],
                "inputs": [{"name": "x", "datatype": "INT64", "shape": [-1, 16]}],
                "outputs": [{"name": "digest", "datatype": "INT64", "shape": [-1, 4]}],
            },
        }
        if method not in plain:
            return None

        async def answer(body: bytes, context: Any) -> bytes:
            content: bytes = methods()[method][1](**plain[method]).SerializeToString()
            return content

        return grpc.unary_unary_rpc_method_handler(answer)

    async def _infer(self, body: bytes, context: Any) -> bytes:
        request = message("ModelInferRequest").FromString(body)
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.seconds.append(context.time_remaining())
        if self.refuse is not None:
            await context.abort(*self.refuse)
        rows = np.frombuffer(request.raw_input_contents[0], "<i8").reshape(-1, 16).tolist()
        digests = np.array([fingerprint(row) for row in rows], "<i8").reshape(-1, 4)
        reply = message("ModelInferResponse")(model_name="fp", model_version="3", id=request.id)
        reply.outputs.add(name="digest", datatype="INT64", shape=digests.shape)
        reply.raw_output_contents.append(digests.tobytes())
        content: bytes = self.lie(reply).SerializeToString()
        return content


@contextlib.asynccontextmanager
async def grpc_listening(foreign: GrpcForeign, port: int = 0) -> AsyncIterator[str]:
    """Its grpc:// address."""
    server = aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((foreign,))
    taken = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"grpc://127.0.0.1:{taken}"
    finally:
        await server.stop(None)
