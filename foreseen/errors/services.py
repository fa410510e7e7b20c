"""Errors of what a request needs: the model, the far tier, the state store. The operator can fix these."""

from __future__ import annotations

from foreseen.errors.base import ForeseenError


class ModelUnavailable(ForeseenError):
    """The model process is not there, not ready, or changing its version. `Retry-After` says when to come back."""

    status, code = 503, "model_unavailable"
    fix = "Ask again; look at the supervisor's log if it lasts."

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message, retry_after=retry_after)


class Overloaded(ForeseenError):
    """A bounded queue is full, there is no room for another connection, or the model cannot make it before the
    deadline. Hits go on."""

    status, code = 503, "overloaded"
    fix = "Ask again after `Retry-After`; add capacity if it lasts."

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message, retry_after=retry_after)


class ModelFailed(ForeseenError):
    """The model process answered with an error, or with something its signature does not allow. Nothing was stored."""

    status, code = 502, "model_failed"
    fix = "Look at the model process's log."


class InputRejected(ForeseenError):
    """A row of the request has twice ended the model's process, alone. It is refused for `--quarantine-seconds`; other
    rows are not."""

    status, code = 422, "input_rejected_by_model"
    fix = "Look at the model process's log; `Retry-After` says when the row is tried again."


class DeadlineExceeded(ForeseenError):
    """The answer would have come after the request's deadline. What was computed is kept."""

    status, code = 504, "deadline_exceeded"
    fix = "Ask again: it may be a hit by now."


class NotCached(ForeseenError):
    """`only-if-cached` was asked, and not every row is in the cache."""

    status, code = 504, "not_cached"
    fix = "Ask without it."


class StateUnavailable(ForeseenError):
    """The state store is not there, or the proxy runs without one: nothing was purged."""

    status, code = 503, "state_unavailable"
    fix = "See `--state`; purge again."


class FarUnavailable(ForeseenError):
    """The far tier (Redis) is not there: nothing can be imported. Predictions are answered all the same."""

    status, code = 503, "far_unavailable"
    fix = "Look at Redis (`foreseen doctor`); run the same import again, it goes on where it stopped."


class NotConfirmed(ForeseenError):
    """A purge was made, but the workers that the message names have not confirmed it."""

    status, code = 504, "not_confirmed"
    fix = "Look at those; purge again. One that has ended on another machine: `foreseen purge --forget NAME`."
