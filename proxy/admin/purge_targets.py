"""Resolves the target of a purge to model names, digests or scopes; an unknown name is an error.

Known are: models and digests that this proxy serves, those that any proxy on the state store served or purged,
artifacts in the data directory, and tenants of the keys file or of an earlier purge. A misspelt name is never reported
as purged: operators delete personal data this way.
"""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import structlog
from msgspec import Struct

from foreseen.errors import SetupError, StateUnavailable, UnknownTarget
from foreseen.modelspec.artifact import read_record, read_serving
from foreseen.proxy.backend.served import ServedModel
from foreseen.stores.state import Kind, ServedDigest, State
from foreseen.tenants.tenant import PUBLIC, Tenant, own_scope

LEAST_DIGITS = 8
"""Fewest digits of an abbreviated digest; `foreseen models list` shows twelve."""
WATCH_SECONDS = 0.25
NOTES_AGAIN_SECONDS = 60.0
"""The store may have lost what was noted, and remembers the latest only."""
SHOWN_DIGITS = 12
MOST_SHOWN = 8

log = structlog.get_logger()


PurgeWord = Literal["all", "model", "digest", "tenant", "key"]
"""How an operator names a target. A tenant comes to scopes."""


class NamedTenants(Protocol):
    """The tenants of the keys file, by name."""

    def named(self, name: str) -> Tenant | None: ...
    def names(self) -> list[str]: ...


class Target(Struct, frozen=True):
    """The names to purge, one after the other, and their description for the operator."""

    kind: Kind
    names: tuple[str, ...]
    said: str


class KnownNames(Struct, frozen=True):
    """Every model and digest that a purge can be of."""

    served: tuple[ServedDigest, ...]
    """By this proxy, now."""
    former: tuple[ServedDigest, ...]
    """By any proxy on this state store, at any time."""
    artifacts: tuple[tuple[str, str], ...]
    """(model, artifact digest) of what lies in the data directory."""
    purged: frozenset[str]
    """`model:NAME`, `digest:DIGEST` and `scope:SCOPE` of earlier purges."""
    loaded: frozenset[str]
    """Names of this proxy's models, also of those that are not ready."""

    @property
    def models(self) -> set[str]:
        named = {one.model for one in (*self.served, *self.former)} | {model for model, _ in self.artifacts}
        earlier = {name.removeprefix("model:") for name in self.purged if name.startswith("model:")}
        return named | earlier | self.loaded


class Targets:
    """The purge targets of one proxy, and its notes in the state store of what it serves."""

    def __init__(
        self, state: State | None, served: Mapping[str, ServedModel], data: Path, tenants: NamedTenants
    ) -> None:
        self._state = state
        self._served = served
        self._tenants = tenants
        self._data = data
        self._noted: set[ServedDigest] = set()
        self._again_at = 0.0

    async def resolve(self, kind: PurgeWord, what: str, *, even_if_unknown: bool = False) -> Target:
        """The names to purge. Raises UnknownTarget, and StateUnavailable."""
        if kind == "all":
            return Target("all", ("",), "everything")
        if kind == "key":
            return Target("key", (what,), f"key {what[:SHOWN_DIGITS]}")
        if kind == "tenant":
            return await self._of_tenant(what, even_if_unknown=even_if_unknown)
        known = await self._known()
        found = model_target(what, known) if kind == "model" else digest_target(what, known)
        if found is not None:
            return found
        if not even_if_unknown:
            raise UnknownTarget(unknown_text(kind, what, known))
        return Target(kind, (what,), f"{kind} {what}, which is not known here")

    async def _of_tenant(self, name: str, *, even_if_unknown: bool) -> Target:
        """The scopes of a tenant. Raises UnknownTarget, and StateUnavailable."""
        found = tenant_target(name, self._tenants, frozenset(await self._store().generations()))
        if found is not None:
            return found
        if not even_if_unknown:
            raise UnknownTarget(unknown_tenant_text(name, self._tenants.names()))
        return Target("scope", (own_scope(name),), f"tenant {name}, which is not known here: its own scope")

    async def follow(self) -> None:
        """Note in the state store what is served, whenever that changes. For ever."""
        while True:
            await self.note()
            await asyncio.sleep(WATCH_SECONDS)

    async def note(self) -> None:
        """The same once; what the store did not take is noted the next time."""
        if time.monotonic() >= self._again_at:
            self._noted, self._again_at = set(), time.monotonic() + NOTES_AGAIN_SECONDS
        former = {ServedDigest(name, digest) for name, one in self._served.items() for digest in one.former}
        known = {(one.model, one.digest) for one in self._noted}
        new = set(self._now()) - self._noted | {one for one in former if (one.model, one.digest) not in known}
        if self._state is None or not new:
            return
        try:
            await self._state.note_served(sorted(new, key=lambda one: (one.model, one.digest)))
        except StateUnavailable:
            return
        self._noted |= new

    async def _known(self) -> KnownNames:
        state = self._store()
        generations, former = await state.generations(), await state.served()
        artifacts = await asyncio.to_thread(artifacts_of, self._data)
        left = [one for model, _ in artifacts if (one := last_served(self._data, model)) is not None]
        return KnownNames(self._now(), (*former, *left), artifacts, frozenset(generations), frozenset(self._served))

    def _store(self) -> State:
        if self._state is None:
            raise StateUnavailable("this proxy runs without a state store; start it with --state")
        return self._state

    def _now(self) -> tuple[ServedDigest, ...]:
        ready = [(name, one.facts) for name, one in self._served.items() if one.facts is not None]
        return tuple(ServedDigest(name, facts.digest, facts.artifact or None) for name, facts in ready)


