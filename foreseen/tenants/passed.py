"""Callers' own credentials, passed on to the upstream: each is a tenant with its own scope.

The scope is a keyed hash of the credential, so that every proxy on one secret finds the same entries, and nothing that
is stored shows the credential. The credential itself is kept in memory only, for the requests that need the server.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict

from xxhash import xxh3_64_intdigest

from foreseen.errors import Unauthorized
from foreseen.tenants.tenant import Tenant, credential_scope
from foreseen.types import Scope

MAX_CREDENTIALS = 10_000
"""Of one process; the one that asked least lately goes, and is known again when it asks."""
_SHOWN = 8


class PassedCredentials:
    """The credentials that one process has seen."""

    def __init__(self, key: bytes) -> None:
        """`key` derives from the root secret."""
        self._key = key
        self._known: OrderedDict[Scope, str] = OrderedDict()

    def tenant(self, credential: str) -> Tenant:
        """The tenant of a credential."""
        name = hmac.digest(self._key, credential.encode(errors="surrogateescape"), "sha256").hex()
        scope, owner = credential_scope(name)
        self._known[scope] = credential
        self._known.move_to_end(scope)
        if len(self._known) > MAX_CREDENTIALS:
            self._known.popitem(last=False)
        return Tenant(f"credential-{name[:_SHOWN]}", scope, owner, seed=xxh3_64_intdigest(scope.encode()))

    def headers(self, scope: Scope | None) -> dict[str, str]:
        """The headers of a request to the server, for a scope's rows; none for requests of our own. Raises Unauthorized
        where the credential is not known any more."""
        if scope is None:
            return {}
        credential = self._known.get(scope)
        if credential is None:
            raise Unauthorized("the credential of these rows is no longer known; send the request again")
        return {"Authorization": f"Bearer {credential}"}
