"""Waiting requests of the model process: their rows, their order, and the limits of a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

from foreseen.modelspec.row_outputs import RowOutputs
from foreseen.types import SECONDS_PER_ROW, Lane, Row


class BatchRunner(Protocol):
    """What computes: called from one thread per instance, so possibly from several at once."""

    def run(self, rows: Sequence[Row], /) -> list[RowOutputs]: ...


class Meter(Protocol):
    """Observer of runs. Called on the event loop, before the answers are delivered."""

    def ran(self, rows: int, failed: int, padding: int, waits: Sequence[float], seconds: float) -> None:
        """A batch of `rows`, of which `failed` could not be computed; `waits` are their times in the queue."""


class Computed(Struct, frozen=True, gc=False):
    """One row's answer. `seconds` is its share of the run's time; `queued` how long it waited for the run to start."""

    outputs: RowOutputs
    seconds: float
    queued: float


class BatchLimits(Struct, frozen=True):
    """What a batch may hold and the queue may grow to."""

    queue_rows: int = 4096
    max_rows: int = 32
    """1 runs every row alone."""
    max_tokens: int = 4096
    """Rows × longest row of one batch, padding included. A row above it runs alone."""
    start_tokens: int = 8
    """What starting a run costs, in tokens: the larger, the more padding is worth a common run."""
    wait_seconds: float = 0.0
    """How long an idle instance waits for company."""
    piece_seconds: float = 0.005
    """How long a run should take while rows of several callers come (at least some starts of one); 0 sets no bound."""
    count: Callable[[int], int] | None = None
    """Of batches of a fixed set of shapes: how many rows of one length a batch has. Lengths then share no batch."""


class BatchOrder(Struct, frozen=True):
    """What decides when a request is computed. `deadline` is on the event loop's clock."""

    deadline: float
    lane: Lane = "online"
    caller: str = ""
    """The caller that the rows are charged to; callers take turns."""
    weight: int = 1
    """The caller's weight in deficit round robin: weight 3 gets three times the rows of weight 1."""


class QueuedRequest:
    """One request: rows are `waiting` until a run takes them, `open` until they are answered."""

    __slots__ = ("answers", "future", "open", "order", "since", "waiting")

    def __init__(self, future: asyncio.Future[list[Computed]], order: BatchOrder, count: int, since: float) -> None:
        self.future = future
        self.order = order
        self.answers: list[Computed | None] = [None] * count
        self.open = count
        self.since = since
        self.waiting: dict[int, Entry] = {}

    @property
    def rank(self) -> float:
        """Its place among its caller's requests: narrow ones, and those that have had little, come first."""
        return self.order.deadline + SECONDS_PER_ROW * (len(self.answers) - len(self.waiting))


class PendingRow:
    """One row of a request, at `index` of it."""

    __slots__ = ("asked", "index", "length", "row")

    def __init__(self, asked: QueuedRequest, index: int, row: Row, length: int) -> None:
        self.asked = asked
        self.index = index
        self.row = row
        self.length = length


Entry = tuple[int, float, int, PendingRow]
"""(length, deadline, number, item): sorts by length, then by urgency. Numbers are unique, so items never compare."""
