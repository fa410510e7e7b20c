"""The keys file: TOML → tenants, and which credential is whose. It holds hashes of keys, never a key.

[tenant.search]
keys = ["sha256:9f86d081…"]          # of the key's UTF-8 bytes; `foreseen keys add search` makes one
models = ["minilm", "bge-*"]         # default: all
scope = "own"                        # or "public", or a name that several tenants share
requests_per_second = 100
rows_per_second = 1000
concurrent_misses = 16
model_seconds_per_day = 3600
priority = 2                         # weight in fair queueing, 1 to 100
expires = 2027-01-01                 # a date, or a date with a time
subjects = ["CN=search,O=Example"]   # of client certificates, with --tls-client-ca
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from math import isfinite
from typing import Any

from msgspec import Struct
from xxhash import xxh3_64_intdigest

from foreseen.errors import SetupError
from foreseen.tenants.key_tables import NAME, expiry_in, hashes_in, tables_in, texts_in
from foreseen.tenants.tenant import PUBLIC, Tenant, TenantLimits, owner_of, scope_of

MAX_PRIORITY = 100
_LIMITS = ("requests_per_second", "rows_per_second", "concurrent_misses", "model_seconds_per_day")
_FIELDS = ("keys", "subjects", "models", "scope", *_LIMITS, "priority", "expires")
_RESERVED = frozenset(("public", "own", "other", "foreseen"))
"""Names that metrics and scopes use for something else."""


class KeysFile(Struct, frozen=True):
    """One reading of a keys file: tenants by name, by the SHA-256 of their keys, and by certificate subjects."""

    tenants: Mapping[str, Tenant]
    by_key: Mapping[bytes, str]
    by_subject: Mapping[str, str]


def parse_keys(text: bytes, generation: int = 0) -> KeysFile:
    """Raises SetupError that names the tenant and the field, never a value."""
    document = tables_in(text)
    tables = document.pop("tenant", {})
    if document or not isinstance(tables, dict):
        unknown = next(iter(document), "tenant")
        raise SetupError(f"{unknown[:64]}: every table is [tenant.NAME]")
    tenants: dict[str, Tenant] = {}
    by_key: dict[bytes, str] = {}
    by_subject: dict[str, str] = {}
    for name, table in tables.items():
        tenants[name] = _tenant(name, table, generation)
        for digest in hashes_in(f"[tenant.{name}]", table):
            _claim(by_key, digest, name, "keys")
        for subject in texts_in(f"[tenant.{name}]", table, "subjects"):
            _claim(by_subject, subject, name, "subjects")
    return KeysFile(tenants, by_key, by_subject)


def _tenant(name: str, table: Any, generation: int) -> Tenant:
    """One table. Raises SetupError."""
    if not NAME.fullmatch(name) or name in _RESERVED:
        raise SetupError(
            f"[tenant.{name[:64]}]: the name must be letters, digits, '.', '_' or '-', and none of "
            f"{', '.join(sorted(_RESERVED))}"
        )
    if not isinstance(table, dict):
        raise SetupError(f"[tenant.{name}]: must be a table")
    if unknown := [field for field in table if field not in _FIELDS]:
        near = difflib.get_close_matches(unknown[0], _FIELDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SetupError(f"[tenant.{name}] {unknown[0][:64]}: is not a field of a tenant{hint}")
    scope, models = table.get("scope", "own"), tuple(texts_in(f"[tenant.{name}]", table, "models", ["*"]))
    if not isinstance(scope, str) or not NAME.fullmatch(scope):
        raise SetupError(f'[tenant.{name}] scope: must be "own", "public" or a name')
    limits = TenantLimits(**{field: _limit(name, table, field) for field in _LIMITS})  # type: ignore[arg-type]
    priority = table.get("priority", 1)
    if isinstance(priority, bool) or not isinstance(priority, int) or not 1 <= priority <= MAX_PRIORITY:
        raise SetupError(f"[tenant.{name}] priority: must be a whole number from 1 to {MAX_PRIORITY}")
    found = scope_of(scope, name)
    return Tenant(
        name,
        found,
        owner_of(name),
        None if "*" in models else models,
        limits,
        priority,
        expiry_in(f"[tenant.{name}]", table),
        generation,
        0 if found == PUBLIC else xxh3_64_intdigest(found.encode()),
    )


def _claim(known: dict[Any, str], what: Any, name: str, field: str) -> None:
    """One credential belongs to one tenant. Raises SetupError."""
    if known.setdefault(what, name) != name:
        raise SetupError(f"[tenant.{name}] {field}: one of them is also of [tenant.{known[what]}]")


def _limit(name: str, table: Mapping[str, Any], field: str) -> float | int | None:
    """A positive number, or None. Raises SetupError."""
    given = table.get(field)
    if given is None:
        return None
    kinds = (int,) if field == "concurrent_misses" else (int, float)
    if isinstance(given, bool) or not isinstance(given, kinds) or not isfinite(given) or given <= 0:
        whole = "whole " if field == "concurrent_misses" else ""
        raise SetupError(f"[tenant.{name}] {field}: must be a {whole}number above 0")
    return given