def artifacts_of(data: Path) -> tuple[tuple[str, str], ...]:
    """(model, artifact digest) of every artifact that lies in a data directory, in force or not."""
    folders = (data / "models").glob("*/*/") if (data / "models").is_dir() else ()
    found = {(one.parent.name, one.name) for one in folders if len(one.name) == 64}
    for path in (data / "models").glob("*/record.json"):
        try:
            found.add((path.parent.name, read_record(data, path.parent.name).artifact.digest))
        except SetupError:
            continue
    return tuple(sorted(found))


def last_served(data: Path, model: str) -> ServedDigest | None:
    """The digest that the model's process recorded when it was last ready."""
    serving = read_serving(data, model)
    return None if serving is None else ServedDigest(model, serving.digest, serving.artifact)


def model_target(what: str, known: KnownNames) -> Target | None:
    """A model by its name; None where nothing knows it."""
    if what in known.loaded:
        return Target("model", (what,), f"model {what}")
    if what in known.models:
        return Target("model", (what,), f"model {what}, which is not served here now")
    return None


def tenant_target(name: str, tenants: NamedTenants, purged: frozenset[str]) -> Target | None:
    """All scopes whose entries may be a tenant's: its own, also where it shares one now, and the one that it shares.
    What an operator reads names the tenants that lose these entries, too. None where nothing knows the tenant."""
    own = own_scope(name)
    if name == PUBLIC:
        return Target("scope", (PUBLIC,), f"scope public, of callers without a tenant{_shared_by(PUBLIC, '', tenants)}")
    tenant = tenants.named(name)
    if tenant is None and f"scope:{own}" in purged:
        return Target("scope", (own,), f"tenant {name}, which the keys file does not have: its own scope")
    if tenant is None:
        return None
    if tenant.scope == own:
        return Target("scope", (own,), f"tenant {name}, its own scope")
    shown = tenant.scope.removeprefix("shared:")
    said = f"tenant {name}, its own scope and scope {shown}{_shared_by(tenant.scope, name, tenants)}"
    return Target("scope", (own, tenant.scope), said)


def _shared_by(scope: str, name: str, tenants: NamedTenants) -> str:
    """The other tenants of a scope, as an operator reads it."""
    others = [one for one in tenants.names() if one != name and getattr(tenants.named(one), "scope", None) == scope]
    more = f" and {len(others) - MOST_SHOWN} more" if len(others) > MOST_SHOWN else ""
    return f", shared with {', '.join(others[:MOST_SHOWN])}{more}" if others else ""


