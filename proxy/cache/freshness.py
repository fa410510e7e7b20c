"""Decides whether an entry is fresh, may be served stale, or must be recomputed. Pure.

The only place that compares ages. Keys are content-addressed, so an entry is never wrong, only older than a request
accepts. Its `expires_at` is the end of its freshness; it is kept for longer, to be served stale:

    made_at ──── fresh ──── expires_at ──── stale-while-revalidate, stale-if-error, max-stale ──── forgotten

Words are those of RFC 9111 (sections 4.2 and 5.2.1) and RFC 5861. Requests' `max-age` and `min-fresh` narrow what is
acceptable, `max-stale` widens it; without either the policy's own `stale-while-revalidate` applies.
"""

from __future__ import annotations

import math
import random
import re
from typing import assert_never

from msgspec import Struct

from foreseen.modelspec.manifest.policy import Freshness
from foreseen.types import ANY_AGE, MaxAge, StaleReason, Steps

TTL_JITTER = 0.1
"""Entries made together do not expire together."""
MAX_SECONDS = 2**31
"""RFC 9111 section 1.2.2: larger values count as this."""
_MEMBER = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*"?)+')
_DIRECTIVE = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+)(?:=(?:\"([^\"\\]*)\"|([!#$%&'*+\-.^_`|~0-9A-Za-z]+)))?")


class Policy(Struct, frozen=True):
    """How long a model's entries are fresh, and for how long after that they may be answered stale, in seconds."""

    fresh_seconds: float
    revalidate_seconds: float = 0.0
    if_error_seconds: float = 0.0
    hard_seconds: float = 0.0

    @property
    def kept_seconds(self) -> float:
        """How long an entry is kept beyond its freshness."""
        return max(self.hard_seconds - self.fresh_seconds, self.revalidate_seconds, self.if_error_seconds, 0.0)


class Control(Struct, frozen=True):
    """The directives of a request's `Cache-Control`."""

    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    age_limits: MaxAge = ANY_AGE


NO_CONTROL = Control()
"""The request states nothing: the model's policy decides."""


class Fresh(Struct, frozen=True):
    """Answer with it."""


class Stale(Struct, frozen=True):
    """Serve a stale entry, with the reason. With `revalidating` one background refresh is in progress."""

    why: StaleReason


class Recompute(Struct, frozen=True):
    """Ask the model. `stale_fallback`: where that fails, the entry is better than an error."""

    reason: str
    """`expired`, or `asked` where only the request thinks it too old."""
    stale_fallback: bool


class Expired(Struct, frozen=True):
    """Too old for any request: forget it."""


Decision = Fresh | Stale | Recompute | Expired


def decide(made_at: float, expires_at: float, now: float, policy: Policy, age_limits: MaxAge) -> Decision:
    """What may be done with an entry. All times are Unix seconds of one clock."""
    left = expires_at - now
    if left <= 0 and -left >= policy.kept_seconds:
        return Expired()
    if age_limits is ANY_AGE or age_limits == ANY_AGE:
        if left > 0:
            return Fresh()
        if -left <= policy.revalidate_seconds:
            return Stale("stale-while-revalidate")
        return Recompute("expired", -left <= policy.if_error_seconds)
    wanted = left
    if age_limits.max_age is not None:
        wanted = min(wanted, age_limits.max_age - age_of(made_at, now))
    if age_limits.min_fresh is not None:
        wanted -= age_limits.min_fresh
    if left > 0 and wanted + (age_limits.max_stale or 0.0) >= 0:
        return Fresh()
    strict = age_limits.max_age is not None or age_limits.min_fresh is not None
    if age_limits.max_stale is not None and left <= 0 and -wanted <= age_limits.max_stale:
        return Stale("stale-while-revalidate" if -left <= policy.revalidate_seconds else "max-stale")
    if not strict and age_limits.max_stale is None and -left <= policy.revalidate_seconds:
        return Stale("stale-while-revalidate")
    limit = policy.if_error_seconds if age_limits.stale_if_error is None else age_limits.stale_if_error
    return Recompute("expired" if left <= 0 else "asked", 0 < limit >= -left)


def fresh(expires_at: float, now: float) -> bool:
    """Whether `decide` returns Fresh for an entry and a request without directives."""
    return expires_at > now


def age_of(made_at: float, now: float) -> float:
    """Seconds since an entry was computed. Clocks of two machines differ: nothing is younger than new."""
    return max(0.0, now - made_at)


def kept_for(expires_at: float, now: float, policy: Policy) -> float:
    """Seconds for which an entry is still worth keeping."""
    return expires_at + policy.kept_seconds - now


def usable(decision: Decision) -> bool:
    """Whether the entry answers the request without another look or a model request."""
    match decision:
        case Fresh() | Stale():
            return True
        case Recompute() | Expired():
            return False
        case _:
            assert_never(decision)


def policy_of(manifest: Freshness, defaults: Freshness) -> Policy:
    """A model's policy: from its manifest, otherwise from the settings.

    A soft TTL is where freshness ends; from there to the hard one entries are served while one refresh runs, unless
    `stale_while_revalidate_seconds` limits that.
    """
    soft = _first(manifest.soft_seconds, defaults.soft_seconds)
    hard = _first(manifest.hard_seconds, defaults.hard_seconds) or 0.0
    fresh = hard if soft is None else min(soft, hard)
    revalidate = _first(manifest.stale_while_revalidate_seconds, defaults.stale_while_revalidate_seconds)
    if_error = _first(manifest.stale_if_error_seconds, defaults.stale_if_error_seconds) or 0.0
    return Policy(fresh, hard - fresh if revalidate is None else revalidate, if_error, hard)


def expiry_of(made_at: float, policy: Policy) -> float:
    """When an entry that is made now ceases to be fresh."""
    return made_at + policy.fresh_seconds * random.uniform(1.0 - TTL_JITTER, 1.0 + TTL_JITTER)  # noqa: S311 - spreads expiry


def control_of(header: str) -> Control:
    """A `Cache-Control` request header, all its lines joined by commas. Directives that are unknown or malformed are
    ignored; of one that is given twice the first counts (RFC 9111 section 4.2.1)."""
    given: dict[str, str | None] = {}
    for member in _MEMBER.findall(header):
        directive = _DIRECTIVE.fullmatch(member.strip())
        if directive is not None:
            quoted, token = directive[2], directive[3]
            given.setdefault(directive[1].lower(), quoted if quoted is not None else token)
    any_stale = "max-stale" in given and given["max-stale"] is None
    return Control(
        "no-cache" in given,
        "no-store" in given,
        "only-if-cached" in given,
        MaxAge(
            _seconds(given.get("max-age")),
            math.inf if any_stale else _seconds(given.get("max-stale")),
            _seconds(given.get("min-fresh")),
            _seconds(given.get("stale-if-error")),
        ),
    )


def steps_of(control: Control, steps: Steps) -> Steps:
    """The steps of a request: what the model allows, less what the request forbids."""
    if control is NO_CONTROL:
        return steps
    if control.no_cache:
        steps -= {"near", "far"}
    if control.no_store:
        steps -= {"keep"}
    if control.only_if_cached:
        steps -= {"model", "keep"}
    return steps


def _seconds(value: str | None) -> float | None:
    """delta-seconds, None where it is something else."""
    if value is None or not (value.isascii() and value.isdigit()):
        return None
    return float(min(int(value[:12]), MAX_SECONDS))


def _first(one: float | None, other: float | None) -> float | None:
    return other if one is None else one
