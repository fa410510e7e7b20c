"""Errors of what a request depends on: the model, the far tier, the state store. The operator can fix these."""

from __future__ import annotations

from foreseen.errors.base import ForeseenError


class ModelUnavailable(ForeseenError):
    """The model process or upstream does not answer, is not ready, or is changing its version."""

    status, code = 503, "model_unavailable"
    fix = "Retry after `Retry-After`. If it persists, see `GET /v2/models/NAME/ready` and the log."

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message, retry_after=retry_after)


class Overloaded(ForeseenError):
    """Admission control: a bounded queue or the connection limit is full, or the model cannot meet the deadline.
    Hits are still answered."""

    status, code = 503, "overloaded"
    fix = "Retry after `Retry-After`. If it persists, add capacity."

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message, retry_after=retry_after)


class ModelFailed(ForeseenError):
    """The model process or upstream answered with an error, or with a reply that its signature does not allow. Nothing
    was stored."""

    status, code = 502, "model_failed"
    fix = "Check the log of the model process or upstream."


class InputRejected(ForeseenError):
    """A row of the request is a poison pill: it has twice ended the model's process while it ran alone. It is refused
    for `--quarantine-seconds`; other rows are not."""

    status, code = 422, "input_rejected_by_model"
    fix = "Check the model process's log. `Retry-After` says when the row will be tried again."


class DeadlineExceeded(ForeseenError):
    """The request's deadline passed before its answer was ready. Computed rows are stored."""

    status, code = 504, "deadline_exceeded"
    fix = "Retry: it may be a hit by now."


class NotCached(ForeseenError):
    """The request said `only-if-cached`, and not every row is in the cache."""

    status, code = 504, "not_cached"
    fix = "Send the request without it."


class StateUnavailable(ForeseenError):
    """The state store does not answer, or the proxy runs without one. Nothing was purged."""

    status, code = 503, "state_unavailable"
    fix = "Check `--state`, then purge again."


class FarUnavailable(ForeseenError):
    """The far tier (Redis) does not answer, so nothing can be imported. Predictions are still answered."""

    status, code = 503, "far_unavailable"
    fix = "Check Redis (`foreseen doctor`). Then run the same import again; it continues where it stopped."


class NotConfirmed(ForeseenError):
    """A purge was recorded, but the workers named in the message have not confirmed it."""

    status, code = 504, "not_confirmed"
    fix = "Check those workers, then purge again. One that ended on another machine: `foreseen purge --forget NAME`."
