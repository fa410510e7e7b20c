"""Keys of operators and viewers. An operator may purge, import, and deregister workers; a viewer may only look.

    [operator.alice]
    keys = ["sha256:9f86d081…"]

    [viewer.grafana]
    keys = ["sha256:60303ae2…"]
    expires = 2027-01-01

A file of before, with one token in it, is still read: the token is an operator's.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import structlog
from msgspec import Struct

from foreseen.errors import SetupError
from foreseen.tenants.key_tables import NAME, content_of, expiry_in, hashes_in, tables_in
from foreseen.tenants.watched import WatchedFiles

Role = Literal["operator", "viewer"]
ROLES: tuple[Role, ...] = ("operator", "viewer")
MIN_TOKEN_CHARACTERS = 32

log = structlog.get_logger()


class Administrator(Struct, frozen=True):
    """A key's holder on operators' routes."""

    name: str
    role: Role
    expires_at: float | None = None


Administrators = Mapping[bytes, Administrator]
"""By the SHA-256 of their keys."""


def parse_admin_keys(text: bytes) -> dict[bytes, Administrator]:
    """A keys file of operators. Raises SetupError that names the table and the field, never a value."""
    found: dict[bytes, Administrator] = {}
    for role, tables in tables_in(text).items():
        if role not in ROLES or not isinstance(tables, dict):
            raise SetupError(f"{role[:64]}: every table is [operator.NAME] or [viewer.NAME]")
        for name, table in tables.items():
            _add(found, role, name, table)
    return found


def _add(found: dict[bytes, Administrator], role: Any, name: str, table: Any) -> None:
    place = f"[{role}.{name[:64]}]"
    if not NAME.fullmatch(name) or not isinstance(table, dict):
        raise SetupError(f"{place}: must be a table with a name of letters, digits, '.', '_' or '-'")
    if unknown := table.keys() - {"keys", "expires"}:
        raise SetupError(f"{place} {min(unknown)[:64]}: is not a field of an operator or viewer")
    one = Administrator(name, role, expiry_in(place, table))
    for digest in hashes_in(place, table):
        if found.setdefault(digest, one) != one:
            raise SetupError(f"{place} keys: one of them is also of [{found[digest].role}.{found[digest].name}]")


class AdminKeys:
    """The operators and viewers of one process, from files that are read again when they change."""

    def __init__(self, token: Path, keys: Path, *, required: bool, clock: Callable[[], float] = time.time) -> None:
        """`token` is a file of before or a keys file; `keys` a keys file, which need not be there. Raises SetupError
        where a file is not as it must be, and where none is there although one is `required`."""
        self._token, self._keys, self._clock = token, keys, clock
        self._lookup_key = secrets.token_bytes(32)
        self._watched = WatchedFiles((token, keys), "operators' keys")
        if required and not token.exists():
            raise SetupError(f"{token}: there is no such file; it holds the keys of operators")
        self._named = self._read(warns=required)

    def find(self, given: str) -> Administrator | None:
        """The holder of a key that is in force."""
        if not given:
            return None
        digest = hashlib.sha256(given.encode(errors="surrogateescape")).digest()
        stored, found = self._named.get(self._place(digest), (b"", None))
        if found is None or not hmac.compare_digest(stored, digest):
            return None
        return found if found.expires_at is None or self._clock() < found.expires_at else None

    async def follow(self) -> None:
        """Keep up with the files, until cancelled."""
        await self._watched.follow(self.look)

    def look(self) -> None:
        """One look at the files; what is wrong in them is logged, and changes nothing."""
        named = self._watched.read_anew(lambda: self._read(warns=False))
        self._named = self._named if named is None else named

    def _read(self, *, warns: bool) -> dict[bytes, tuple[bytes, Administrator]]:
        found = {**self._of_token(warns=warns), **self._of_file(self._keys)}
        return {self._place(digest): (digest, one) for digest, one in found.items()}

    def _of_token(self, *, warns: bool) -> dict[bytes, Administrator]:
        """The file of before: one token; or a keys file in its place."""
        content = content_of(self._token)
        if content is None or content.lstrip().startswith((b"[", b"#")):
            return self._of_file(self._token)
        text = content.strip()
        if len(text) < MIN_TOKEN_CHARACTERS:
            raise SetupError(f"{self._token}: the admin token is shorter than {MIN_TOKEN_CHARACTERS} characters")
        if self._token.stat().st_mode & 0o007:
            raise SetupError(f"{self._token}: the admin token is readable by every user; chmod 600 {self._token}")
        if warns:
            log.warning(
                "the admin token file holds one token for all operators; replace it by a keys file: docs/security.md",
                path=str(self._token),
            )
        return {hashlib.sha256(text).digest(): Administrator("admin-token", "operator")}

    def _of_file(self, path: Path) -> dict[bytes, Administrator]:
        content = content_of(path)
        try:
            return {} if content is None else parse_admin_keys(content)
        except SetupError as error:
            raise SetupError(f"{path}: {error}") from None

    def _place(self, digest: bytes) -> bytes:
        return hmac.digest(self._lookup_key, digest, "sha256")
