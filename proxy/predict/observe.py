"""Observation (shadow mode): the model answers every request; the cache's answer is compared and counted, never sent.

Operators can so measure what the cache would do for a service before they let it answer.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping

import numpy as np

from foreseen.errors import DigestMoved
from foreseen.protocol.datatypes import DATATYPES, Datatype
from foreseen.proxy.predict.pipeline import Pipeline
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.types import Answer, Key, Prediction, Question

TOLERANCE = 1e-5
"""Largest difference of a float that counts as close."""


class Observer:
    """Answers questions of observed models. `tolerance` is the largest difference of a float that counts as close."""

    def __init__(self, pipeline: Pipeline, metrics: ProxyMetrics, tolerance: float = TOLERANCE) -> None:
        self._pipeline = pipeline
        self._metrics = metrics
        self._tolerance = tolerance

    async def answer(self, question: Question) -> list[Answer]:
        """The model's own answers. Entries that are missing are kept; those that are there stay, and are compared."""
        tiers, model = self._pipeline.tiers, question.space.model
        keys = self._pipeline.keys(question)
        policy, began = self._pipeline.models[model].freshness, asyncio.get_running_loop().time()
        known = dict(tiers.look_near(keys, policy).found)
        missing = [key for key in dict.fromkeys(keys) if key not in known]
        if missing:
            known |= (await tiers.look_far(question.space, missing, policy)).found
        cached = {key: answer.prediction for key, answer in known.items()}
        answers = await self._pipeline.bypass(question)
        fresh = dict(zip(keys, (answer.prediction for answer in answers), strict=True))
        for prediction in fresh.values():
            if prediction.digest != question.space.digest:
                raise DigestMoved(prediction.digest)
        self._count(model, cached, fresh, len(keys))
        new = [key for key in fresh if key not in cached]
        if "keep" in question.options.steps:
            with_expiry = self._pipeline.with_expiry(model, (fresh[key] for key in new))
            tiers.keep(list(zip(new, with_expiry, strict=True)), policy, began)
        return answers

    def _count(self, model: str, cached: Mapping[Key, Prediction], fresh: Mapping[Key, Prediction], rows: int) -> None:
        outcomes: Counter[str] = Counter(collapsed=rows - len(fresh))
        for key, prediction in fresh.items():
            known = cached.get(key)
            if known is None:
                outcomes["miss"] += 1
                continue
            close = closeness(known, prediction, self._tolerance)
            outcomes[f"hit-{close}"] += 1
            if close != "different":
                self._metrics.observed_seconds.labels(model).inc(known.seconds)
        for outcome, count in outcomes.items():
            self._metrics.observed.labels(model, outcome).inc(count)


def closeness(known: Prediction, fresh: Prediction, tolerance: float) -> str:
    """How a cached answer compares with a fresh one: exact, close (floats within the tolerance) or different."""
    if known.outputs == fresh.outputs and known.data == fresh.data:
        return "exact"
    if known.outputs != fresh.outputs:
        return "different"
    for output, one, other in zip(known.outputs, known.data, fresh.data, strict=True):
        datatype = DATATYPES[output.datatype]
        if one != other and (datatype.kind != "f" or _largest_difference(one, other, datatype) > tolerance):
            return "different"
    return "close"


def _largest_difference(one: bytes, other: bytes, datatype: Datatype) -> float:
    left, right = (np.frombuffer(raw, datatype.dtype).astype(np.float64) for raw in (one, other))
    return float(np.abs(left - right).max(initial=0.0))
