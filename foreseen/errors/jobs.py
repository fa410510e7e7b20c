"""Errors of asynchronous predictions and batches."""

from __future__ import annotations

from foreseen.errors.base import ForeseenError


class UnknownPrediction(ForeseenError):
    """There is no prediction with this id for this client."""

    status, code = 404, "unknown_prediction"
    fix = "Use the `Location` of the 202 unchanged."


class NotFinished(ForeseenError):
    """The prediction has no result yet."""

    status, code = 409, "not_finished"
    fix = "Wait for it: `Prefer: wait=30`."


class PredictionGone(ForeseenError):
    """The prediction was not computed or not fetched in time, or an entry that it was made of was purged."""

    status, code = 410, "prediction_expired"
    fix = "Send the request again. See `--job-seconds` and `--result-seconds`."


class PredictionCancelled(ForeseenError):
    """The prediction was cancelled before it had a result."""

    status, code = 410, "prediction_cancelled"
    fix = "Send the request again."


class ModelChanged(ForeseenError):
    """The model's preparation of inputs has changed since the job was submitted, so the job's rows are no longer what
    the model sees. Nothing was computed."""

    status, code = 409, "model_changed"
    fix = "Send the request again."


class KeyReused(ForeseenError):
    """The `Idempotency-Key` belongs to a request with another body, path or webhook."""

    status, code = 422, "idempotency_key_reused"
    fix = "Use a new key for a new request."


class InProgress(ForeseenError):
    """A batch with this `Idempotency-Key` is still being received."""

    status, code = 409, "idempotency_in_progress"
    fix = "Send it again after `Retry-After`."


class QueueUnavailable(ForeseenError):
    """The queue of jobs does not answer. Requests without `respond-async` are not affected."""

    status, code = 503, "queue_unavailable"
    fix = "Retry, or send the request without `Prefer: respond-async`. Check the state store."

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message, retry_after=retry_after)


class QueueFull(ForeseenError):
    """The queue has reached its limit of jobs or of bytes of jobs and results, in all or for this caller."""

    status, code = 503, "queue_full"
    fix = "Retry after `Retry-After`. Add workers, or raise `--queue-bytes` or `--queue-share`."

    def __init__(self, message: str, *, retry_after: int = 5) -> None:
        super().__init__(message, retry_after=retry_after)
