"""A question's answers → what they have in common: result label, `Cache-Status`, `Age`, `Server-Timing`. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.cache.freshness import age_of
from foreseen.types import Answer


class AnswerFacts:
    """What a request's answers have in common, for headers and labels."""

    __slots__ = ("_answers", "_now", "_status", "result", "sources")

    def __init__(
        self, now: float, result: str, status: str | None, sources: Counter[str], answers: Sequence[Answer]
    ) -> None:
        self.result = result
        self.sources = sources
        self._now = now
        self._status = status
        self._answers = answers

    @classmethod
    def of(
        cls,
        answers: Sequence[Answer],
        served: ServedModel,
        now: float,
        why_bypassed: str | None = None,
        *,
        requested: bool,
    ) -> AnswerFacts:
        """`hit` stands in Cache-Status only where every row is one, stale or not; `requested`: no-cache was."""
        sources = Counter[str](answer.source for answer in answers)
        hits = sources["near"] + sources["far"] + sources["stale"]
        if not answers:
            return cls(now, "hit", None, sources, answers)
        if hits == len(answers):
            left = math.floor(min(answer.prediction.expires_at for answer in answers) - now)
            why = next((answer.why for answer in answers if answer.why is not None), None)
            detail = why or ("far" if sources["far"] else "near")
            return cls(now, "stale" if why else "hit", f"foreseen;hit;ttl={left};detail={detail}", sources, answers)
        if requested:
            return cls(now, "bypass" if sources["bypass"] else "miss", "foreseen;fwd=request", sources, answers)
        if sources["bypass"]:
            by = why_bypassed or ("observe" if "keep" in served.steps else served.bypass_reason)
            return cls(now, "bypass", f"foreseen;fwd=bypass;detail={by}", sources, answers)
        if hits:
            return cls(now, "partial", f'foreseen;fwd=partial;detail="{hits}/{len(answers)}"', sources, answers)
        stored = ";stored" if all(answer.stored for answer in answers) else ""
        collapsed = sources["collapsed"] == len(answers)
        status = f"foreseen;fwd=miss{stored}{';collapsed' if collapsed else ''}"
        return cls(now, "collapsed" if collapsed else "miss", status, sources, answers)

    def headers(self) -> dict[str, str]:
        headers = {} if self._status is None else {"Cache-Status": self._status}
        if self.result in ("hit", "stale") and self._answers:
            headers["Age"] = str(int(max(age_of(answer.prediction.made_at, self._now) for answer in self._answers)))
        return headers

    def timing(self, steps: dict[str, float]) -> str:
        """Server-Timing in ms, with the slowest far and model call that an answer came by."""
        trips = [answer.trip for answer in self._answers if answer.trip is not None]
        far = max((trip.far for trip in trips if trip.far is not None), default=None)
        model = max((trip.model for trip in trips if trip.model is not None), default=None)
        steps = steps | ({"far": far} if far is not None else {}) | ({"model": model} if model is not None else {})
        return ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in steps.items())
