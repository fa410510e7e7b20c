"""Requests of rows → batches on idle instances → each request's answers.

Work-conserving: an idle instance takes what is waiting at once; what arrives meanwhile is the next batch. Rows of
different requests share batches and a large request spreads over several. There is no task per row, and none per
request but its caller's own.

Everything but `Runner.run` happens on the event loop, so there are no locks; each instance has one thread, which gets
batches from a queue and hands results back with `call_soon_threadsafe`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Protocol

import structlog

from foreseen.errors import DeadlineExceeded, ForeseenError, ModelFailed, ModelUnavailable, Overloaded
from foreseen.nouns import Lane, Row
from foreseen.rows import RowOutputs
from inference.waiting import Asked, Computed, Item, Limits, Waiting

_log = structlog.get_logger()


class Runner(Protocol):
    """What computes: called from one thread per instance, so possibly from several at once."""

    def run(self, rows: Sequence[Row], /) -> list[RowOutputs]: ...


class Meter(Protocol):
    """Who wants to know about runs. Called on the event loop, before the answers are given out."""

    def ran(self, rows: int, failed: int, padding: int, waits: Sequence[float], seconds: float) -> None:
        """A batch of `rows`, of which `failed` could not be computed; `waits` are their times in the queue."""


class _Ran:
    """What became of a batch: per row its outputs or the error, and seconds of compute."""

    __slots__ = ("outcomes", "seconds", "shares")

    def __init__(self, outcomes: Sequence[RowOutputs | ForeseenError], shares: Sequence[float]) -> None:
        self.outcomes = outcomes
        self.shares = shares
        self.seconds = sum(shares)


class _Instance:
    """One thread that runs one batch at a time. `inbox` takes batches, None ends the thread."""

    def __init__(self, runner: Runner, number: int, done: Callable[[_Instance, list[Item], float, _Ran], None]) -> None:
        self.inbox: SimpleQueue[list[Item] | None] = SimpleQueue()
        self._runner = runner
        self._done = done
        self._loop = asyncio.get_running_loop()
        self.thread = threading.Thread(target=self._work, name=f"instance-{number}", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while (batch := self.inbox.get()) is not None:
            started = time.monotonic()  # the event loop's clock
            ran = _run(self._runner, [item.row for item in batch])
            self._loop.call_soon_threadsafe(self._done, self, batch, started, ran)


class Batcher:
    """Takes requests, gives answers. Made on a running event loop; `close` it to end its threads."""

    def __init__(
        self, runners: Sequence[Runner], length: Callable[[Row], int], limits: Limits, meter: Meter | None = None
    ) -> None:
        self._length = length
        self._limits = limits
        self._meter = meter
        self._loop = asyncio.get_running_loop()
        self._lanes: dict[Lane, Waiting] = {"online": Waiting(), "background": Waiting()}
        self._idle = [_Instance(runner, number, self._on_done) for number, runner in enumerate(runners)]
        self._instances = tuple(self._idle)
        self._dispatching = False
        self._alarm: asyncio.TimerHandle | None = None
        self._company: asyncio.TimerHandle | None = None
        self._closing = False
        self._drained = asyncio.Event()

    def __repr__(self) -> str:
        lanes = ", ".join(f"{len(waiting)} {lane}" for lane, waiting in self._lanes.items())
        return f"<Batcher {lanes} waiting, {self.running} of {len(self._instances)} instances running>"

    @property
    def waiting(self) -> int:
        """Rows that no run has taken yet."""
        return sum(map(len, self._lanes.values()))

    @property
    def running(self) -> int:
        """Instances with a batch."""
        return len(self._instances) - len(self._idle)

    async def predict(self, rows: Sequence[Row], deadline: float, lane: Lane = "online") -> list[Computed]:
        """Every row's answer, in order. `deadline` is on the event loop's clock.

        Work that no run has taken by its deadline, or whose asker has left, never runs; what has been started is
        finished, and answered even if it is late: whoever keeps answers wants it.

        Raises Overloaded at once where the queue is full, DeadlineExceeded, ModelUnavailable after `close`, and
        ModelFailed (or the runner's own ForeseenError) where a row fails alone too.
        """
        if not rows:
            return []
        now = self._loop.time()
        self._admit(len(rows), deadline, now)
        asked = Asked(self._loop.create_future(), self._lanes[lane], len(rows), now, deadline)
        asked.lane.add(asked, rows, [self._length(row) for row in rows])
        self._dispatch_soon()
        self._wake_at(deadline)
        try:
            return await asked.future
        except asyncio.CancelledError:
            asked.lane.drop(asked)
            raise

    async def close(self) -> None:
        """Refuse what comes, finish what is here, end the threads."""
        self._closing = True
        self._dispatch()
        await self._drained.wait()
        for instance in self._instances:
            instance.inbox.put(None)
        for instance in self._instances:
            await asyncio.to_thread(instance.thread.join)
        for timer in (self._alarm, self._company):
            if timer is not None:
                timer.cancel()

    def _admit(self, count: int, deadline: float, now: float) -> None:
        if self._closing:
            raise ModelUnavailable("the model process is stopping")
        if deadline <= now:
            raise DeadlineExceeded("the deadline had passed when the request arrived")
        waiting = self.waiting
        if waiting and waiting + count > self._limits.queue_rows:
            # An empty queue takes any request: one that is larger than the queue would otherwise never be served.
            raise Overloaded(f"{waiting} rows are waiting and the limit is {self._limits.queue_rows}")

    def _dispatch_soon(self) -> None:
        """After this turn of the loop, so that rows which arrive in one turn board one batch."""
        if self._idle and not self._dispatching:
            self._dispatching = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatching = False
        while self._idle and (batch := self._next_batch()):
            self._idle.pop().inbox.put(batch)
        if self._closing and not self.running and not self.waiting:
            self._drained.set()

    def _next_batch(self) -> list[Item]:
        self._expire()
        for waiting in self._lanes.values():  # online first
            asked = waiting.urgent()
            if asked is None:
                continue
            if len(waiting) < self._limits.max_rows and self._waits_for_company(asked.since):
                return []
            return waiting.take(self._limits)
        return []

    def _waits_for_company(self, since: float) -> bool:
        until = since + self._limits.wait_seconds
        if self._closing or self._limits.wait_seconds <= 0 or until <= self._loop.time():
            return False
        if self._company is not None:
            self._company.cancel()
        self._company = self._loop.call_at(until, self._dispatch)
        return True

    def _expire(self) -> None:
        """Answer the requests whose deadline has passed with rows still waiting."""
        now = self._loop.time()
        for waiting in self._lanes.values():
            while (asked := waiting.urgent()) is not None and asked.deadline <= now:
                waiting.drop(asked)
                _fail(asked, DeadlineExceeded("the deadline passed in the model's queue"))

    def _wake_at(self, deadline: float) -> None:
        """One timer, for the earliest deadline: a busy instance must not keep late requests from their answer."""
        if self._alarm is None or deadline < self._alarm.when():
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = self._loop.call_at(deadline, self._on_alarm)

    def _on_alarm(self) -> None:
        self._alarm = None
        self._expire()
        for waiting in self._lanes.values():
            if (asked := waiting.urgent()) is not None:
                self._wake_at(asked.deadline)

    def _on_done(self, instance: _Instance, batch: list[Item], started: float, ran: _Ran) -> None:
        """The instance gets its next batch first: giving out answers takes longer than an idle thread should wait."""
        self._idle.append(instance)
        self._dispatch()
        waits = [max(started - item.asked.since, 0.0) for item in batch]
        if self._meter is not None:
            failed = sum(isinstance(outcome, ForeseenError) for outcome in ran.outcomes)
            self._meter.ran(len(batch), failed, _padding(batch), waits, ran.seconds)
        for item, outcome, share, wait in zip(batch, ran.outcomes, ran.shares, waits, strict=True):
            if isinstance(outcome, ForeseenError):
                item.asked.lane.drop(item.asked)
                _fail(item.asked, outcome)
            else:
                _give(item, Computed(outcome, share, wait))


def _run(runner: Runner, rows: list[Row]) -> _Ran:
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
        _log.warning("batch failed, its rows run alone", rows=len(rows), error=type(error).__name__)
        alone = [_run(runner, [row]) for row in rows]
        return _Ran([ran.outcomes[0] for ran in alone], [ran.seconds for ran in alone])
    share = (time.perf_counter() - started) / len(rows)
    return _Ran(outputs, [share] * len(rows))


def _as_failure(error: Exception) -> ForeseenError:
    if isinstance(error, ForeseenError):
        return error
    _log.error("run failed", error=type(error).__name__)  # its text may hold values of the input
    return ModelFailed("the model could not compute this input")


def _padding(batch: list[Item]) -> int:
    """Tokens of the batch that are nobody's."""
    lengths = [item.length for item in batch]
    return len(lengths) * max(lengths) - sum(lengths)


def _give(item: Item, computed: Computed) -> None:
    asked = item.asked
    asked.answers[item.index] = computed
    asked.open -= 1
    if not asked.open and not asked.future.done():
        asked.future.set_result([answer for answer in asked.answers if answer is not None])


def _fail(asked: Asked, error: ForeseenError) -> None:
    if not asked.future.done():
        asked.future.set_exception(error)
