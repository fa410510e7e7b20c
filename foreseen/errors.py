"""All errors, with status and stable code, in the order of a request's steps.

Anything that is not one of these is a 500 "internal error" whose details only the log sees. `docs/errors.md` is made of
the docstrings, which say what happened, and of `fix`.
"""

from __future__ import annotations

from typing import Any, ClassVar


class ForeseenError(Exception):
    """A bug. The log has an `internal error` event with the details.

    The root of all others. `str(error)` is what the client reads: it names the field and never holds an input's value.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    fix: ClassVar[str] = "Report it."
    """The remedy that `docs/errors.md` names."""

    def __init__(
        self,
        message: str,
        *,
        retry_after: int | None = None,
        headers: dict[str, str] | None = None,
        param: str | None = None,
    ) -> None:
        """`param` is the field that an OpenAI client reads, where the error is of one."""
        super().__init__(message)
        self.retry_after = retry_after
        self.headers = headers or {}
        self.param = param


# decode and prepare: the client can fix these.


class BadRequest(ForeseenError):
    """The body or a header cannot be understood; the message names the field."""

    status, code = 400, "bad_request"
    fix = "Correct the request."


class BadInput(BadRequest):
    """A tensor is not what the model's signature asks for."""

    code = "bad_input"
    fix = "Compare with `GET /v2/models/NAME`."


class WebhookRefused(BadRequest):
    """`Foreseen-Webhook` is malformed, is not where the operator allows webhooks to go, or webhooks are off."""

    code = "webhook_refused"
    fix = "See [webhooks](webhooks.md)."


class Unauthorized(ForeseenError):
    """The route is for operators; the request does not carry the admin token."""

    status, code = 401, "unauthorized"
    fix = "`Authorization: Bearer` with the content of `DATA/admin-token`."


class NotFound(ForeseenError):
    """There is no such route."""

    status, code = 404, "not_found"
    fix = "See [the routes](clients.md)."


class UnknownModel(ForeseenError):
    """There is no such model or version."""

    status, code = 404, "unknown_model"
    fix = "`GET /v2/models` lists them."

    def __init__(self, model: str, version: str | None = None) -> None:
        # Two example clients of Triton assert how it begins.
        at = f" version '{version}'" if version is not None else ""
        super().__init__(f"Request for unknown model: '{model}'{at} is not found", param="model")


class UnknownTarget(ForeseenError):
    """A purge names a model or digest that is not served and that neither the state store nor an artifact knows."""

    status, code = 404, "unknown_target"
    fix = "See `foreseen models list`; `--even-if-unknown` writes the purge anyway."


class MethodNotAllowed(ForeseenError):
    """The route exists, the method does not; `Allow` lists those that do."""

    status, code = 405, "method_not_allowed"
    fix = "Use one of them."


class TooLarge(ForeseenError):
    """A body is above a limit: of its bytes, of the elements of its JSON, of its rows; or a picture in it is."""

    status, code = 413, "too_large"
    fix = "Send tensors in the binary form, split the batch, or raise `--body-bytes`."


class UnsupportedCoding(ForeseenError):
    """A `Content-Encoding` other than gzip and deflate."""

    status, code = 415, "unsupported_coding"
    fix = "Use one of those, or none."


class BodyTimeout(ForeseenError):
    """The body did not arrive within `--body-seconds`."""

    status, code = 408, "body_timeout"
    fix = "Send faster, or raise the setting."


class HeadTimeout(ForeseenError):
    """The request's head did not arrive within `--head-seconds`."""

    status, code = 408, "head_timeout"
    fix = "Send faster, or raise the setting."


class HeadTooLarge(ForeseenError):
    """The request's head has more than 128 fields, one longer than 8,190 bytes, or arrives in parts of more than
    64 KiB."""

    status, code = 431, "head_too_large"
    fix = "Send fewer or shorter header fields."


class RateLimited(ForeseenError):
    """One address asks a worker more often than `--rate` allows."""

    status, code = 429, "rate_limited"
    fix = "Ask again after `Retry-After`; behind a load balancer all callers have its address: limit there."