def unknown_tenant_text(name: str, known: Sequence[str]) -> str:
    """The message for an unknown tenant: similar names first, otherwise the known ones."""
    near = difflib.get_close_matches(name, known, n=MOST_SHOWN, cutoff=0.5)
    hint = f"near names: {', '.join(near)}" if near else f"known are: {', '.join([*known[:MOST_SHOWN], PUBLIC])}"
    return f"no keys file or state store knows tenant {name[:64]!r}; {hint}. --even-if-unknown purges it anyway"


def digest_target(what: str, known: KnownNames) -> Target | None:
    """A model digest or an artifact digest, whole or its beginning; None where nothing knows it. Raises UnknownTarget
    where a beginning stands for several."""
    everything = {(one.model, one.digest): one for one in (*known.former, *known.served)}
    earlier = {name.removeprefix("digest:") for name in known.purged if name.startswith("digest:")}
    models = {digest for _, digest in everything} | earlier
    artifacts = {one.artifact for one in everything.values() if one.artifact} | {one for _, one in known.artifacts}
    digest = _written_out(what, models | artifacts)
    if digest is None:
        return None
    now = {one.digest for one in known.served}
    if digest in models:
        names = sorted({one.model for one in everything.values() if one.digest == digest})
        of = f" of model {', '.join(names)}" if names else ""
        gone = "" if digest in now else ", which is no longer served here"
        return Target("digest", (digest,), f"digest {digest[:SHOWN_DIGITS]}{of}{gone}")
    return _artifact_target(digest, list(everything.values()), now, known)


def _artifact_target(artifact: str, everything: Sequence[ServedDigest], now: set[str], known: KnownNames) -> Target:
    """All model digests that an artifact was served under. Where none is known, the whole model: better too much."""
    made = sorted({(one.digest, one.model) for one in everything if one.artifact == artifact})
    if made:
        shown = ", ".join(f"{digest[:SHOWN_DIGITS]} of model {model}" for digest, model in made)
        gone = "" if any(digest in now for digest, _ in made) else ", which is no longer served here"
        digests = tuple(dict.fromkeys(digest for digest, _ in made))
        return Target("digest", digests, f"artifact {artifact[:SHOWN_DIGITS]}, served as digest {shown}{gone}")
    names = tuple(sorted({model for model, one in known.artifacts if one == artifact}))
    said = f"artifact {artifact[:SHOWN_DIGITS]}, of which no digest is known, hence all of model {', '.join(names)}"
    return Target("model", names, said)


def _written_out(what: str, digests: set[str]) -> str | None:
    """The digest that begins so. Raises UnknownTarget where there are several."""
    if what in digests:
        return what
    found = sorted(one for one in digests if len(what) >= LEAST_DIGITS and one.startswith(what))
    if len(found) > 1:
        raise UnknownTarget(f"digest {what[:64]!r} is the beginning of several: {', '.join(found[:MOST_SHOWN])}")
    return found[0] if found else None


def unknown_text(kind: Kind, what: str, known: KnownNames) -> str:
    """The message for an unknown name: similar names first, otherwise the known ones."""
    if kind == "model":
        names = {name.lower(): name for name in sorted(known.models)}
        near = [names[one] for one in difflib.get_close_matches(what.lower(), names, n=MOST_SHOWN, cutoff=0.5)]
        there = sorted(known.loaded | known.models)
    else:
        digests = {one.digest: one.model for one in (*known.former, *known.served)}
        shown = {one: f"{one[:SHOWN_DIGITS]} ({model})" for one, model in digests.items()}
        shown |= {one: f"{one[:SHOWN_DIGITS]} (artifact of {model})" for model, one in known.artifacts}
        near = [shown[one] for one in sorted(shown) if one[:4] == what[:4]]
        near = near or [shown[one] for one in difflib.get_close_matches(what, shown, n=MOST_SHOWN, cutoff=0.8)]
        there = [shown[one] for one in sorted(shown)]
    hint = f"near names: {', '.join(near[:MOST_SHOWN])}" if near else f"known are: {', '.join(there[:MOST_SHOWN])}"
    hint = hint if there else "none is known"
    if kind == "digest" and len(what) < LEAST_DIGITS:
        hint = f"give at least {LEAST_DIGITS} digits; {hint}"
    return f"no proxy, state store or artifact knows {kind} {what[:64]!r}; {hint}. --even-if-unknown purges it anyway"
