"""`foreseen purge`: asks a running proxy over the operators' listener, and reports what was confirmed."""

from __future__ import annotations

from foreseen.errors import SetupError
from foreseen.operate.admin_client import answer_of
from foreseen.settings import PurgeSettings


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
    said = f"purged {outcome['purged']}: generation {outcome['generation']}, confirmed by {outcome['workers']} workers"
    match outcome.get("deleted"):
        case None:
            return said
        case 0:
            return f"{said}; Redis had no such entry: of another tenant, model or purge, or never stored"
        case deleted:
            return f"{said}; {deleted} entry deleted in Redis"
