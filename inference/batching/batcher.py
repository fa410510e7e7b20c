"""Requests of rows → batches on idle instances → each request's answers.

Work-conserving: an idle instance takes the waiting rows at once; rows that arrive meanwhile form the next batch. Rows
of different requests share batches, and a large request spreads over several. There is no task per row, and none per
request except its caller's.

Each instance has one thread. When a run ends, the thread takes its next batch itself, without waiting for the event
loop (measured with 64 clients on 2 busy cores: that wait had a median of 1.5 ms between runs of 8 ms). The loop wakes
idle instances only. Futures are touched on the loop only.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue

import structlog

from foreseen.errors import DeadlineExceeded, ForeseenError, ModelFailed, ModelUnavailable, Overloaded
from foreseen.fair_order import has_room
from foreseen.inference.batching.queued import (
    BatchLimits,
    BatchOrder,
    BatchRunner,
    Computed,
    Meter,
    PendingRow,
    QueuedRequest,
)
from foreseen.inference.batching.waiting import Lanes
from foreseen.modelspec.row_outputs import RowOutputs
from foreseen.types import Row

NEWEST_SHARE = 0.2
"""Weight of the newest run in the expected time of a row."""
CAUTION = 1.5
"""Safety factor on the expected time: without it, rows admitted just in time are late as soon as one run is slow."""
_log = structlog.get_logger()

_now = time.monotonic
"""The event loop's clock, asyncio's and uvloop's; uvloop's own `time()` is cached and in whole milliseconds."""


class _Ran:
    """The outcome of a batch: per row its outputs or the error, and seconds of compute."""

    __slots__ = ("outcomes", "seconds", "shares")

    def __init__(self, outcomes: Sequence[RowOutputs | ForeseenError], shares: Sequence[float]) -> None:
        self.outcomes = outcomes
        self.shares = shares
        self.seconds = sum(shares)


class _Instance:
    """One thread that runs one batch at a time. `inbox` wakes it with a batch, None ends it."""

    def __init__(self, runner: BatchRunner, number: int, batcher: Batcher) -> None:
        self.inbox: SimpleQueue[list[PendingRow] | None] = SimpleQueue()
        self._runner = runner
        self._batcher = batcher
        self.thread = threading.Thread(target=self._work, name=f"instance-{number}", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while (batch := self.inbox.get()) is not None:
            while batch:
                started = _now()
                ran = _run(self._runner, [item.row for item in batch])
                batch = self._batcher.ended(self, batch, started, ran)


class Batcher:
    """Batches requests and answers them. Made on a running event loop; `close` ends its threads."""

    def __init__(
        self,
        runners: Sequence[BatchRunner],
        length: Callable[[Row], int],
        limits: BatchLimits,
        meter: Meter | None = None,
    ) -> None:
        self._length = length
        self._limits = limits
        self._meter = meter
        self._loop = asyncio.get_running_loop()
        self._lanes = Lanes(limits)
        self._idle = [_Instance(runner, number, self) for number, runner in enumerate(runners)]
        self._instances = tuple(self._idle)
        self._dispatching = False
        self._row_seconds = 0.0
        """Seconds a row takes under load, or less, over all instances; 0 before the first run."""
        self._alarm: asyncio.TimerHandle | None = None
        self._company: asyncio.TimerHandle | None = None
        self._closing = False
        self._drained = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Batcher {self._lanes!r} waiting, {self.running} of {len(self._instances)} instances running>"

    @property
    def waiting(self) -> int:
        """Rows that no run has taken yet."""
        return len(self._lanes)

    @property
    def running(self) -> int:
        """Instances with a batch."""
        return len(self._instances) - len(self._idle)

    async def predict(self, rows: Sequence[Row], order: BatchOrder) -> list[Computed]:
        """Every row's answer, in order.

        Rows that no run has started by the deadline, or whose caller has disconnected, never run. Rows in a run are
        finished and answered even if late: the proxy caches them.

        Raises Overloaded at once if the queue is full or the deadline cannot be met, DeadlineExceeded, ModelUnavailable
        after `close`, and ModelFailed (or the runner's own ForeseenError) where a row fails alone too.
        """
        if not rows:
            return []
        asked = self.submit(rows, order)
        try:
            return await asked.future
        except asyncio.CancelledError:
            self.drop(asked)
            raise

    def submit(self, rows: Sequence[Row], order: BatchOrder) -> QueuedRequest:
        """`predict` without waiting: `future` gets the answers of the request. Raises Overloaded, DeadlineExceeded,
        ModelUnavailable."""
        now = _now()
        self._admit(len(rows), order, now)
        asked = QueuedRequest(self._loop.create_future(), order, len(rows), now)
        self._lanes.add(asked, rows, [self._length(row) for row in rows])
        self._dispatch_soon()
        self._wake_at(order.deadline)
        return asked

    def drop(self, asked: QueuedRequest) -> None:
        """Forget the rows of a request that no run has taken: its caller is gone."""
        self._lanes.drop(asked)

    async def close(self) -> None:
        """Refuse new requests, finish the accepted ones, end the threads."""
        self._closing, self._lanes.patient = True, False
        self._dispatch()
        await self._drained.wait()
        for instance in self._instances:
            instance.inbox.put(None)
        for instance in self._instances:
            await asyncio.to_thread(instance.thread.join)
        for timer in (self._alarm, self._company):
            if timer is not None:
                timer.cancel()

    def _admit(self, count: int, order: BatchOrder, now: float) -> None:
        if self._closing:
            raise ModelUnavailable("the model process is stopping")
        if order.deadline <= now:
            raise DeadlineExceeded("the deadline had passed when the request arrived")
        waiting = self.waiting
        if waiting and not has_room(self._lanes.held(order), count, self._limits.queue_rows - waiting):
            # An empty queue takes any request: one that is larger than the queue would otherwise never be served.
            raise Overloaded(f"{waiting} rows are waiting and the limit is {self._limits.queue_rows}")
        if waiting and self._row_seconds:
            # Rows that wait until they are too late would each take the place of one that could still make it.
            before = self._lanes.before(order, count)
            late = CAUTION * (before + count) * self._row_seconds - (order.deadline - now)
            if late > 0:
                raise Overloaded("the model cannot answer before the deadline", retry_after=math.ceil(late))

    def _dispatch_soon(self) -> None:
        """Dispatch after this turn of the loop, so that rows of one turn share a batch."""
        if self._idle and not self._dispatching:
            self._dispatching = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        """Wake idle instances with batches."""
        self._dispatching = False
        while self._idle:
            instance = self._idle.pop()
            batch = self._take(instance)
            if not batch:
                break
            instance.inbox.put(batch)
        if self._closing and not self.running and not self.waiting:
            self._drained.set()

    def _take(self, instance: _Instance) -> list[PendingRow]:
        """The instance's next batch. If there is none, the instance becomes idle. Runs on the event loop."""
        taken = self._lanes.take(_now(), lambda: self._idle.append(instance))
        _too_late(taken.late)
        if taken.again_at is not None:
            if self._company is not None:
                self._company.cancel()
            self._company = self._loop.call_at(taken.again_at, self._dispatch)
        return taken.batch

    def ended(self, instance: _Instance, batch: list[PendingRow], started: float, ran: _Ran) -> list[PendingRow]:
        """End a run; the instance's next batch, if any is waiting. In the instance's thread."""
        for item, outcome in zip(batch, ran.outcomes, strict=True):
            if isinstance(outcome, ForeseenError):
                self._lanes.drop(item.asked)  # before its other rows become the next batch
        taken = self._lanes.take(_now(), lambda: self._idle.append(instance))
        self._loop.call_soon_threadsafe(self._on_ended, batch, started, ran, taken.late)
        return taken.batch

    def _wake_at(self, deadline: float) -> None:
        """One timer, for the earliest deadline: a busy instance must not keep late requests from their answer."""
        if self._alarm is None or deadline < self._alarm.when():
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = self._loop.call_at(deadline, self._on_alarm)

    def _on_alarm(self) -> None:
        self._alarm = None
        _too_late(self._lanes.late(_now()))
        deadline = self._lanes.deadline()
        if deadline is not None:
            self._wake_at(deadline)

    def _on_ended(self, batch: list[PendingRow], started: float, ran: _Ran, late: list[QueuedRequest]) -> None:
        """Deliver the answers, then dispatch again, since an idle instance may have work now."""
        _too_late(late)
        waits = [max(started - item.asked.since, 0.0) for item in batch]
        if self._meter is not None:
            failed = sum(isinstance(outcome, ForeseenError) for outcome in ran.outcomes)
            self._meter.ran(len(batch), failed, _padding(batch), waits, ran.seconds)
        each = ran.seconds / len(batch) / len(self._instances)
        if self.waiting or each < self._row_seconds:  # what was slow once, and refused others, may be quick again
            self._row_seconds += (each - self._row_seconds) * (NEWEST_SHARE if self._row_seconds else 1.0)
        self._lanes.token_seconds += self._token_share(batch, ran)
        for item, outcome, share, wait in zip(batch, ran.outcomes, ran.shares, waits, strict=True):
            if isinstance(outcome, ForeseenError):
                _fail(item.asked, outcome)
            else:
                _give(item, Computed(outcome, share, wait))
        self._dispatch()

    def _token_share(self, batch: list[PendingRow], ran: _Ran) -> float:
        """What a run adds to the measured time of a token."""
        tokens = self._limits.start_tokens + len(batch) * max(item.length for item in batch)
        known = self._lanes.token_seconds
        return (ran.seconds / max(tokens, 1) - known) * (NEWEST_SHARE if known else 1.0)


def _run(runner: BatchRunner, rows: list[Row]) -> _Ran:
    """One run; if it fails, each row alone once, so that one poisoned row fails its own request and no other."""
    started = time.perf_counter()
    try:
        outputs = runner.run(rows)
        if len(outputs) != len(rows):
            raise ModelFailed(f"the model answered {len(outputs)} rows to {len(rows)}")
    except Exception as error:  # noqa: BLE001 -- whatever it is, it belongs to these rows and not to the thread
        seconds = time.perf_counter() - started
        if len(rows) == 1:
            return _Ran([_as_failure(error)], [seconds])
        _log.warning("batch failed; its rows run alone", rows=len(rows), error=type(error).__name__)
        alone = [_run(runner, [row]) for row in rows]
        return _Ran([ran.outcomes[0] for ran in alone], [ran.seconds for ran in alone])
    share = (time.perf_counter() - started) / len(rows)
    return _Ran(outputs, [share] * len(rows))


def _as_failure(error: Exception) -> ForeseenError:
    if isinstance(error, ForeseenError):
        return error
    _log.error("run failed", error=type(error).__name__)  # its text may hold values of the input
    return ModelFailed("the model could not compute this input")


def _padding(batch: list[PendingRow]) -> int:
    """Padding tokens of a batch."""
    lengths = [item.length for item in batch]
    return len(lengths) * max(lengths) - sum(lengths)


def _give(item: PendingRow, computed: Computed) -> None:
    asked = item.asked
    asked.answers[item.index] = computed
    asked.open -= 1
    if not asked.open and not asked.future.done():
        asked.future.set_result([answer for answer in asked.answers if answer is not None])


def _fail(asked: QueuedRequest, error: ForeseenError) -> None:
    if not asked.future.done():
        asked.future.set_exception(error)


def _too_late(late: list[QueuedRequest]) -> None:
    for asked in late:
        _fail(asked, DeadlineExceeded("the deadline passed in the model's queue"))
