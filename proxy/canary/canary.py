"""A canary: the candidate answers chosen callers, in a key space of its own; the model in force answers all others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foreseen.errors import SetupError
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.cache.lease import Leases
from foreseen.proxy.canary.canary_responder import CanaryResponder
from foreseen.proxy.canary.canary_share import CanaryShare
from foreseen.proxy.canary.candidate import ProcessCandidate, ServerCandidate, address_of
from foreseen.proxy.canary.candidate_server import WithCandidate, candidate_server
from foreseen.proxy.fastpath.responder import Responder
from foreseen.proxy.predict.serve import Server
from foreseen.settings import ProxySettings
from foreseen.stores.owned import OwnedEntries
from foreseen.units import share_of


class Canary:
    """The canary of one proxy process."""

    def __init__(
        self, settings: ProxySettings, candidate: ProcessCandidate | ServerCandidate, live: Server,
        served: Mapping[str, ServedModel], far: OwnedEntries | None,
    ) -> None:  # fmt: skip
        """Raises SetupError. `served` are the models in force."""
        try:
            given = share_of(settings.canary or "0")
        except ValueError as error:
            raise SetupError(f"--canary: {error}") from None
        metrics = live.metrics
        self.address = address_of(settings.candidate or "").address
        self.share = CanaryShare(candidate.model, settings.candidate or "", given, settings.data, metrics)
        self._models = WithCandidate(served, candidate)
        leases = Leases(far, metrics, settings.lease_ms / 1000)
        self.server, self._cache = candidate_server(settings, live, self._models, leases)
        self.pipeline = self.server.pipeline

    def responder(self, **parts: Any) -> Responder:
        """The responder of the process; `parts` are those of every responder."""
        own = {**parts, "served": self._models, "server": self.server, "cache": self._cache}
        return CanaryResponder(Responder(**own), self.share, self.server.metrics, **parts)


def canary_of(
    settings: ProxySettings, candidate: ProcessCandidate | ServerCandidate | None, live: Server,
    served: Mapping[str, ServedModel], far: OwnedEntries | None,
) -> Canary | None:  # fmt: skip
    """None where none is asked for. Raises SetupError."""
    if settings.canary is None:
        return None
    if candidate is None:
        raise SetupError("--canary: needs --candidate")
    return Canary(settings, candidate, live, served, far)
