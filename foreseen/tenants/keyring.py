"""Credentials of a request → its tenant. Used by HTTP, its fast path and gRPC.

A key is accepted as `Authorization: Bearer`, `X-API-Key` or `api-key`. What a request presents is hashed, and the hash
is looked up under a random key of this process, so that no timing says how near a guess was.

The keys file is looked at four times a second, by what the path leads to now: an editor's rename, a changed file, and
the symbolic link that Kubernetes swaps in a mounted Secret are all seen. A file that cannot be read or is wrong changes
nothing: the tenants of before stay in force, and the log says so.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import structlog
from msgspec import structs

from foreseen.errors import SetupError, Unauthorized
from foreseen.tenants.key_tables import content_of
from foreseen.tenants.keys_file import KeysFile, parse_keys
from foreseen.tenants.passed import PassedCredentials
from foreseen.tenants.tenant import PUBLIC, PUBLIC_TENANT, Tenant, own_scope
from foreseen.tenants.watched import WatchedFiles
from foreseen.types import Owner, Scope

INTERNAL_BYTES = 64
CREDENTIAL_HEADERS = frozenset(("authorization", "x-api-key", "api-key"))
API_KEYS = ("X-API-Key", "api-key")
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="foreseen"'}
_NOTHING = KeysFile({}, {}, {})
_INTERNAL = Tenant("foreseen", Scope("internal"), Owner("internal"), seed=1)
"""The supervisor, which proves that predictions go through."""

log = structlog.get_logger()


class Headers(Protocol):
    """Headers or metadata of a request: aiohttp's, or any `multidict`."""

    def getall(self, key: str, default: Sequence[str]) -> Sequence[str]: ...


class PairHeaders:
    """Headers that came as pairs of name and value: gRPC's metadata."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._pairs = [(name.lower(), value) for name, value in pairs]

    def getall(self, key: str, default: Sequence[str]) -> Sequence[str]:
        return [value for name, value in self._pairs if name == key.lower()] or default


class Keyring:
    """The tenants that one process knows, by their credentials."""

    def __init__(
        self,
        path: Path | None = None,
        internal: bytes | None = None,
        *,
        certified: bool = False,
        passed: PassedCredentials | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`internal` is the supervisor's own credential; `certified`: every request needs a client certificate;
        `passed` makes each key a tenant, in the place of a file. Raises SetupError where the file is not as it must
        be."""
        self._passed = passed
        self.certified = certified
        self.generation = 0
        """Of what is in force: it changes with the file, and when a tenant expires."""
        self._path = path
        self._clock = clock
        self._lookup_key = secrets.token_bytes(32)
        self._internal = None if internal is None else hashlib.sha256(internal).digest()
        self._file = _NOTHING
        self._names: dict[bytes, tuple[bytes, str]] = {}
        self._watched = WatchedFiles(() if path is None else (path,), "keys file")
        self._expires_at = float("inf")
        if path is not None:
            self._take(self._parsed(path))

    @property
    def is_open(self) -> bool:
        """Whether every caller is public, since there is no keys file."""
        return self._path is None and self._passed is None

    def authenticate(self, headers: Headers, subject: str | None = None) -> Tenant:
        """The tenant of a request. `subject` is that of the connection's verified client certificate; a key in the
        headers comes before it. Raises Unauthorized."""
        if self.is_open and not self.certified:
            return PUBLIC_TENANT
        given = set(credentials_of(headers))
        if self.certified and subject is None and not (len(given) == 1 and self._is_internal(*given)):
            raise Unauthorized("a client certificate is required", headers=_CHALLENGE)
        if self.is_open:
            return PUBLIC_TENANT
        if len(given) > 1:
            raise Unauthorized("the request carries several different keys", headers=_CHALLENGE)
        if given:
            return self._in_force(self._by_key(given.pop()))
        name = None if subject is None else self._file.by_subject.get(subject)
        if name is None:
            raise Unauthorized("a key is required: Authorization: Bearer, X-API-Key or api-key", headers=_CHALLENGE)
        return self._in_force(self._file.tenants[name])

    def named(self, name: str) -> Tenant | None:
        """A tenant by its name, for operators; None where the file has none."""
        return self._file.tenants.get(name)

    def renewed(self, tenant: Tenant) -> Tenant | None:
        """A tenant that was found earlier, as it is in force now; None where the file lacks it, or it has expired."""
        if tenant is PUBLIC_TENANT or tenant.generation == self.generation:
            return tenant
        found = self._file.tenants.get(tenant.name)
        expires = None if found is None else found.expires_at
        return None if expires is not None and self._clock() >= expires else found

    def names(self) -> list[str]:
        """The names of all tenants, in the order of the file."""
        return list(self._file.tenants)

    async def follow(self) -> None:
        """Keep up with the file, and with tenants that expire."""
        if self._path is not None:
            await self._watched.follow(self.look)

    def look(self) -> None:
        """One look at the file. A changed one is read at the second look that finds it the same, so that no file is
        read that is being written."""
        if self._clock() >= self._expires_at:
            self._renew(self._file)
        path = self._path
        file = None if path is None else self._watched.read_anew(lambda: self._parsed(path))
        if file is None:
            return
        self._take(file)
        log.info("keys file read", tenants=len(file.tenants), keys=len(file.by_key), generation=self.generation)

    def _by_key(self, given: str) -> Tenant | None:
        digest = _digest(given)
        if self._is_internal(given):
            return structs.replace(_INTERNAL, generation=self.generation)
        if self._passed is not None:
            return self._passed.tenant(given)
        stored, name = self._names.get(self._place(digest), (b"", ""))
        return self._file.tenants[name] if hmac.compare_digest(stored, digest) else None

    def _is_internal(self, given: str) -> bool:
        return self._internal is not None and hmac.compare_digest(_digest(given), self._internal)

    def _in_force(self, tenant: Tenant | None) -> Tenant:
        if tenant is None:
            raise Unauthorized("the key is unknown or was revoked", headers=_CHALLENGE)
        if tenant.expires_at is not None and self._clock() >= tenant.expires_at:
            raise Unauthorized("the key has expired", headers=_CHALLENGE)
        return tenant

    def _place(self, digest: bytes) -> bytes:
        """Where a hash is looked up: nothing that a caller could work out."""
        return hmac.digest(self._lookup_key, digest, "sha256")

    def _parsed(self, path: Path) -> KeysFile:
        """Raises SetupError that names the file."""
        content = content_of(path)
        if content is None:
            raise SetupError(f"--keys-file {path}: there is no such file")
        try:
            return parse_keys(content)
        except SetupError as error:
            raise SetupError(f"{path}: {error}") from None

    def _take(self, file: KeysFile) -> None:
        self._names = {self._place(digest): (digest, name) for digest, name in file.by_key.items()}
        self._renew(file)

    def _renew(self, file: KeysFile) -> None:
        """A new generation: nothing that was learned before is used any more."""
        self.generation += 1
        tenants = {name: structs.replace(tenant, generation=self.generation) for name, tenant in file.tenants.items()}
        self._file = structs.replace(file, tenants=tenants)
        now = self._clock()
        ends = [one.expires_at for one in tenants.values() if one.expires_at is not None and one.expires_at > now]
        self._expires_at = min(ends, default=float("inf"))


