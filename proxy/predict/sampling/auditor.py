"""The audit of hits: rows that a cache answered are computed again in the background, and compared.

draw      rows of hits, uniformly (`row_sampler.py`)
compute   one row at a time, in the background lane, by the model in force
compare   bit for bit, or within what the model declares (`same_answer.py`)
remove    an entry that differs goes from every near and from far, and its key is logged
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Protocol

import orjson
import structlog

from foreseen.errors import FarError, ForeseenError
from foreseen.proxy.predict.sampling.draws import DistinctKeys, Draws, RowBudget
from foreseen.proxy.predict.sampling.row_sampler import Drawn, RowSampler
from foreseen.proxy.predict.sampling.same_answer import same_answer
from foreseen.proxy.predict.serve import Server
from foreseen.telemetry.metrics import AUDIT_OUTCOMES, ProxyMetrics
from foreseen.types import Key, Prediction, Question, RequestOptions, Space

log = structlog.get_logger()

COMPUTE_SECONDS = 30.0
REPEATS = 2
"""So often a row is computed again once its cached answer differs: a model that differs from itself says nothing of it.
"""
PURGE_SECONDS = 5.0
KEY_DIGITS = 16
DIFFERENCES_FILE, DIFFERENCES_BYTES = "audit-differences.jsonl", 256 * 1024


class EntryRemover(Protocol):
    """Removes entries from all proxies."""

    async def purge(self, kind: Literal["key"], what: str, seconds: float) -> object: ...


class Auditor(RowSampler):
    """Audits the hits of one proxy process."""

    sources = frozenset(("near", "far"))

    def __init__(self, metrics: ProxyMetrics, draws: Draws, budget: RowBudget, data: Path | None = None) -> None:
        """Differences are noted in a file under `data`, for `foreseen audit`."""
        super().__init__("audit", metrics.audited, draws, budget)
        self._metrics, self._data = metrics, data
        self._distinct: dict[str, DistinctKeys] = {}
        self._remover: EntryRemover

    async def audit(self, server: Server, remover: EntryRemover, models: Iterable[str] = ()) -> None:
        """Audit what is drawn, for ever."""
        self._remover = remover
        await self.follow(server, tuple(models))

    def expect(self, model: str) -> None:
        if model in self._distinct:
            return
        self._distinct[model] = DistinctKeys()
        for outcome in AUDIT_OUTCOMES:
            self._metrics.audited.labels(model, outcome)
        self._metrics.audit_distinct.labels(model)
        self._metrics.audit_unrepeatable.labels(model)

    async def outcome(self, drawn: Drawn) -> str:
        """Compute and compare one row. Raises what the model raises."""
        served, space, key = drawn.served, drawn.space, drawn.key
        if not self._server.in_force(served, space):
            return "not-comparable"
        fresh = await self._computed(drawn)
        if fresh.digest != space.digest:
            return "not-comparable"
        distinct = self._distinct[space.model]
        distinct.add(key)
        self._metrics.audit_distinct.labels(space.model).set(distinct.count)
        if same_answer(served, drawn.answered, fresh):
            return "equal"
        for _ in range(REPEATS):
            again = await self._computed(drawn)
            if again.digest != space.digest:
                return "not-comparable"
            if not same_answer(served, fresh, again):
                log.warning("audit: model is not repeatable", model=space.model, digest=space.digest[:12])
                self._metrics.audit_unrepeatable.labels(space.model).set(1)
                return "not-comparable"
        log.error("audit: entry differs", model=space.model, digest=space.digest[:12], key=key.hex()[:KEY_DIGITS])
        self._note(space, key)
        await self._remove(key)
        return "different"

    async def _computed(self, drawn: Drawn) -> Prediction:
        deadline = asyncio.get_running_loop().time() + COMPUTE_SECONDS
        question = Question(drawn.space, (drawn.row,), RequestOptions(deadline, "background"), drawn.parameters)
        return (await self._server.pipeline.bypass(question))[0].prediction

    async def _remove(self, key: Key) -> None:
        """From this process and far at once; from the other proxies through the state store, where there is one."""
        pipeline = self._server.pipeline
        await pipeline.forget({key: pipeline.tiers.clock()})
        try:
            await pipeline.tiers.delete_far([key])
            await self._remover.purge("key", key.hex(), PURGE_SECONDS)
        except (FarError, ForeseenError) as error:
            log.warning("audit: entry not removed everywhere", key=key.hex()[:KEY_DIGITS], error=type(error).__name__)

    def _note(self, space: Space, key: Key) -> None:
        """One line in a file of bounded size; without a place for it, the log has it all the same."""
        if self._data is None:
            return
        where = {"model": space.model, "digest": space.digest[:12], "key": key.hex()[:KEY_DIGITS]}
        line = {"at": int(time.time())} | where
        try:
            with (self._data / DIFFERENCES_FILE).open("ab") as file:
                if file.tell() < DIFFERENCES_BYTES:
                    file.write(orjson.dumps(line) + b"\n")
        except OSError as error:
            log.warning("audit: difference not recorded", error=error.strerror)
