"""What can go wrong, with status and stable code. Each error belongs to one arrow of the way of a request.

Anything that is not one of these is a 500 "internal error" whose details only the log sees. The codes are listed in
`docs/errors.md` with what to do about each; a test keeps the two together.
"""

from __future__ import annotations

from typing import Any, ClassVar


class ForeseenError(Exception):
    """The root. `str(error)` is what the client reads: it names the field and never holds an input's value."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, retry_after: int | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.headers = headers or {}


# decode and prepare: the client's to mend.


class BadRequest(ForeseenError):
    """The request cannot be understood; the message names the field."""

    status, code = 400, "bad_request"


class BadInput(BadRequest):
    """A tensor is not what the model's signature asks for; the message names the field."""

    code = "bad_input"


class WebhookRefused(BadRequest):
    """A webhook was asked for that is malformed or not allowed, or where webhooks are off."""

    code = "webhook_refused"


class Unauthorized(ForeseenError):
    """The route is for operators, and the request does not carry their token."""

    status, code = 401, "unauthorized"


class NotFound(ForeseenError):
    """No such route."""

    status, code = 404, "not_found"


class UnknownModel(ForeseenError):
    """No such model or version. Two example clients of Triton assert how the message starts."""

    status, code = 404, "unknown_model"

    def __init__(self, model: str, version: str | None = None) -> None:
        at = f" version '{version}'" if version is not None else ""
        super().__init__(f"Request for unknown model: '{model}'{at} is not found")


class MethodNotAllowed(ForeseenError):
    """The route exists, the method does not."""

    status, code = 405, "method_not_allowed"


class TooLarge(ForeseenError):
    """A body or a decoded input is above its limit; the message names the limit."""

    status, code = 413, "too_large"


class UnsupportedCoding(ForeseenError):
    """A Content-Encoding other than gzip, deflate or identity."""

    status, code = 415, "unsupported_coding"


class BodyTimeout(ForeseenError):
    """The body did not arrive in time."""

    status, code = 408, "body_timeout"


class HeadTimeout(ForeseenError):
    """The request's head did not arrive in time."""

    status, code = 408, "head_timeout"


class HeadTooLarge(ForeseenError):
    """The request's head is above its limits, in bytes or in fields."""

    status, code = 431, "head_too_large"


class RateLimited(ForeseenError):
    """One address sends more requests than it may."""

    status, code = 429, "rate_limited"


class ExpectationFailed(ForeseenError):
    """An `Expect` header that asks for something else than 100-continue."""

    status, code = 417, "expectation_failed"


class Unsupported(ForeseenError):
    """Part of the protocol that this server leaves out on purpose."""

    status, code = 501, "unsupported"


# model: the model process's or the operator's to mend.


class ModelUnavailable(ForeseenError):
    """The model process is not there or not ready."""

    status, code = 503, "model_unavailable"

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message, retry_after=retry_after)


class Overloaded(ForeseenError):
    """A bounded queue is full: refused at once rather than too late."""

    status, code = 503, "overloaded"

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message, retry_after=retry_after)


class ModelFailed(ForeseenError):
    """The model process answered with an error or with something its signature does not allow."""

    status, code = 502, "model_failed"


class InputRejected(ForeseenError):
    """The row has ended the model's process twice and is not let aboard for a while."""

    status, code = 422, "input_rejected_by_model"


class DeadlineExceeded(ForeseenError):
    """The answer would come too late."""

    status, code = 504, "deadline_exceeded"


class NotCached(ForeseenError):
    """`only-if-cached` was asked and at least one row is not."""

    status, code = 504, "not_cached"


# state: the operator's.


class StateUnavailable(ForeseenError):
    """The state store is not there: nothing can be purged."""

    status, code = 503, "state_unavailable"


class NotConfirmed(ForeseenError):
    """A purge was made, but not every worker has confirmed it: the message names those."""

    status, code = 504, "not_confirmed"


# jobs: the asynchronous pattern's.


class UnknownPrediction(ForeseenError):
    """No prediction of this id was ever promised to this caller."""

    status, code = 404, "unknown_prediction"


class NotFinished(ForeseenError):
    """The prediction has no result yet."""

    status, code = 409, "not_finished"


class PredictionGone(ForeseenError):
    """The prediction has expired: it was not computed, or not fetched, in time, or it was purged since."""

    status, code = 410, "prediction_expired"


class PredictionCancelled(ForeseenError):
    """The prediction was cancelled before it had a result."""

    status, code = 410, "prediction_cancelled"


class KeyReused(ForeseenError):
    """The `Idempotency-Key` belongs to another request already."""

    status, code = 422, "idempotency_key_reused"


class InProgress(ForeseenError):
    """A request with this `Idempotency-Key` is being taken in this very moment."""

    status, code = 409, "idempotency_in_progress"


class QueueUnavailable(ForeseenError):
    """The queue of jobs does not answer; what does not ask for `respond-async` is served as ever."""

    status, code = 503, "queue_unavailable"

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message, retry_after=retry_after)


class QueueFull(ForeseenError):
    """As many jobs wait, or as many bytes of jobs and results are kept, as may be."""

    status, code = 503, "queue_full"

    def __init__(self, message: str, *, retry_after: int = 5) -> None:
        super().__init__(message, retry_after=retry_after)


# Not sent to clients: caught inside.


class EntryError(Exception):
    """A stored value is not the entry that was asked for. `reason` is a label: format, length, identity, tag."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class FarError(Exception):
    """The far tier could not serve. `kind` is a label: connect, timeout, oom, readonly, loading, auth, …"""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class RowsRefused(Exception):
    """Some rows are not let aboard; what the others got, None for those that are refused."""

    def __init__(self, predictions: list[Any], refusal: InputRejected) -> None:
        super().__init__("some rows are in quarantine")
        self.predictions = predictions
        self.refusal = refusal


class DigestMoved(Exception):
    """The model process answered with another digest than the one that was asked for."""

    def __init__(self, digest: str) -> None:
        super().__init__("the model's digest has changed")
        self.digest = digest


class SetupError(Exception):
    """Something on the operator's side is not as it must be. The message is one line that says what to do."""
