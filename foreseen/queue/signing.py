"""An event → the three headers by which its receiver proves that it is ours and new (Standard Webhooks 1.0).

A receiver holds the secret that it verifies with, so it could sign as well. Every tenant therefore has secrets of its
own, derived from those of the file: one tenant's receivers cannot make events that another's would take. Callers
without a tenant have those of the file.
"""

from __future__ import annotations

import hmac
import secrets
from base64 import b64decode, b64encode
from datetime import datetime
from pathlib import Path

from standardwebhooks import Webhook

from foreseen.errors import SetupError
from foreseen.keys.secret import make_secret, read_secret
from foreseen.tenants.tenant import PUBLIC_TENANT
from foreseen.types import Owner

_PREFIX = "whsec_"
_DERIVED = b"foreseen v1 webhook\0"
_MIN_KEY_BYTES, _KEY_BYTES = 24, 32
MAX_OWNERS = 4096
"""Whose derived secrets are kept; the others are derived again."""
"""By the specification a secret has 24 to 64 bytes."""


class Signer:
    """Signs with every secret of a file, one a line, so that receivers can rotate theirs one by one."""

    def __init__(self, path: Path) -> None:
        """Raises SetupError."""
        try:
            self._keys = [_key(line) for line in read_secret(path).decode().split()]
        except ValueError:
            how = f'echo "{_PREFIX}$(head -c {_KEY_BYTES} /dev/urandom | base64)" > {path}'
            raise SetupError(f"{path}: every line must be {_PREFIX} and 24 bytes of base64 or more: {how}") from None
        self._webhooks: dict[Owner, list[Webhook]] = {}

    def headers(self, owner: Owner, id_: str, body: bytes, at: datetime) -> dict[str, str]:
        """webhook-id, webhook-timestamp (Unix seconds), webhook-signature of an event for this owner's receiver."""
        webhooks = self._webhooks.get(owner)
        if webhooks is None:
            if len(self._webhooks) >= MAX_OWNERS:
                self._webhooks.clear()
            webhooks = self._webhooks[owner] = [Webhook(key) for key in self._keys_of(owner)]
        signatures = [webhook.sign(id_, at, body.decode()) for webhook in webhooks]
        return {
            "webhook-id": id_,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": " ".join(signatures),
        }

    def secrets_of(self, owner: Owner) -> list[str]:
        """The secrets that verify this owner's events, as its receivers take them: `whsec_` and base64."""
        return [_PREFIX + b64encode(key).decode() for key in self._keys_of(owner)]

    def _keys_of(self, owner: Owner) -> list[bytes]:
        if owner == PUBLIC_TENANT.owner:
            return self._keys
        return [hmac.digest(key, _DERIVED + owner.encode(), "sha256") for key in self._keys]


def make_webhook_secret(path: Path) -> None:
    """Make a secret where there is none. The operator gives the file's content to the receivers."""
    make_secret(path, _PREFIX + b64encode(secrets.token_bytes(_KEY_BYTES)).decode())


def _key(line: str) -> bytes:
    key = b64decode(line.removeprefix(_PREFIX), validate=True)
    if not line.startswith(_PREFIX) or len(key) < _MIN_KEY_BYTES:
        raise ValueError
    return key
