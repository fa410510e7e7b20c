"""A pipeline that offers the rows it answers to samplers and to `hot_inputs.py`. Without these it is not used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.cache.look_result import LookResult
from foreseen.proxy.cache.waits import Wait
from foreseen.proxy.predict.pipeline import Pipeline
from foreseen.types import Answer, Key, Question


class RowObserver(Protocol):
    """What is offered the rows of questions."""

    def offer_rows(
        self, served: ServedModel, question: Question, keys: Sequence[Key], looked: LookResult,
        waits: Mapping[Key, Wait],
    ) -> None: ...  # fmt: skip
    def offer_bypassed(self, served: ServedModel, question: Question, answers: Sequence[Answer]) -> None: ...


def pipeline_of(
    samplers: Sequence[RowObserver], tiers: Any, served: Mapping[str, ServedModel], *parts: Any
) -> Pipeline:
    """The pipeline of a process; `parts` are those of every pipeline."""
    return SampledPipeline(samplers, tiers, served, *parts) if samplers else Pipeline(tiers, served, *parts)


class SampledPipeline(Pipeline):
    """Each sampler draws among all rows that are asked for, and leaves out those that are not of its kind."""

    def __init__(
        self, samplers: Sequence[RowObserver], tiers: Any, served: Mapping[str, ServedModel], *parts: Any
    ) -> None:  # fmt: skip
        super().__init__(tiers, served, *parts)
        self._samplers, self._served = samplers, served

    def begin(self, question: Question, keys: Sequence[Key]) -> tuple[LookResult, Mapping[Key, Wait]]:
        looked, waits = super().begin(question, keys)
        served = self._served.get(question.space.model)
        if served is not None:
            for sampler in self._samplers:
                sampler.offer_rows(served, question, keys, looked, waits)
        return looked, waits

    async def answer(self, question: Question, keys: Sequence[Key] | None = None) -> list[Answer]:
        answers = await super().answer(question, keys)
        served = self._served.get(question.space.model)
        if served is not None and question.options.steps == {"model"}:
            for sampler in self._samplers:
                sampler.offer_bypassed(served, question, answers)
        return answers
