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
import re
import tomllib
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from math import isfinite
from typing import Any

from msgspec import Struct
from xxhash import xxh3_64_intdigest

from foreseen.errors import SetupError
from foreseen.tenants.tenant import PUBLIC, Tenant, TenantLimits, owner_of, scope_of

MAX_FILE_BYTES = 8 * 2**20
HASH = "sha256:"
MAX_PRIORITY = 100
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_HASH = re.compile(r"sha256:([0-9a-f]{64})")
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
    if len(text) > MAX_FILE_BYTES:
        raise SetupError(f"has more than {MAX_FILE_BYTES} bytes; is it a keys file?")
    try:
        document = tomllib.loads(text.decode())
    except UnicodeDecodeError:
        raise SetupError("is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise SetupError(f"is no TOML: {toml_place(error)}") from None
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
        for subject in _texts(f"[tenant.{name}]", table, "subjects"):
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
        raise SetupError(f"[tenant.{name}] {unknown[0][:64]}: is no field of a tenant{hint}")
    scope, models = table.get("scope", "own"), tuple(_texts(f"[tenant.{name}]", table, "models", ["*"]))
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
        expiry_in(f"[tenant.{name}]", table.get("expires")),
        generation,
        0 if found == PUBLIC else xxh3_64_intdigest(found.encode()),
    )


def hashes_in(place: str, table: Mapping[str, Any]) -> list[bytes]:
    """The hashes of a table's `keys`. Raises SetupError; what stands there may be a key, and is not repeated."""
    found = []
    for hashed in _texts(place, table, "keys"):
        match = _HASH.fullmatch(hashed)
        if match is None:
            raise SetupError(f'{place} keys: each must be "{HASH}" and 64 hexadecimal digits, never a key itself')
        found.append(bytes.fromhex(match[1]))
    return found


def _texts(place: str, table: Mapping[str, Any], field: str, default: list[str] | None = None) -> list[str]:
    """A list of strings. Raises SetupError."""
    given = table.get(field, default or [])
    if not isinstance(given, list) or not all(isinstance(one, str) and one for one in given):
        raise SetupError(f"{place} {field}: must be a list of strings")
    return given


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


def expiry_in(place: str, given: Any) -> float | None:
    """A date or date with time as Unix seconds; without a zone it is UTC. Raises SetupError."""
    if isinstance(given, str):
        try:
            given = datetime.fromisoformat(given)
        except ValueError:
            given = 0
    if isinstance(given, date) and not isinstance(given, datetime):
        given = datetime.combine(given, time(), UTC)
    if isinstance(given, datetime):
        return (given if given.tzinfo else given.replace(tzinfo=UTC)).timestamp()
    if given is not None:
        raise SetupError(f"{place} expires: must be a date, or a date with a time")
    return None


def toml_place(error: tomllib.TOMLDecodeError) -> str:
    """Where a file is wrong, without what stands there."""
    found = re.search(r"\(at [^)]*\)", str(error))
    return found[0].strip("()") if found else "cannot be read"
