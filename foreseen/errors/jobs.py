"""Errors of asynchronous predictions and batches."""

from __future__ import annotations

from foreseen.errors.base import ForeseenError


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
