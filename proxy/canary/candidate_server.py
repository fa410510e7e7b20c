"""The candidate's own pipeline, answer cache and server, beside those of the model in force."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.cache.lease import Leases
from foreseen.proxy.canary.candidate import ProcessCandidate, ServerCandidate
from foreseen.proxy.predict.answer_cache import AnswerCache
from foreseen.proxy.predict.observe import Observer
from foreseen.proxy.predict.pipeline import Pipeline
from foreseen.proxy.predict.serve import Server
from foreseen.settings import ProxySettings

REPLY_CACHE_PARTS = 4
"""The candidate's answer cache is a part in so many of `--reply-cache-bytes`, beside it."""


class WithCandidate(Mapping[str, ServedModel]):
    """The models of a process, with the candidate in the place of its model once it has been found."""

    def __init__(self, served: Mapping[str, ServedModel], candidate: ProcessCandidate | ServerCandidate) -> None:
        self._served, self._candidate = served, candidate

    def __getitem__(self, name: str) -> ServedModel:
        live = self._served[name]
        return (self._candidate.served or live) if name == self._candidate.model else live

    def __iter__(self) -> Iterator[str]:
        return iter(self._served)

    def __len__(self) -> int:
        return len(self._served)


def candidate_server(
    settings: ProxySettings, live: Server, served: Mapping[str, ServedModel], leases: Leases
) -> tuple[Server, AnswerCache]:
    """`served` has the candidate. Tiers, tenants, counts and purges are those of the live server."""
    pipeline = Pipeline(
        live.pipeline.tiers,
        served,
        live.metrics,
        settings.waiting_rows,
        settings.miss_rows,
        leases,
        live.pipeline.tenants,
    )
    cache = AnswerCache(
        settings.reply_cache_bytes // REPLY_CACHE_PARTS, live.pipeline.tiers.near, served, live.purges
    )  # fmt: skip
    server = Server(
        pipeline,
        Observer(pipeline, live.metrics),
        live.metrics,
        cache,
        live.counter,
        observed=live.observed,
        server_timing=live.server_timing,
        purges=live.purges,
        heavy=live.heavy,
    )
    return server, cache
