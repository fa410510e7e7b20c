"""Values of tickets: options, issued ticket, status, fetched result."""

from __future__ import annotations

from msgspec import Struct

from foreseen.errors import ForeseenError
from foreseen.queue.queue_types import OPEN_STATES, JobState
from foreseen.queue.records import Failure


class TicketOptions(Struct, frozen=True):
    """The options of a ticket: the webhook of its end, the batch that it is an item of, the
    name and fingerprint of an idempotency key (empty where there is none), and whether an immediate answer will do."""

    webhook: str | None = None
    batch: bytes = b""
    once: bytes = b""
    fingerprint: bytes = b""
    at_once: bool = True
    caller: str | None = None
    """The caller that is held to a share of the queue: a tenant, or the client's address without tenants."""
    traceparent: str | None = None
    """The trace context of a batch, which its items have instead of one of their own."""


PLAINLY = TicketOptions()


class TicketIssued(Struct, frozen=True):
    """A ticket as it was issued."""

    id: str
    state: JobState
    model: str
    rows: int


class TicketStatus(Struct, frozen=True):
    """The status of a ticket and its job. Times are Unix seconds. `failure` is set if the state is `failed`."""

    id: str
    state: JobState
    version: int
    model: str
    rows: int
    done: int
    created_at: float
    started_at: float | None
    ended_at: float | None
    attempts: int
    failure: Failure | None = None
    unsuccessful: int = 0
    """Items of a batch that have ended without an answer."""

    @property
    def ended(self) -> bool:
        return self.state not in OPEN_STATES


class Fetched(Struct, frozen=True):
    """A result, rendered with its ticket's output options: body, JSON length where tensors follow, headers."""

    body: bytes
    length: int | None
    headers: dict[str, str]


class Failed(ForeseenError):
    """A job's failure, reported as `/infer` would have: status and code are its own."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.status, self.code = failure.status, failure.code  # type: ignore[misc]
