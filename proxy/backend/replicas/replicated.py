"""A model on several V2 servers, replicas of one another: one model, one probe, one version.

Each request goes to one of them. A replica is an `UpstreamProcess` of which only the exchanges are used. What replies
mean, and how rows are keyed, the model as a whole decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foreseen.errors import ModelUnavailable, SetupError
from foreseen.proxy.backend.http_pool import HttpReply
from foreseen.proxy.backend.model_metadata import PROBE_SECONDS
from foreseen.proxy.backend.replicas.replicas import Replicas
from foreseen.proxy.backend.upstream import UpstreamProcess
from foreseen.proxy.backend.upstream_metadata import UpstreamMetadata


class V2Replica:
    """One of the servers."""

    def __init__(self, address: str, process: UpstreamProcess) -> None:
        self.address = address
        self._process = process

    async def metadata(self, name: str) -> dict[str, Any]:
        return await self._process.fetch_metadata()

    async def config(self) -> Any:
        return await self._process.fetch_config()

    async def exchange(self, body: bytes, headers: dict[str, str]) -> HttpReply:
        return await self._process.exchange(body, headers)

    async def close(self) -> None:
        await self._process.close()


class ReplicatedProcess(UpstreamProcess):
    """A model on several servers that speak HTTP."""

    _replica_kind: type[UpstreamProcess] = UpstreamProcess

    def __init__(self, reported: UpstreamMetadata, addresses: Sequence[str], **options: Any) -> None:
        """`options` are those of `UpstreamProcess`."""
        super().__init__(reported, addresses[0], **options)
        unprobed = {**options, "probe": False}
        replicas = [V2Replica(one, self._replica_kind(reported, one, **unprobed)) for one in addresses]
        self._replicas = Replicas(replicas)
        self._answered = replicas[0]

    @property
    def left_out(self) -> list[str]:
        """The addresses of those that are not asked now."""
        return self._replicas.left_out

    async def close(self) -> None:
        await self._replicas.close()
        await super().close()

    async def fetch_metadata(self) -> dict[str, Any]:
        try:
            metadata, self._answered = await self._replicas.metadata(self._manifest.name, 2 * PROBE_SECONDS)
        except SetupError as error:
            raise ModelUnavailable(f"model {self._manifest.name!r} is not ready: {error}") from None
        return metadata

    async def fetch_config(self) -> Any:
        return await self._answered.config()

    async def exchange(self, body: bytes, headers: dict[str, str]) -> HttpReply:
        return await self._replicas.exchange(lambda server: server.exchange(body, dict(headers)))
