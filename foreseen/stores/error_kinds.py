"""An exception of redis-py, uvloop or a socket → the label of a far error."""

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
    (RuntimeError, "connect"),  # uvloop raises this for a connection that was closed while in use
)
_ERRORS_BY_WORD = {
    "max number of clients": "maxclients",
    "NOREPLICAS": "noreplicas",
    "MISCONF": "readonly",
    "BUSY ": "busy",
}
"""Errors without a class in redis-py, by the first word of Redis's message."""


def kind_of(error: Exception) -> str:
    """The label of an error: of the server, or of the network."""
    if isinstance(error.__cause__ or error.__context__, ssl.SSLError):
        return "tls"
    said = str(error)
    for word, kind in _ERRORS_BY_WORD.items():
        if word in said:
            return kind
    return next((kind for family, kind in _ERRORS if isinstance(error, family)), "protocol")
