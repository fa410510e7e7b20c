"""An event → the three headers by which its receiver proves that it is ours and new (Standard Webhooks 1.0)."""

from __future__ import annotations

import secrets
from base64 import b64decode, b64encode
from datetime import datetime
from pathlib import Path

from standardwebhooks import Webhook

from foreseen.errors import SetupError
from foreseen.keys.secret import make_secret, read_secret

_PREFIX = "whsec_"
_MIN_KEY_BYTES, _KEY_BYTES = 24, 32
"""By the specification a secret has 24 to 64 bytes."""


class Signer:
    """Signs with every secret of a file, one a line, so that receivers can rotate theirs one by one."""

    def __init__(self, path: Path) -> None:
        """Raises SetupError."""
        try:
            self._webhooks = [Webhook(_key(line)) for line in read_secret(path).decode().split()]
        except ValueError:
            how = f'echo "{_PREFIX}$(head -c {_KEY_BYTES} /dev/urandom | base64)" > {path}'
            raise SetupError(f"{path}: every line must be {_PREFIX} and 24 bytes of base64 or more: {how}") from None

    def headers(self, id_: str, body: bytes, at: datetime) -> dict[str, str]:
        """webhook-id, webhook-timestamp (Unix seconds), webhook-signature."""
        signatures = [webhook.sign(id_, at, body.decode()) for webhook in self._webhooks]
        return {
            "webhook-id": id_,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": " ".join(signatures),
        }


def make_webhook_secret(path: Path) -> None:
    """Make a secret where there is none. The operator gives the file's content to the receivers."""
    make_secret(path, _PREFIX + b64encode(secrets.token_bytes(_KEY_BYTES)).decode())


def _key(line: str) -> bytes:
    key = b64decode(line.removeprefix(_PREFIX), validate=True)
    if not line.startswith(_PREFIX) or len(key) < _MIN_KEY_BYTES:
        raise ValueError
    return key
