"""The candidate of a model: another process or server that may replace it. Shadow traffic and canaries use it.

It gets the rows of the model in force as they are. So a process of Foreseen has to prepare its inputs the same way, and
a server's model has to take the same tensors; one that does not is not ready and says why in the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import structlog
from msgspec import Struct

from foreseen.errors import SetupError
from foreseen.modelspec.manifest import UPSTREAM_SCHEMES
from foreseen.modelspec.manifest.policy import Freshness
from foreseen.proxy.backend.discovery import upstream_at
from foreseen.proxy.backend.model import ModelProcess
from foreseen.proxy.backend.served import ServedModel, id_key_of
from foreseen.proxy.backend.text_servers.text_server import served_name
from foreseen.settings import ProxySettings

log = structlog.get_logger()

NO_DEFAULTS = Freshness()


class CandidateAddress(Struct, frozen=True):
    """`MODEL=ADDRESS`, or an address alone."""

    model: str | None
    """The model that it is a candidate of."""
    address: str


def address_of(text: str) -> CandidateAddress:
    """Raises SetupError."""
    head, equals, tail = text.partition("=")
    model, address = (head, tail) if equals and "/" not in head else (None, text)
    if not address.startswith(("unix:/", *UPSTREAM_SCHEMES)):
        raise SetupError(f"--candidate {text}: give [MODEL=]unix:/path, http://host:port or grpc://host:port")
    return CandidateAddress(model, address)


def candidate_of(
    settings: ProxySettings, served: Mapping[str, ServedModel], defaults: Freshness = NO_DEFAULTS
) -> ProcessCandidate | ServerCandidate | None:
    """The candidate of the settings, not asked for anything yet; None where there is none. `defaults` is the freshness
    of manifests that say nothing of it. Raises SetupError."""
    if settings.candidate is None:
        return None
    given = address_of(settings.candidate)
    model = given.model or next(iter(served), None)
    if model is None or (given.model is None and len(served) > 1):
        raise SetupError(f"--candidate {given.address}: say of which model it is one, as MODEL={given.address}")
    live = served.get(model)
    if live is not None and live.ours:
        return ProcessCandidate(model, live, given.address, settings)
    if not settings.upstream and live is None:
        raise SetupError(f"--candidate {model}=…: no such model is served here; there is {', '.join(sorted(served))}")
    return ServerCandidate(model, served, given.address, settings, defaults)


class ProcessCandidate:
    """Another process of a model of ours."""

    def __init__(self, model: str, live: ServedModel, address: str, settings: ProxySettings) -> None:
        self.model = model
        process = ModelProcess(live.manifest, address, quarantine_seconds=settings.quarantine_seconds)
        own = ServedModel(live.manifest, process, settings.data, live.freshness, id_key_of(settings))
        self.served: ServedModel | None = own

    async def follow(self) -> None:
        assert self.served is not None
        await self.served.watch()

    async def close(self) -> None:
        assert self.served is not None
        await self.served.process.close()


class ServerCandidate:
    """A model of another server, of whatever protocol. The key of the upstream in force is not sent to it."""

    def __init__(
        self, model: str, served: Mapping[str, ServedModel], address: str, settings: ProxySettings,
        defaults: Freshness,
    ) -> None:  # fmt: skip
        name = settings.candidate_model or model
        asked = replace(
            settings,
            upstream=(address,),
            model=(name,),
            upstream_key_file=settings.candidate_key_file,
            upstream_pass_authorization=False,
            upstream_digest=settings.candidate_digest,
        )
        self.model = model
        self._live, self._name, self._refused = served, served_name(name), False
        self._upstream = upstream_at(asked, defaults)

    @property
    def found(self) -> Mapping[str, ServedModel]:
        """What its server has of it, whatever that takes."""
        return self._upstream.served

    @property
    def served(self) -> ServedModel | None:
        """None also where it takes or gives other tensors than the model in force; and where the probe of one of them
        has not ended yet, or rows of one are independent and of the other are not: then their rows differ."""
        found, live = self.found.get(self._name), self._live.get(self.model)
        if found is None or live is None:
            return found
        if found.manifest.model == live.manifest.model:
            return found if found.manifest.rows == live.manifest.rows else None
        if not self._refused:
            self._refused = True
            log.error("candidate: its inputs or outputs differ from the model in force", model=self.model)
        return None

    async def follow(self) -> None:
        await self._upstream.find()
        await self._upstream.follow()

    async def close(self) -> None:
        await self._upstream.close()
        for one in self.found.values():
            await one.process.close()
