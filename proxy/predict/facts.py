"""Sums up a request's answers: result label, `Cache-Status`, `Age`, `Server-Timing`. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from foreseen.proxy.backend.served import ServedModel
from foreseen.types import Answer

SAVED = frozenset(("near", "far", "stale", "collapsed"))
"""Sources that cost the model nothing."""
_ASKED = "foreseen;fwd=request"


def hit_lines(seconds_left: int, age: int, detail: str, timing: str | None) -> str:
    """The header lines of a hit that change with time: the only place that writes them, for every kind of hit."""
    timed = "" if timing is None else f"Server-Timing: {timing}\r\n"
    return f"Cache-Status: foreseen;hit;ttl={seconds_left};detail={detail}\r\nAge: {age}\r\n{timed}"


class AnswerFacts:
    """What a request's answers have in common, for headers, labels and counters. `far` and `model` are the slowest call
    of each tier that an answer came by, in seconds; `saved` is compute seconds that the cache saved."""

    __slots__ = ("_now", "_status", "far", "made_at", "model", "result", "saved", "sources", "until")

    def __init__(self, answers: Sequence[Answer], now: float) -> None:
        """The sums; `result` is still to be decided."""
        sources: dict[str, int] = {}
        until = made_at = math.inf
        saved = 0.0
        self.far: float | None = None
        self.model: float | None = None
        for answer in answers:
            source, prediction, trip = answer.source, answer.prediction, answer.trip
            sources[source] = sources.get(source, 0) + 1
            if source in SAVED:
                saved += prediction.seconds
            until, made_at = min(until, prediction.expires_at), min(made_at, prediction.made_at)
            if trip is not None:
                self.far, self.model = _longer(self.far, trip.far), _longer(self.model, trip.model)
        self.sources: Mapping[str, int] = sources
        self.until, self.made_at, self.saved = until, made_at, saved
        self.result = "hit"
        self._status: str | None = None
        self._now = now

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
        facts = cls(answers, now)
        count = facts.sources.get
        hits = count("near", 0) + count("far", 0) + count("stale", 0)
        if hits == len(answers):
            if count("stale"):
                facts.result = "stale"
                facts._status = next((answer.why for answer in answers if answer.why is not None), None)
            elif answers:
                facts._status = "far" if count("far") else "near"
        elif requested:
            facts.result, facts._status = "bypass" if count("bypass") else "miss", _ASKED
        elif count("bypass"):
            by = why_bypassed or ("observe" if "keep" in served.steps else served.bypass_reason)
            facts.result, facts._status = "bypass", f"foreseen;fwd=bypass;detail={by}"
        elif hits:
            facts.result, facts._status = "partial", f'foreseen;fwd=partial;detail="{hits}/{len(answers)}"'
        else:
            stored = ";stored" if all(answer.stored for answer in answers) else ""
            collapsed = count("collapsed") == len(answers)
            facts.result = "collapsed" if collapsed else "miss"
            facts._status = f"foreseen;fwd=miss{stored}{';collapsed' if collapsed else ''}"
        return facts

    @property
    def asked(self) -> bool:
        """Whether the client's own `Cache-Control` asked for new answers."""
        return self._status == _ASKED

    def lines(self, timing: str | None = None) -> str:
        """`Cache-Status`, `Age` of hits, and `Server-Timing` where it is given. Of no rows there is nothing to say."""
        if self._status is not None and self.result in ("hit", "stale"):
            age = max(0, int(self._now - self.made_at))
            return hit_lines(math.floor(self.until - self._now), age, self._status, timing)
        status = "" if self._status is None else f"Cache-Status: {self._status}\r\n"
        return status if timing is None else f"{status}Server-Timing: {timing}\r\n"

    def timing(self, steps: str) -> str:
        """Server-Timing: these steps, and the slowest far and model call, in ms."""
        far = "" if self.far is None else f", far;dur={self.far * 1000:.3f}"
        model = "" if self.model is None else f", model;dur={self.model * 1000:.3f}"
        return f"{steps}{far}{model}"


def _longer(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return max(one, other)
