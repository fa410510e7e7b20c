"""`foreseen keys`: adds, lists and revokes keys in a keys file. Comments and order of the file stay.

A key is 256 random bits, shown once; the file gets its SHA-256. The file is replaced in one step, with mode 0600 where
it is new, and never while another `foreseen keys` works in the same folder. What would not be a keys file is not
written.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import tomlkit
from msgspec import Struct
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Table

from foreseen.errors import SetupError
from foreseen.tenants.admin_keys import parse_admin_keys
from foreseen.tenants.key_tables import HASH
from foreseen.tenants.keys_file import parse_keys

Kind = Literal["tenant", "operator", "viewer"]
"""Whose key: a tenant's stands in the keys file, the others' in the operators'."""
PREFIX = "fsk_"
KEY_BYTES = 32
SHOWN_DIGITS = 12
"""Of a key's hash, by which one of several keys is named."""


class ListedTenant(Struct, frozen=True):
    """A tenant as `foreseen keys list` shows it."""

    tenant: str
    keys: list[str]
    """The first digits of each key's hash."""
    scope: str
    models: list[str]
    expires_at: float | None


def shown_digits(key: str) -> str:
    """The first digits of a key's hash, by which `foreseen keys list` and `revoke` name it."""
    return hashlib.sha256(key.encode()).hexdigest()[:SHOWN_DIGITS]


def add_key(path: Path, name: str, kind: Kind = "tenant") -> str:
    """A new key of a tenant, operator or viewer, which is made where the file does not have it. Raises SetupError."""
    key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    with _edited(path, kind) as document:
        table = _table(document, name, kind)
        if table is None:
            table = tomlkit.table()
            tables = document.setdefault(kind, tomlkit.table(is_super_table=True))
            tables[name] = table
        keys = table.setdefault("keys", tomlkit.array())
        keys.append(HASH + hashlib.sha256(key.encode()).hexdigest())
    return key


def revoke_keys(path: Path, name: str, hashed: str | None = None, kind: Kind = "tenant") -> int:
    """Take all keys of a table out, or the one whose hash begins so; how many those were. The table stays.

    Raises SetupError."""
    begins = None if hashed is None else HASH + hashed.removeprefix(HASH)
    with _edited(path, kind) as document:
        table = _table(document, name, kind)
        if table is None:
            raise SetupError(f"{path}: there is no {kind} {name!r}")
        keys = [str(one) for one in table.get("keys", [])]
        gone = [one for one in keys if begins is None or one.startswith(begins)]
        if not gone or (begins is not None and len(gone) > 1):
            which = f"whose hash begins with {hashed}" if hashed is not None else "to revoke"
            said = f"{len(gone) or 'no'} keys of {name!r} {which}"
            raise SetupError(f"{path}: {said}; `foreseen keys list` shows them")
        table["keys"] = [one for one in keys if one not in gone]
    return len(gone)


class ListedAdministrator(Struct, frozen=True):
    """An operator or viewer, likewise."""

    name: str
    role: str
    keys: list[str]
    expires_at: float | None


def listed_administrators(path: Path) -> list[ListedAdministrator]:
    """The operators and viewers of a keys file. Raises SetupError."""
    found: dict[tuple[str, str], ListedAdministrator] = {}
    for digest, one in parse_admin_keys(_content(path)).items():
        made = ListedAdministrator(one.name, one.role, [], one.expires_at)
        found.setdefault((one.role, one.name), made).keys.append(digest.hex()[:SHOWN_DIGITS])
    return list(found.values())


def listed(path: Path) -> list[ListedTenant]:
    """The tenants of a keys file. Raises SetupError."""
    file = parse_keys(_content(path))
    found = []
    for name, tenant in file.tenants.items():
        keys = [digest.hex()[:SHOWN_DIGITS] for digest, owner in file.by_key.items() if owner == name]
        models = ["*"] if tenant.models is None else list(tenant.models)
        found.append(ListedTenant(name, keys, tenant.scope, models, tenant.expires_at))
    return found


@contextlib.contextmanager
def _edited(path: Path, kind: Kind) -> Iterator[tomlkit.TOMLDocument]:
    """The file's content, to be changed; it is written at the end if it is a keys file then."""
    path = path.resolve()  # what a link leads to is replaced, not the link
    if not path.parent.is_dir():
        raise SetupError(f"{path.parent}: there is no such folder")
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        content = _content(path) if path.exists() else b""
        _check(path, content, kind)
        try:
            document = tomlkit.parse(content)
        except TOMLKitError:
            raise SetupError(f"{path}: is no TOML") from None
        yield document
        changed = tomlkit.dumps(document).encode()
        _check(path, changed, kind)
        _replace(path, changed)
        os.fsync(folder)
    finally:
        os.close(folder)


def _table(document: tomlkit.TOMLDocument, name: str, kind: Kind) -> Table | None:
    found = document.get(kind, {}).get(name)
    return found if isinstance(found, dict) else None  # type: ignore[return-value] # a table is a dict


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from None


def _check(path: Path, content: bytes, kind: Kind) -> None:
    """Raises SetupError where this is no keys file of this kind."""
    try:
        if kind == "tenant":
            parse_keys(content)
        else:
            parse_admin_keys(content)
    except SetupError as error:
        raise SetupError(f"{path}: {error}") from None


def _replace(path: Path, content: bytes) -> None:
    """Raises OSError. Readers see the file of before or the new one; the mode stays."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
