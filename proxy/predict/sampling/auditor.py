"""The audit of hits: rows that a cache answered are computed again in the background, and compared.

draw      rows of hits, uniformly (`row_sampler.py`); while the cap is reached, hits of the fast path are only counted
compute   one row at a time, in the background lane, by the model in force
compare   bit for bit, or within what the model declares (`same_answer.py`)
remove    an entry that differs goes from every near and from far, and its key is logged
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import orjson
import structlog

from foreseen.errors import FarError, ForeseenError
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.cache.look_result import LookResult
from foreseen.proxy.cache.waits import Wait
from foreseen.proxy.predict.sampling.draws import DistinctKeys, Draws, RowBudget
from foreseen.proxy.predict.sampling.row_sampler import Drawn, RowSampler
from foreseen.proxy.predict.sampling.same_answer import same_answer
from foreseen.proxy.predict.serve import Server
from foreseen.telemetry.metrics import AUDIT_OUTCOMES, ProxyMetrics
from foreseen.types import Answer, Key, Prediction, Question, RequestOptions, Space

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
        self._following = False
        self._remover: EntryRemover
        self._rows_at_pause: dict[str, int] = {}
        self._offered: Counter[str] = Counter()
        """Rows of the normal path during a pause, by model."""

    async def audit(self, server: Server, remover: EntryRemover, models: Iterable[str] = ()) -> None:
        """Audit what is drawn, for ever."""
        self._remover, self._following = remover, True
        try:
            await self.follow(server, tuple(models))
        finally:
            self._following = False

    def expect(self, model: str) -> None:
        if model in self._distinct:
            return
        self._distinct[model] = DistinctKeys()
        for outcome in AUDIT_OUTCOMES:
            self._metrics.audited.labels(model, outcome)
        self._metrics.audit_distinct.labels(model)
        self._metrics.audit_unrepeatable.labels(model)

    # While the cap is reached, what is drawn is dropped. Hits of the fast path need not be offered for that: those that
    # pass are counted already, and the number drawn among them has a binomial distribution. Draws have no memory, so
    # what is drawn afterwards is as if every row had been offered.

    def granted(self, model: str, rows: Sequence[int]) -> Sequence[int]:
        granted = super().granted(model, rows)
        seconds = self._budget.empty_seconds
        if seconds > 0 and self._following and not self.paused:
            self._pause(seconds)
        return granted

    def offer_rows(
        self, served: ServedModel, question: Question, keys: Sequence[Key], looked: LookResult,
        waits: Mapping[Key, Wait],
    ) -> None:  # fmt: skip
        super().offer_rows(served, question, keys, looked, waits)
        if self.paused and question.options.lane == "online":  # also where these rows have begun the pause
            self._offered[question.space.model] += len(keys)

    def offer_bypassed(self, served: ServedModel, question: Question, answers: Sequence[Answer]) -> None:
        if self.paused and question.options.lane == "online":
            self._offered[question.space.model] += len(answers)

    def _pause(self, seconds: float) -> None:
        self._rows_at_pause, self._offered = self._answered_rows(), Counter()
        self.paused = True
        self.switched()
        asyncio.get_running_loop().call_later(seconds, self._resume)

    def _resume(self) -> None:
        self.paused = False
        self.switched()
        for model, rows in self._answered_rows().items():
            passed = rows - self._rows_at_pause.get(model, rows) - self._offered[model]
            if passed > 0 and (dropped := self.draws.number_of(passed)):
                self._counts.labels(model, "dropped").inc(dropped)

    def _answered_rows(self) -> dict[str, int]:
        """By model, of both ways."""
        return {name: served.stats.rows for name, served in self._server.counter.served.items()}

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