def credentials_of(headers: Headers) -> list[str]:
    """The keys that a request presents. A scheme other than Bearer presents none."""
    found = []
    for value in headers.getall("Authorization", ()):
        scheme, _, given = value.strip().partition(" ")
        if scheme.lower() == "bearer":
            found.append(given.strip())
    for name in API_KEYS:
        found += [value.strip() for value in headers.getall(name, ())]
    return [given for given in found if given]


def _digest(given: str) -> bytes:
    return hashlib.sha256(given.encode(errors="surrogateescape")).digest()


def scope_named(tenant: str | None, keys_file: Path | None) -> Scope:
    """The scope of a tenant that a command line names, public where it names none. Raises SetupError."""
    if tenant is None:
        return PUBLIC
    if keys_file is None:
        return own_scope(tenant)
    found = Keyring(keys_file).named(tenant)
    if found is None:
        raise SetupError(f"--tenant {tenant}: {keys_file} has no such tenant")
    return found.scope


def internal_credential(descriptor: int | None) -> bytes | None:
    """The supervisor's own credential, in a file without a name that its children inherit: no command line, environment
    or folder shows it. It may be read again by a child that is started again."""
    if descriptor is None:
        return None
    found = os.pread(descriptor, INTERNAL_BYTES, 0)
    if len(found) != INTERNAL_BYTES:
        raise SetupError("the supervisor's credential cannot be read")
    return found


def make_internal_credential() -> tuple[int, str]:
    """A credential for one run of the supervisor: the descriptor for its children, and the text itself."""
    text = secrets.token_hex(INTERNAL_BYTES // 2)
    descriptor = os.memfd_create("foreseen-credential") if hasattr(os, "memfd_create") else _unnamed()
    os.pwrite(descriptor, text.encode(), 0)
    return descriptor, text


def _unnamed() -> int:
    """The same where the system has no `memfd_create`."""
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
