"""A V2 server that speaks gRPC → its models, and a model of it as `upstream.py` has one over HTTP.

What is asked and what is made of it is the same; this file says how.
"""

from __future__ import annotations

import asyncio
from typing import Any

from foreseen.errors import BadInput, BadRequest, ModelFailed, ModelUnavailable
from foreseen.protocol.grpc_messages import parse_response, render_request
from foreseen.protocol.members import Members, RequestMembers, naming
from foreseen.protocol.wire import Response
from foreseen.proxy.backend.grpc.channel import GrpcAnswer, GrpcChannel, config_document, metadata_document
from foreseen.proxy.backend.http_pool import HttpExchangeError, HttpReply
from foreseen.proxy.backend.model import Tensors
from foreseen.proxy.backend.model_metadata import PROBE_SECONDS
from foreseen.proxy.backend.replicas.replicated import ReplicatedProcess
from foreseen.proxy.backend.upstream import UpstreamProcess
from foreseen.proxy.backend.upstream_metadata import UpstreamMetadata
from foreseen.proxy.backend.v2_server import REQUEST_SECONDS, Unusable, V2Server
from foreseen.types import RequestOptions

_TIMEOUT = "grpc-timeout"
"""Between `_asked` and `exchange`: the seconds that a call has. It is no metadata."""


class GrpcV2Server(V2Server):
    """The server at a grpc:// address, asked for its models."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._channel = GrpcChannel(address)

    async def close(self) -> None:
        await self._channel.close()

    async def listed(self) -> list[str]:
        """Its repository index. Raises Unusable."""
        asked = await self._described("RepositoryIndex")
        if asked.reply is None:
            fix = "this server does not list its models: name them, --model NAME"
            raise Unusable("lists-nothing", f"RepositoryIndex ended {asked.said}", fix)
        # MLServer says `State.READY`.
        found = [one.name for one in asked.reply.models if one.state.rpartition(".")[2] in ("", "READY")]
        if not found:
            fix = "load a model there; it is asked again every few seconds"
            raise Unusable("lists-nothing", "RepositoryIndex names no model that is ready", fix)
        return list(dict.fromkeys(found))

    async def speaks_v2(self) -> bool:
        return (await self._described("ServerLive")).reply is not None

    async def metadata(self, name: str) -> dict[str, Any]:
        asked = await self._described("ModelMetadata", name=name)
        if asked.reply is not None:
            return metadata_document(asked.reply)
        said = f"ModelMetadata of {name!r} ended {asked.said}"
        if asked.status >= 500:
            raise Unusable("unreachable", said, "see the server's log")
        fix = "check its name; a model without metadata needs a model.toml (docs/upstream.md)"
        raise Unusable("no-metadata", said, fix)

    async def config(self, name: str) -> Any:
        try:
            asked = await self._described("ModelConfig", name=name)
        except Unusable:
            return None
        return None if asked.reply is None else config_document(asked.reply)

    async def _described(self, method: str, **fields: Any) -> GrpcAnswer:
        """One question. Raises Unusable where the server cannot be reached."""
        try:
            return await self._channel.ask(method, REQUEST_SECONDS, **fields)
        except HttpExchangeError as error:
            fix = "start it, or mend --upstream; it is asked again every few seconds"
            said = f"{method} at {self._channel.address} found no gRPC server ({type(error).__name__})"
            raise Unusable("unreachable", said, fix) from None


class GrpcProcess(UpstreamProcess):
    """A model of such a server."""

    def __init__(self, reported: UpstreamMetadata, address: str, **options: Any) -> None:
        super().__init__(reported, address, **options)
        self._channel = GrpcChannel(address)

    async def close(self) -> None:
        await super().close()
        await self._channel.close()

    async def exposition(self) -> bytes:
        raise ModelUnavailable(f"model {self._model!r}: its metrics are not available over gRPC")

    async def fetch_metadata(self) -> dict[str, Any]:
        name = self._manifest.name
        ready = await self._described("ModelReady")
        if ready.reply is None or not ready.reply.ready:
            raise ModelUnavailable(f"model {name!r} is not ready: ModelReady answered {ready.said or 'false'}")
        asked = await self._described("ModelMetadata")
        if asked.reply is None and self.declared is None:
            raise ModelUnavailable(f"model {name!r}: ModelMetadata ended {asked.said}")
        return {} if asked.reply is None else metadata_document(asked.reply)

    async def fetch_config(self) -> Any:
        try:
            asked = await self._described("ModelConfig")
        except ModelUnavailable:
            return None
        return None if asked.reply is None else config_document(asked.reply)

    async def _described(self, method: str) -> GrpcAnswer:
        """One question about the model. Raises ModelUnavailable where the server cannot be reached."""
        name = self._manifest.name
        try:
            return await self._channel.ask(method, PROBE_SECONDS, name=name)
        except HttpExchangeError as error:
            why = f"{method} failed ({type(error).__name__})"
            raise ModelUnavailable(f"model {name!r} cannot be reached: {why}") from None

    async def _asked(
        self, tensors: Tensors, members: RequestMembers, options: RequestOptions, request_id: str
    ) -> Response:
        """Raw contents: every gRPC server takes them."""
        if members.outputs and self.outputs == "all":  # an entry holds all outputs, so all are asked for
            members = naming(members, [spec.name for spec in self._signature.outputs])
        _only_parameters(members)
        body = render_request(self._manifest.name, tensors, members.parameters, request_id, members)
        left = options.deadline - asyncio.get_running_loop().time()
        return await self._post(body, {_TIMEOUT: str(max(left, 0.001))}, options)

    async def exchange(self, body: bytes, headers: dict[str, str]) -> HttpReply:
        seconds = float(headers.pop(_TIMEOUT))
        return await self._channel.infer(body, seconds, headers)

    def _read(self, reply: HttpReply) -> Response:
        if reply.status != 200:
            return super()._read(reply)
        try:
            return parse_response(reply.body)
        except BadRequest as error:
            raise ModelFailed(f"model {self._model!r}: {error}") from None


class ReplicatedGrpcProcess(ReplicatedProcess, GrpcProcess):
    """A model on several such servers."""

    _replica_kind = GrpcProcess


def _only_parameters(members: RequestMembers) -> None:
    """Raises BadInput for what only JSON has a place for: the model must not answer as if it had not been asked."""
    for part, named in (("inputs", members.inputs), ("outputs", members.outputs)):
        for name, more in named.items():
            _refuse(f"{part}.{name[:64]}.", {one: value for one, value in more.items() if one != "parameters"})
    _refuse("", members.top)


def _refuse(field: str, more: Members) -> None:
    if more:
        raise BadInput(f"{field}{next(iter(more))[:64]}: the upstream speaks gRPC, which has no field for this")
