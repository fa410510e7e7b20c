"""What a look into a tier finds: the answer that an entry gives to a request, or why it is a miss. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from msgspec import Struct

from foreseen.proxy.cache.freshness import Expired, Fresh, Policy, Recompute, Stale, decide
from foreseen.types import ANY_AGE, Answer, Key, MaxAge, Miss, Prediction, Source, TierSeconds

EXPIRED = Miss("expired")


class LookResult(Struct, frozen=True):
    """What a tier had, why the rest is missing, and how long it took (None where it was not asked)."""

    found: Mapping[Key, Answer]
    missing: Mapping[Key, Miss]
    seconds: float | None = None
    stale: bool = False
    """Whether an answer that was found is stale."""


def judge(
    prediction: Prediction,
    tier: Source,
    now: float,
    policy: Policy,
    age_limits: MaxAge,
    trip: TierSeconds | None = None,
) -> Answer | Miss:
    """The answer that a tier's entry gives to a request with these age limits, or why it is a miss."""
    decision = decide(prediction.made_at, prediction.expires_at, now, policy, age_limits)
    match decision:
        case Fresh():
            return Answer(prediction, tier, trip=trip)
        case Stale(why):
            return Answer(prediction, "stale", trip=trip, why=why)
        case Recompute(reason, stale_fallback):
            return Miss(
                reason, Answer(prediction, "stale", trip=trip, why="stale-if-error") if stale_fallback else None
            )
        case Expired():
            return EXPIRED
        case _:
            assert_never(decision)


def far_row(key: Key, found: Prediction, now: float, policy: Policy, seconds: float | None) -> LookResult:
    """What far's prediction of one row is to a request that takes any age."""
    judged = judge(found, "far", now, policy, ANY_AGE, TierSeconds(seconds))
    if isinstance(judged, Miss):
        return LookResult({}, {key: judged}, seconds)
    return LookResult({key: judged}, {}, seconds)


def both(near: Miss, far: Miss) -> Miss:
    """One miss of both tiers: the more specific reason, and the younger stale fallback."""
    reason = near.reason if far.reason == "cold" else far.reason
    fallbacks = [missed.stale_fallback for missed in (near, far) if missed.stale_fallback is not None]
    return Miss(reason, max(fallbacks, key=lambda answer: answer.prediction.made_at, default=None))
