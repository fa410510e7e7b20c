"""A channel to a V2 server that speaks gRPC: one call → its reply, or the corresponding HTTP status.

Only `--upstream grpc://` imports this module, and grpcio with it: see `proxy/grpc/server.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import grpc
import orjson
from grpc import aio

from foreseen.protocol.open_inference import SERVICE, methods
from foreseen.proxy.backend.http_pool import Broken, HttpReply, NotReached, Unreadable

SCHEME = "grpc://"
STATUSES: Mapping[str, int] = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
"""By the code that a server ends a call with; every other one is 500."""
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_retries", 0),  # what is repeated is decided in one place, `retry_budget.py`
    ("grpc.use_local_subchannel_pool", 1),
]
_NO_CONNECTION = re.compile(r"failed to connect|DNS|onnection refused|empty address list|Cancelling all calls")
_BROKEN = re.compile(r"Socket closed|onnection reset|Stream removed|roken pipe|GOAWAY|ransport closed|Endpoint clos")
"""What grpcio says of UNAVAILABLE where no server has said it. (It has no other sign of that.) The last of the first is
the end of a server that was stopped."""


class GrpcAnswer(NamedTuple):
    """The reply to a question about the server or a model."""

    status: int
    reply: Any
    """A message, None unless the status is 200."""
    said: str


class GrpcChannel:
    """The connection to one server. Closed by its last user."""

    def __init__(self, address: str) -> None:
        self.address = address.removeprefix(SCHEME).rstrip("/")
        self._channel = aio.insecure_channel(self.address, options=_OPTIONS)
        self._infer = self._channel.unary_unary(f"/{SERVICE}/ModelInfer")

    async def close(self) -> None:
        await self._channel.close()

    async def infer(self, body: bytes, seconds: float | None, metadata: Mapping[str, str]) -> HttpReply:
        """One `ModelInfer`. An error that the server sent has the form of an HTTP reply. Raises NotReached, Broken,
        Unreadable."""
        try:
            content: bytes = await self._infer(body, timeout=seconds, metadata=tuple(metadata.items()))
        except aio.AioRpcError as error:
            return _refused(error)
        return HttpReply(200, {}, content)

    async def ask(self, method: str, seconds: float, **fields: Any) -> GrpcAnswer:
        """One question about the server or a model. Raises NotReached, Broken."""
        kind, reply = methods()[method]
        call = self._channel.unary_unary(
            f"/{SERVICE}/{method}", request_serializer=kind.SerializeToString, response_deserializer=reply.FromString
        )
        try:
            return GrpcAnswer(200, await call(kind(**fields), timeout=seconds), "")
        except aio.AioRpcError as error:
            refused = _refused(error)
            return GrpcAnswer(refused.status, None, f"{error.code().name} {str(error.details())[:200]!r}")


def metadata_document(reply: Any) -> dict[str, Any]:
    """A `ModelMetadataResponse` as the JSON document of V2."""
    return {
        "name": reply.name,
        "versions": list(reply.versions),
        "platform": reply.platform,
        "inputs": [_tensor(one) for one in reply.inputs],
        "outputs": [_tensor(one) for one in reply.outputs],
    }


def config_document(reply: Any) -> dict[str, Any]:
    """What a `ModelConfigResponse` says of inputs, as Triton's JSON has it."""
    return {"input": [{"name": one.name, "optional": one.optional} for one in reply.config.input]}


def _tensor(one: Any) -> dict[str, Any]:
    return {"name": one.name, "datatype": one.datatype, "shape": list(one.shape)}


def _refused(error: aio.AioRpcError) -> HttpReply:
    """The reply that a call's end stands for. Raises NotReached, Broken, Unreadable where no server said it."""
    code, details = error.code(), error.details() or ""
    status = STATUSES.get(code.name, 500)
    if code is grpc.StatusCode.UNAVAILABLE and _NO_CONNECTION.search(details):
        raise NotReached
    if code is grpc.StatusCode.UNAVAILABLE and _BROKEN.search(details):
        raise Broken
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        status = 413
    if code is grpc.StatusCode.INTERNAL and "deserializ" in details:
        raise Unreadable
    return HttpReply(status, _headers(error), orjson.dumps({"error": details}))


def _headers(error: aio.AioRpcError) -> dict[str, str]:
    trailers = error.trailing_metadata() or ()
    return {name: value for name, value in trailers if name == "retry-after" and isinstance(value, str)}
