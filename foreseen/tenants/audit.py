"""The audit log: one structured line for every operator's action and every credential that was refused.

Its lines have the event `audit` and go to stderr with all others, whatever `--log-level` says. They name the actor by
its name in the keys file, its address and, on a unix socket, the user; never a key, its hash, or an input.
"""

from __future__ import annotations

import logging
from typing import Any

import structlog

from foreseen.logs import Sparing

_REFUSED = Sparing()


def audit(action: str, actor: str, client: str, *, passed: bool = True, **fields: Any) -> None:
    """Log an action. `actor` is who was recognised, empty where none was; `client` where the request came from."""
    every = structlog.make_filtering_bound_logger(logging.NOTSET)
    log = structlog.wrap_logger(structlog.get_config()["logger_factory"](), wrapper_class=every)
    log.warning("audit", action=action, actor=actor, client=client, passed=passed, **fields)


def audit_refusal(action: str, client: str, why: str, **fields: Any) -> None:
    """Log a credential that was refused: ten of one client at once, then one a second with the number of the others."""
    skipped = _REFUSED.skipped(client)
    if skipped is not None:
        audit(action, "", client, passed=False, why=why, **fields, **skipped)
