"""Errors that never reach a client: callers in the code handle them; and SetupError, which ends a command."""

from __future__ import annotations

from typing import Any

from foreseen.errors.base import ForeseenError


class EntryError(Exception):
    """A stored value is not the requested entry. `reason` is a label: format, length, identity, tag."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class FarError(Exception):
    """An operation of the far tier failed. `kind` is a label: connect, timeout, oom, readonly, loading, auth, …"""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class RowsRefused(Exception):
    """Some rows have no answer. `outcomes` holds each row's prediction or error, in order."""

    def __init__(self, outcomes: list[Any]) -> None:
        super().__init__("some rows have no answer")
        self.outcomes = outcomes
        self.first: ForeseenError = next(one for one in outcomes if isinstance(one, ForeseenError))


class DigestMoved(Exception):
    """The model process answered with another digest than the requested one."""

    def __init__(self, digest: str) -> None:
        super().__init__("the model's digest has changed")
        self.digest = digest


class SetupError(Exception):
    """An error of configuration or environment. The message is one line with the remedy."""
