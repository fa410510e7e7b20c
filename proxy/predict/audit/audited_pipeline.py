"""A pipeline that offers its hits to the audit. Its class is chosen at start: without an audit nothing is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.cache.look_result import LookResult
from foreseen.proxy.cache.waits import Wait
from foreseen.proxy.predict.audit.auditor import Auditor, Drawn
from foreseen.proxy.predict.pipeline import Pipeline
from foreseen.types import Answer, Key, Question


def pipeline_of(auditor: Auditor | None, tiers: Any, served: Mapping[str, ServedModel], *parts: Any) -> Pipeline:
    """The pipeline of a process; `parts` are those of every pipeline."""
    if auditor is None:
        return Pipeline(tiers, served, *parts)
    return AuditedPipeline(auditor, tiers, served, *parts)


class AuditedPipeline(Pipeline):
    """Draws among all rows that are asked for; those that turn out to be no hits are left out."""

    def __init__(self, auditor: Auditor, tiers: Any, served: Mapping[str, ServedModel], *parts: Any) -> None:
        super().__init__(tiers, served, *parts)
        self._auditor, self._served, self._draws = auditor, served, auditor.draws

    def begin(self, question: Question, keys: Sequence[Key]) -> tuple[LookResult, Mapping[Key, Wait]]:
        """The same; rows that are drawn are audited if near has them, or once far has answered them."""
        looked, waits = super().begin(question, keys)
        drawn = self._draws.of(len(keys))
        if drawn:
            self._offer(question, keys, drawn, looked, waits)
        return looked, waits

    def _offer(
        self, question: Question, keys: Sequence[Key], drawn: Sequence[int], looked: LookResult,
        waits: Mapping[Key, Wait],
    ) -> None:  # fmt: skip
        hits = []
        for at in drawn:
            answer, wait = looked.found.get(keys[at]), waits.get(keys[at])
            if answer is not None and answer.source == "near":
                hits.append(at)
            elif wait is not None:
                wait.future.add_done_callback(partial(self._resolved, question, keys[at], at))
        for at in self._auditor.granted(question.space.model, hits) if hits else ():
            self._add(question, keys[at], at, looked.found[keys[at]])

    def _resolved(self, question: Question, key: Key, at: int, future: asyncio.Future[Answer]) -> None:
        """A flight has ended: a hit where far had the row."""
        if future.cancelled() or future.exception() is not None:
            return
        answer = future.result()
        if answer.source == "far" and self._auditor.granted(question.space.model, (at,)):
            self._add(question, key, at, answer)

    def _add(self, question: Question, key: Key, at: int, answer: Answer) -> None:
        served = self._served.get(question.space.model)
        if served is not None:
            row = question.rows[at]
            self._auditor.add(Drawn(served, question.space, question.parameters, key, row, answer.prediction))
