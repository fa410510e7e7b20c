"""Rows of many requests → the next batch: the row whose turn it is, and the rows closest to it in length.

`Lanes` is what the event loop and the instances' threads share, so it has a lock; there is one `Waiting` per lane. It
keeps three orders of the same rows. Deficit round robin finds the caller whose turn it is, a heap for each caller its
most urgent request, and a sorted list of rows by length the neighbours, which are the rows that cost least to pad. A
batch is filled with rows of all callers, each charged for its own, so it is as full as without turns. While several
callers send rows a run is short, and the rows of a wide caller do not join those of a narrower one. Measured on short
texts (MiniLM int8, mean 12.6 tokens): batches in order of arrival 600 rows/s, of neighbours in length 1,190.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heappop, heappush, heapreplace

from msgspec import Struct, structs

from foreseen.fair_order import QUANTUM_ROWS, FairOrder, rows_before
from foreseen.inference.batching.neighbours import RecentCallers, neighbours
from foreseen.inference.batching.queued import BatchLimits, BatchOrder, Entry, PendingRow, QueuedRequest
from foreseen.types import LANES, SECONDS_PER_ROW, Lane, Row

PIECE_STARTS = 6
"""A short run computes at least this many times the tokens that its start costs: starting runs takes at most a seventh
of the time. (MiniLM, rows of 25 tokens: a run of one row takes 4.2 ms, of two 7.3, of three 10.3, of eight 27.)"""


class _Requests:
    """Requests with waiting rows, the smallest rank first. A rank only grows, so a heap entry may be too small."""

    def __init__(self, rank: Callable[[QueuedRequest], float]) -> None:
        self._rank = rank
        self._heap: list[tuple[float, int, QueuedRequest]] = []

    def __iter__(self) -> Iterator[QueuedRequest]:
        return (asked for _, _, asked in self._heap)

    def add(self, asked: QueuedRequest, number: int) -> None:
        heappush(self._heap, (self._rank(asked), number, asked))

    def first(self) -> QueuedRequest | None:
        heap = self._heap
        while heap:
            rank, number, asked = heap[0]
            if not asked.waiting:
                heappop(heap)
            elif self._rank(asked) > rank:
                heapreplace(heap, (self._rank(asked), number, asked))
            else:
                return asked
        return None

    def compact(self, rows: int) -> None:
        """Requests without waiting rows leave the heap only at its top; keep the others from piling up."""
        if len(self._heap) > 2 * rows + 64:
            self._heap = [entry for entry in self._heap if entry[2].waiting]
            heapify(self._heap)


class Waiting:
    """The rows of one lane that no run has taken yet."""

    def __init__(self, quantum: int = QUANTUM_ROWS) -> None:
        """`quantum`: rows of one caller before the next has its turn."""
        self.order = FairOrder(quantum)
        self._by_length: list[Entry] = []
        self._by_deadline = _Requests(lambda asked: asked.order.deadline)
        self._by_caller: dict[str, _Requests] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._by_length)

    @property
    def widest(self) -> int:
        """The largest number of waiting rows of one caller."""
        return max(self.order.waiting.values(), default=0)

    def before(self, order: BatchOrder, count: int) -> int:
        """Number of rows that run before the last of `count` new ones."""
        own, rank = 0, order.deadline + SECONDS_PER_ROW * count
        for asked in self._by_caller.get(order.caller, ()):
            if asked.waiting and asked.order.deadline <= rank:
                own += len(asked.waiting)
        others = (rows for caller, rows in self.order.waiting.items() if caller != order.caller)
        return rows_before(own, count, others)

    def add(self, asked: QueuedRequest, rows: Sequence[Row], lengths: list[int]) -> None:
        caller, first = asked.order.caller, self._number
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            entry = (length, asked.order.deadline, self._number, PendingRow(asked, index, row, length))
            asked.waiting[self._number] = entry
            self._number += 1
            insort(self._by_length, entry)
        self._by_deadline.add(asked, first)
        if caller not in self._by_caller:
            self._by_caller[caller] = _Requests(lambda asked: asked.rank)
        self._by_caller[caller].add(asked, first)
        self.order.add(caller, len(rows), asked.order.weight)

    def drop(self, asked: QueuedRequest) -> None:
        """Forget the rows of a request that no run has taken."""
        rows = len(asked.waiting)
        for entry in asked.waiting.values():
            del self._by_length[bisect_left(self._by_length, entry)]
        asked.waiting.clear()
        self._removed(asked.order.caller, rows)

    def urgent(self) -> QueuedRequest | None:
        """The request with the earliest deadline that has rows waiting."""
        return self._by_deadline.first()

    def take(self, limits: BatchLimits, *, short: bool = False) -> list[PendingRow]:
        """The next batch: a row of the caller whose turn it is, and its neighbours in length. In a `short` run wide
        callers' rows do not join a narrow one's: its row would wait for them."""
        caller = self.order.next()
        asked = None if caller is None else self._by_caller[caller].first()
        if caller is None or asked is None:
            return []
        own, rows = self.order.waiting[caller], self._by_length
        narrow = short and own < min(self.widest, limits.max_rows)
        if narrow:
            rows = self._of_callers_with(own)
        low, high = neighbours(rows, bisect_left(rows, next(iter(asked.waiting.values()))), limits)
        taken = rows[low:high]
        if narrow:
            for entry in taken:
                del self._by_length[bisect_left(self._by_length, entry)]
        else:
            del rows[low:high]
            self.order.quantum = len(taken)  # the next caller has its turn after as many rows as a batch takes now
        for entry in taken:
            del entry[3].asked.waiting[entry[2]]
        for charged, count in Counter(entry[3].asked.order.caller for entry in taken).items():
            self.order.charge(charged, count)
            self._removed(charged, count)
        return [entry[3] for entry in taken]

    def _of_callers_with(self, most: int) -> list[Entry]:
        """By length, the rows of the callers with so many waiting rows at most."""
        callers = [self._by_caller[caller] for caller, rows in self.order.waiting.items() if rows <= most]
        return sorted(entry for requests in callers for asked in requests for entry in asked.waiting.values())

    def _removed(self, caller: str, rows: int) -> None:
        """A number of rows of a caller has left the queue."""
        if not rows:
            return
        self.order.remove(caller, rows)
        left = self.order.waiting.get(caller, 0)
        if left:
            self._by_caller[caller].compact(left)
        else:
            del self._by_caller[caller]
        self._by_deadline.compact(len(self._by_length))


class TakenBatch(Struct, frozen=True):
    """Result of `Lanes.take`: a batch, requests past their deadline, and when to take again if more rows may come."""

    batch: list[PendingRow]
    late: list[QueuedRequest]
    again_at: float | None = None


class Lanes:
    """Both lanes behind one lock, held for microseconds. Online rows go first, and lanes share no batch."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._recent = RecentCallers()
        self.token_seconds = 0.0
        """What a token takes in a run, as measured; 0 before the first one."""
        self._lanes: dict[Lane, Waiting] = {lane: Waiting(limits.max_rows) for lane in LANES}
        self.patient = limits.wait_seconds > 0
        """Whether a batch that is not full waits for more rows."""

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def __repr__(self) -> str:
        return ", ".join(f"{len(waiting)} {lane}" for lane, waiting in self._lanes.items())

    def add(self, asked: QueuedRequest, rows: Sequence[Row], lengths: list[int]) -> None:
        with self._lock:
            self._recent.add((asked.order.lane, asked.order.caller), asked.since)
            self._lanes[asked.order.lane].add(asked, rows, lengths)

    def held(self, order: BatchOrder) -> int:
        """Rows of a caller that wait."""
        with self._lock:
            return self._lanes[order.lane].order.waiting.get(order.caller, 0)

    def before(self, order: BatchOrder, count: int) -> int:
        """Number of rows that run before the last of `count` new ones."""
        with self._lock:
            mine = self._lanes[order.lane].before(order, count)
            return mine if order.lane == "online" else mine + len(self._lanes["online"])

    def drop(self, asked: QueuedRequest) -> None:
        with self._lock:
            self._lanes[asked.order.lane].drop(asked)

    def take(self, now: float, idle: Callable[[], None]) -> TakenBatch:
        """The next batch. If there is none, `idle` is called under the lock, before a row can be added."""
        with self._lock:
            late = self._late(now)
            for waiting in self._lanes.values():
                asked = waiting.urgent()
                if asked is None:
                    continue
                again_at = asked.since + self._limits.wait_seconds
                if self.patient and len(waiting) < self._limits.max_rows and again_at > now:
                    idle()
                    return TakenBatch([], late, again_at)
                limits = self._limits_now(waiting, now)
                return TakenBatch(waiting.take(limits, short=limits is not self._limits), late)
            idle()
            return TakenBatch([], late)

    def _limits_now(self, waiting: Waiting, now: float) -> BatchLimits:
        """While several callers ask and one of them has several rows waiting, a run is so short that another's row need
        not wait long for its end: a run cannot be interrupted."""
        limits = self._limits
        if not (limits.piece_seconds and self.token_seconds and self._recent.several(now)) or waiting.widest < 2:
            return limits
        tokens = max(int(limits.piece_seconds / self.token_seconds), PIECE_STARTS * limits.start_tokens)
        return structs.replace(limits, max_tokens=min(limits.max_tokens, tokens))

    def late(self, now: float) -> list[QueuedRequest]:
        """Drop the requests whose deadline has passed with rows still waiting, and return them."""
        with self._lock:
            return self._late(now)

    def deadline(self) -> float | None:
        """The earliest deadline of a waiting row."""
        with self._lock:
            urgent = [
                asked.order.deadline for waiting in self._lanes.values() if (asked := waiting.urgent()) is not None
            ]
        return min(urgent, default=None)

    def _late(self, now: float) -> list[QueuedRequest]:
        late = []
        for waiting in self._lanes.values():
            while (asked := waiting.urgent()) is not None and asked.order.deadline <= now:
                waiting.drop(asked)
                late.append(asked)
        return late