class ExpectationFailed(ForeseenError):
    """An `Expect` header other than `100-continue`."""

    status, code = 417, "expectation_failed"
    fix = "Leave it out."


class VersionNotSupported(ForeseenError):
    """A request line with a version of HTTP other than 1.1 and 1.0."""

    status, code = 505, "http_version"
    fix = "Speak HTTP/1.1."


class Unsupported(ForeseenError):
    """Part of the protocol that is left out on purpose."""

    status, code = 501, "unsupported"
    fix = "Do without."


# model: the operator can fix these.


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


# state: the operator's.


class StateUnavailable(ForeseenError):
    """The state store is not there, or the proxy runs without one: nothing was purged."""

    status, code = 503, "state_unavailable"
    fix = "See `--state`; purge again."


class FarUnavailable(ForeseenError):
    """The far tier is not there: nothing can be imported. Predictions are answered all the same."""

    status, code = 503, "far_unavailable"
    fix = "Look at Redis (`foreseen doctor`); run the same import again, it goes on where it stopped."


class NotConfirmed(ForeseenError):
    """A purge was made, but the workers that the message names have not confirmed it."""

    status, code = 504, "not_confirmed"
    fix = "Look at those; purge again. One that has ended on another machine: `foreseen purge --forget NAME`."


# jobs: the asynchronous pattern's.


class UnknownPrediction(ForeseenError):
    """There is no prediction of this id for this client."""

    status, code = 404, "unknown_prediction"
    fix = "Use the `Location` of the 202 as it came."


class NotFinished(ForeseenError):
    """The prediction has no result yet."""

    status, code = 409, "not_finished"
    fix = "Wait for it: `Prefer: wait=30`."


class PredictionGone(ForeseenError):
    """The prediction was not computed, or not fetched, in time, or something of it was purged since."""

    status, code = 410, "prediction_expired"
    fix = "Ask again; see `--job-seconds` and `--result-seconds`."


class PredictionCancelled(ForeseenError):
    """The prediction was cancelled before it had a result."""

    status, code = 410, "prediction_cancelled"
    fix = "Ask again."


class ModelChanged(ForeseenError):
    """The model prepares its inputs in another way than when the job was asked, so its rows are not what the model sees
    by now. Nothing was computed."""

    status, code = 409, "model_changed"
    fix = "Ask again."


class KeyReused(ForeseenError):
    """The `Idempotency-Key` belongs to a request with another body, path or webhook."""

    status, code = 422, "idempotency_key_reused"
    fix = "Take a new key for a new request."


class InProgress(ForeseenError):
    """A batch with this `Idempotency-Key` is being taken in this moment."""

    status, code = 409, "idempotency_in_progress"
    fix = "Send it again after `Retry-After`."


class QueueUnavailable(ForeseenError):
    """The queue of jobs does not answer. What does not ask for `respond-async` is served as ever."""

    status, code = 503, "queue_unavailable"
    fix = "Ask again, or ask without `Prefer: respond-async`; look at the state store."

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message, retry_after=retry_after)


class QueueFull(ForeseenError):
    """As many jobs wait, or as many bytes of jobs and results are kept, as may be; or as may be of this caller's."""

    status, code = 503, "queue_full"
    fix = "Ask again after `Retry-After`; more workers, or a larger `--queue-bytes` or `--queue-share`."

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
    """Some rows have no answer; of each its prediction or its error, in order."""

    def __init__(self, outcomes: list[Any]) -> None:
        super().__init__("some rows have no answer")
        self.outcomes = outcomes
        self.first: ForeseenError = next(one for one in outcomes if isinstance(one, ForeseenError))


class DigestMoved(Exception):
    """The model process answered with another digest than the one that was asked for."""

    def __init__(self, digest: str) -> None:
        super().__init__("the model's digest has changed")
        self.digest = digest


class SetupError(Exception):
    """Something on the operator's side is not as it must be. The message is one line that says what to do."""
