"""Rows → predictions, in turns shared fairly between callers (deficit round robin): admission control and counting for
each model.

A question of many rows takes several turns, so that no caller's rows wait for all of it.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Protocol

from foreseen.errors import ForeseenError, InputRejected, RowsRefused
from foreseen.proxy.backend.turns.admission import Admission
from foreseen.proxy.cache.request_splitting import turns
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.telemetry.spans import model_call
from foreseen.types import Prediction, RequestOptions, Row

TURNS_AT_ONCE = 8
"""Of one question: enough to keep a model's batches full."""


class Predicting(Protocol):
    """The part of a model that is needed here: one prediction per row, in order."""

    async def predict(self, rows: Sequence[Row], parameters: bytes, options: RequestOptions) -> list[Prediction]: ...


class ModelTurns:
    """The turns at all models of one proxy process."""

    def __init__(
        self, models: Mapping[str, Predicting], metrics: ProxyMetrics, miss_rows: int, waiting_rows: int
    ) -> None:
        self._models = models
        self._metrics = metrics
        self._admissions = defaultdict[str, Admission](lambda: Admission(miss_rows, waiting_rows))

    def crowded(self, model: str) -> bool:
        """Whether rows wait for a turn at a model."""
        return self._admissions[model].waiting > 0

    async def predict(
        self, model: str, rows: Sequence[Row], parameters: bytes, options: RequestOptions, row_seconds: float = 0.0
    ) -> list[Prediction]:
        """Ask a model in turn, by as many turns as these rows take. Raises Overloaded, what the model raises, and
        RowsRefused where some rows have no answer."""
        parts = turns(len(rows), row_seconds)
        if len(parts) <= 1:
            return await self._turn(model, rows, parameters, options)
        self._admissions[model].check(len(rows), options.deadline, options.lane, options.caller)
        outcomes: dict[int, Prediction | ForeseenError] = {}
        left = iter(parts)

        async def ask() -> ForeseenError | None:
            for part in left:
                try:
                    asked = rows[part.start : part.stop]
                    got: Sequence[Prediction | ForeseenError] = await self._turn(
                        model, asked, parameters, options, part.start
                    )
                except RowsRefused as some:
                    got = some.outcomes
                except ForeseenError as error:
                    for _ in left:  # the others ask for no more, either
                        pass
                    return error
                outcomes.update(zip(part, got, strict=True))
            return None

        for error in await asyncio.gather(*(ask() for _ in range(min(TURNS_AT_ONCE, len(parts))))):
            if error is not None:
                raise error
        in_order = [outcomes[at] for at in range(len(rows))]
        answered = [outcome for outcome in in_order if isinstance(outcome, Prediction)]
        if len(answered) < len(in_order):
            raise RowsRefused(in_order)
        return answered

    async def _turn(
        self, model: str, rows: Sequence[Row], parameters: bytes, options: RequestOptions, behind: int = 0
    ) -> list[Prediction]:
        """One turn. How many rows, and how long it took, is counted whatever the model answers."""
        admission = self._admissions[model]
        lane, caller, weight = options.lane, options.caller, options.weight
        async with admission.turn(len(rows), options.deadline, lane, caller, behind, weight):
            started = time.perf_counter()
            try:
                with model_call(model, len(rows), options) as options:
                    return await self._models[model].predict(rows, parameters, options)
            except RowsRefused as some:
                self._metrics.quarantined.labels(model).inc(sum(isinstance(o, InputRejected) for o in some.outcomes))
                raise
            finally:
                seconds = time.perf_counter() - started
                self._metrics.model_rows.of(model).add(len(rows))
                self._metrics.model_seconds.of(model).add(seconds)
                self._metrics.stages.add("model", seconds)
