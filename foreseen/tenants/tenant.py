"""A tenant: a caller with its own credentials, key space, models and limits.

Two texts keep tenants apart, and only this module makes them. `Scope` is a part of the key space: tenants with equal
scopes share entries. `Owner` owns tickets, files and idempotency keys: never shared, whatever the scope.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from msgspec import Struct

from foreseen.types import Owner, Scope

PUBLIC = Scope("public")
"""The scope of a proxy without a keys file, and of tenants that say `scope = "public"`."""


class TenantLimits(Struct, frozen=True):
    """What a tenant may use; None: as much as there is. Times in seconds, rates in one second."""

    requests_per_second: float | None = None
    rows_per_second: float | None = None
    concurrent_misses: int | None = None
    model_seconds_per_day: float | None = None

    @property
    def has_rates(self) -> bool:
        """Whether requests or rows are counted before the cache is asked."""
        return self.requests_per_second is not None or self.rows_per_second is not None


UNLIMITED = TenantLimits()


class Tenant(Struct, frozen=True):
    """A tenant, as one reading of the keys file describes it."""

    name: str
    scope: Scope
    owner: Owner
    models: tuple[str, ...] | None = None
    """Names of models, also with `*`; None: all."""
    limits: TenantLimits = UNLIMITED
    priority: int = 1
    """The weight in fair queueing, 1 to 100."""
    expires_at: float | None = None
    """Unix seconds."""
    generation: int = 0
    """The reading of the keys file that this is from: what was learned under an earlier one is not used."""
    seed: int = 0
    """Of hashes that only say where to look (XXH3): tenants do not fill each other's places. 0: public."""

    def may_use(self, model: str) -> bool:
        """Whether the tenant may ask this model."""
        return self.models is None or any(fnmatchcase(model, one) for one in self.models)


PUBLIC_TENANT = Tenant("public", PUBLIC, Owner("public"))
"""Every caller of a proxy without a keys file."""


def own_scope(tenant: str) -> Scope:
    """The scope that is a tenant's alone."""
    return Scope(f"tenant:{tenant}")


def scope_of(text: str, tenant: str) -> Scope:
    """The scope that the keys file names: "own", "public", or the name of one that several tenants share."""
    if text == "own":
        return own_scope(tenant)
    return PUBLIC if text == "public" else Scope(f"shared:{text}")


def credential_scope(name: str) -> tuple[Scope, Owner]:
    """Scope and owner of a credential that is passed on to the server behind."""
    return Scope(f"credential:{name}"), Owner(f"credential:{name}")


def owner_of(tenant: str) -> Owner:
    """The owner of a tenant's tickets."""
    return Owner(f"tenant:{tenant}")
