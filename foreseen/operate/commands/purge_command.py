"""`foreseen purge`: asks a running proxy over the operators' listener, and reports what was confirmed."""

from __future__ import annotations

import http.client
import ssl
from typing import Any

import orjson

from foreseen.errors import NotConfirmed, SetupError
from foreseen.operate.admin_client import AdminConnection, ask_operators
from foreseen.paths import admin_socket
from foreseen.settings import CanarySettings, PurgeSettings

MARGIN_SECONDS = 10.0


def purge(settings: PurgeSettings) -> str:
    """Purge, or unregister a worker; a line for the operator. Raises SetupError where the purge was not confirmed."""
    if settings.forget is not None:
        answer_of(settings, "/admin/workers/forget", {"worker": settings.forget})
        return f"{settings.forget} is no longer waited for"
    given = {
        "model": settings.model,
        "digest": settings.digest,
        "tenant": settings.tenant,
        "key": settings.key,
        "all": settings.all or None,
    }
    target = {kind: what for kind, what in given.items() if what is not None}
    if len(target) != 1:
        raise SetupError("give exactly one of --model, --digest, --tenant, --key and --all")
    body = {**target, "timeout_seconds": settings.timeout_seconds, "even_if_unknown": settings.even_if_unknown}
    outcome = answer_of(settings, "/admin/purge", body)
    return f"purged {outcome['purged']}: generation {outcome['generation']}, confirmed by {outcome['workers']} workers"


def answer_of(
    settings: PurgeSettings | CanarySettings, path: str, body: dict[str, Any], done: str = "purged"
) -> dict[str, Any]:
    """What a proxy's operators' route answers; `done` says what was not, in an error. Raises SetupError."""
    token, where = settings.admin_token_file or settings.data / "admin-token", admin_socket(settings.data)
    status, content = ask_operators(_connection(settings), settings.admin or where, token, path, body)
    try:
        document = dict(orjson.loads(content))
    except (orjson.JSONDecodeError, TypeError, ValueError):
        raise SetupError(f"what answers operators is no proxy: status {status}") from None
    if status != 200:
        how = f"not {done} everywhere" if status == NotConfirmed.status else f"not {done}"
        raise SetupError(f"{how}: {document.get('error')}")
    return document


def _connection(settings: PurgeSettings | CanarySettings) -> http.client.HTTPConnection:
    timeout = settings.timeout_seconds + MARGIN_SECONDS
    if settings.admin is None:
        return AdminConnection(settings.data, timeout)
    scheme, _, place = settings.admin.rpartition("://")
    host, _, port = place.rstrip("/").rpartition(":")
    if not host or not port.isdigit() or scheme not in ("", "http", "https"):
        raise SetupError(f"--admin {settings.admin}: must be HOST:PORT or https://HOST:PORT")
    host = host.strip("[]")
    if scheme != "https":
        return http.client.HTTPConnection(host, int(port), timeout=timeout)
    try:
        context = ssl.create_default_context(cafile=settings.admin_ca_file)
    except (OSError, ssl.SSLError):
        raise SetupError(f"--admin-ca-file {settings.admin_ca_file}: cannot be read as PEM") from None
    return http.client.HTTPSConnection(host, int(port), timeout=timeout, context=context)
