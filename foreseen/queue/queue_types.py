"""Values that go into and come out of the queue, and their fields in the store. Pure."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]
Company = Literal["many", "few", "alone"]
StartVerdict = Literal["run", "few", "alone", "poison", "gone"]
OPEN_STATES = ("queued", "running")


MAX_JOBS = 100_000
"""Jobs that may wait; more are refused with 503. What they take in memory is bounded by a setting."""


class Bounds(Struct, frozen=True):
    """How much the queue holds, and for how long (seconds)."""

    jobs: int
    bytes: int
    job_seconds: float
    result_seconds: float
    dead_seconds: float = 7 * 86400.0
    share: float = 1.0
    """The part of both bounds that one caller can have while no other has any; see `weight`."""

    @property
    def weight(self) -> float:
        """A caller may have at most this factor times what is free: `share` of everything while no other caller has
        any, and always something for a new one (dynamic thresholds: Choudhury and Hahne, 1998). 0: no bound."""
        return self.share / (1.0 - self.share) if self.share < 1.0 else 0.0


class Delivered(Struct, frozen=True):
    """A message of the queue: its job, how many rows that has, and how many bytes they take."""

    message: bytes
    job: bytes
    rows: int
    bytes: int


class ClaimedJob(Struct, frozen=True):
    """A job for a worker. `head` and `rows` are sealed records, empty where there is nothing to run."""

    verdict: StartVerdict
    message: bytes
    job: bytes
    attempts: int
    head: bytes
    rows: bytes


class JobEnd(Struct, frozen=True):
    """A job's end: its record, until when it is fresh (Unix seconds), and the dead letter of a failed one."""

    message: bytes
    job: bytes
    state: JobState
    record: bytes
    fresh_until: float = 0.0
    letter: bytes = b""


class PutBack(Struct, frozen=True):
    """A job that is to run later: `tried` counts it as an attempt, `suspect` makes it run alone."""

    message: bytes
    job: bytes
    delay_seconds: float = 0.0
    tried: bool = False
    suspect: bool = False


class JobView(Struct, frozen=True):
    """The state of a job and one of its tickets. Times are Unix seconds; records are sealed, None where missing."""

    state: JobState
    version: int
    rows: int
    done: int
    created_at: float
    begun_at: float | None
    ended_at: float | None
    attempts: int
    ticket: bytes
    head: bytes
    record: bytes | None
    unsuccessful: int = 0
    """Of a batch: items that ended without an answer."""


class Extras(Struct, frozen=True):
    """Optional properties of a ticket: a webhook (sealed), its batch, the name and fingerprint of an idempotency key,
    and the name of its caller, which is held to a share of the queue; empty where it has none."""

    hook: bytes = b""
    batch: bytes = b""
    once: bytes = b""
    fingerprint: bytes = b""
    caller: bytes = b""


PLAIN = Extras()


class IssuedTicket(Struct, frozen=True):
    """A ticket as issued: its job, the job's state and head (sealed), and its nonce."""

    job: bytes
    state: JobState
    head: bytes
    nonce: bytes


def fields_of(nonce: bytes, *, record: bool) -> list[bytes]:
    """The fields of a job's hash that `seen_of` reads, of this ticket; with the record of its end if asked for."""
    fields = ["s", "v", "n", "d", "c", "b", "e", "a", "nb", "t:", "c:", "head"] + (["r"] if record else [])
    return [name.encode() + nonce if name.endswith(":") else name.encode() for name in fields]


def seen_of(got: list[bytes | None]) -> JobView | None:
    """The values of `fields_of` → JobView; None where there is no such job or ticket."""
    s, v, n, d, c, b, e, a, nb, ticket, cancelled, head, *r = got
    if s is None or ticket is None:
        return None
    state: JobState = "cancelled" if cancelled else s.decode()  # type: ignore[assignment]
    begun, ended = (None if ms is None else int(ms) / 1000 for ms in (b, cancelled or e))
    version, rows, done, attempts = (int(number or 0) for number in (v, n, d, a))
    result = r[0] if r else None
    created = int(c or 0) / 1000
    return JobView(
        state, version, rows, done, created, begun, ended, attempts, ticket, head or b"", result, int(nb or 0)
    )  # fmt: skip


def delivered_of(message: bytes, fields: dict[bytes, bytes]) -> Delivered:
    """A stream entry → Delivered; an empty one where the entry was deleted since."""
    return Delivered(message, fields.get(b"j", b""), int(fields.get(b"n", 0)), int(fields.get(b"b", 0)))
