"""What a Redis server, or the way to it, has raised → the label of a far error."""

from __future__ import annotations

import ssl

from redis import exceptions as gone

from foreseen.stores.redis_pool import NotResp

_ERRORS: tuple[tuple[type[Exception], str], ...] = (
    # The order matters: redis-py derives most of these from ConnectionError or ResponseError.
    (gone.TimeoutError, "timeout"),
    (TimeoutError, "timeout"),
    (NotResp, "protocol"),
    (gone.BusyLoadingError, "loading"),
    (gone.ReadOnlyError, "readonly"),
    (gone.OutOfMemoryError, "oom"),
    (gone.NoPermissionError, "permission"),
    (gone.AuthenticationError, "auth"),
    (gone.AuthenticationWrongNumberOfArgsError, "auth"),
    (gone.MaxConnectionsError, "busy"),
    (gone.MasterDownError, "masterdown"),
    (gone.ClusterDownError, "clusterdown"),
    (gone.TryAgainError, "clusterdown"),
    (gone.ConnectionError, "connect"),
    (gone.InvalidResponse, "protocol"),
    (gone.ResponseError, "refused"),
    (gone.RedisError, "protocol"),
    (OSError, "connect"),
    (RuntimeError, "connect"),  # uvloop's word for a connection that has ended while it was being used
)
_ERRORS_BY_WORD = {
    "max number of clients": "maxclients",
    "NOREPLICAS": "noreplicas",
    "MISCONF": "readonly",
    "BUSY ": "busy",
}
"""What redis-py has no class for, by what Redis says."""


def kind_of(error: Exception) -> str:
    """The label of what went wrong with a server, or on the way there."""
    if isinstance(error.__cause__ or error.__context__, ssl.SSLError):
        return "tls"
    said = str(error)
    for word, kind in _ERRORS_BY_WORD.items():
        if word in said:
            return kind
    return next((kind for family, kind in _ERRORS if isinstance(error, family)), "protocol")
