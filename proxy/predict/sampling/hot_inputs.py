"""Keeps the prepared rows that this process serves most, for `models handover`: in memory only, within a bound.

The cache itself has answers and keys, not inputs. A row is noted once the pipeline has answered it; how hot it is, near
(in-process) knows. Room is made as by CLOCK (Corbató, 1968): the oldest row goes unless near has used its entry; then
it gets another round. Purged rows go at once; those of a purged space are never given, and go within a second.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from functools import partial

import numpy as np
from msgspec import Struct

from foreseen.modelspec.row_records import RowRecord, record_of
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.cache.look_result import LookResult
from foreseen.proxy.cache.near import Near
from foreseen.proxy.cache.waits import Wait
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.types import Answer, Array, Key, Question, Row, Space

ROW_BYTES, TENSOR_BYTES, ITEM_BYTES = 500, 180, 60
"""What a row, one of its tensors and one of its texts take beside the data."""
ROUNDS = 8
"""So many rows at most get another round for one that is added."""
SLICE_ROWS = 256
"""Rows that are looked at in one turn of the event loop: about a millisecond."""
SWEEP_SECONDS = 1.0


class HotRow(Struct, gc=False):
    """A row that is kept, and how often it passed the pipeline."""

    space: Space
    parameters: bytes
    row: Row
    size: int
    passed: int = 1


class HotInputs:
    """The rows of one process."""

    def __init__(self, capacity_bytes: int, near: Near, metrics: ProxyMetrics) -> None:
        self.capacity_bytes, self.bytes = capacity_bytes, 0
        self._near, self._metrics = near, metrics
        self._rows: OrderedDict[Key, HotRow] = OrderedDict()
        self._purges = 0
        self._in_generation: Callable[[Space], Space] = lambda space: space

    def __len__(self) -> int:
        return len(self._rows)

    # What the pipeline offers.

    def offer_rows(
        self, served: ServedModel, question: Question, keys: Sequence[Key], looked: LookResult,
        waits: Mapping[Key, Wait],
    ) -> None:  # fmt: skip
        """Note the rows of a question that was begun: those that near had, and later those that are waited for. Not
        those of jobs, nor of a request that may keep nothing."""
        del served
        if question.options.lane == "background" or "keep" not in question.options.steps:
            return
        for at, key in enumerate(keys):
            known = self._rows.get(key)
            if known is not None:
                known.passed += 1
            elif key in looked.found:
                self._add(question, key, question.rows[at])
            elif key in waits and not waits[key].joined:
                waits[key].future.add_done_callback(partial(self._resolved, question, key, at, self._purges))

    def offer_bypassed(self, served: ServedModel, question: Question, answers: Sequence[Answer]) -> None:
        """Rows that are not cached are not handed over."""

    def _resolved(self, question: Question, key: Key, at: int, purges: int, future: asyncio.Future[Answer]) -> None:
        """A flight has ended. After a purge meanwhile its row is not kept."""
        if future.cancelled() or future.exception() is not None or key in self._rows:
            return
        if purges == self._purges and self._in_generation(question.space) == question.space:
            self._add(question, key, question.rows[at])

    def _add(self, question: Question, key: Key, row: Row) -> None:
        tensors = tuple(np.array(tensor) for tensor in row.tensors)  # they may be views of a whole request's
        size = ROW_BYTES + len(question.parameters) + sum(map(_bytes, tensors))
        if size > self.capacity_bytes:
            return
        self._rows[key] = HotRow(question.space, question.parameters, Row(tensors, row.given), size)
        self.bytes += size
        rounds = ROUNDS
        while self.bytes > self.capacity_bytes:
            oldest, kept = self._rows.popitem(last=False)
            if rounds and oldest != key and self._near.uses(oldest):
                self._rows[oldest] = kept
                rounds -= 1
            else:
                self.bytes -= kept.size

    # Purges.

    def forget(self, keys: Collection[Key] | None) -> None:
        """Purged keys, or everything; rows that are in flight are not kept either."""
        self._purges += 1
        for key in list(self._rows) if keys is None else keys:
            self._drop(key)

    async def follow(self, purged: Callable[[], int], in_generation: Callable[[Space], Space]) -> None:
        """Drop the rows of purged spaces, and set the metrics, for ever. `purged` is the last purge, and
        `in_generation` the same space after it."""
        self._in_generation, swept = in_generation, purged()
        while True:
            last = purged()
            if last != swept:
                swept = last
                async for key, row in self._walked():
                    if in_generation(row.space) != row.space:
                        self._drop(key)
            self._metrics.hot_rows.set(len(self._rows))
            self._metrics.hot_bytes.set(self.bytes)
            await asyncio.sleep(SWEEP_SECONDS)

    def _drop(self, key: Key) -> None:
        row = self._rows.pop(key, None)
        if row is not None:
            self.bytes -= row.size

    # What a handover asks for.

    async def hottest(
        self, model: str, most: int, in_force: Callable[[Space, Row], bool]
    ) -> AsyncIterator[list[RowRecord]]:  # fmt: skip
        """The rows of a model that are asked for most, the hottest first, in pieces. `in_force` is asked for each as it
        is given: a purge meanwhile counts, and so does another way to cut requests into rows."""
        keys, heats = [], []
        async for key, row in self._walked():
            if row.space.model == model:
                keys.append(key)
                heats.append(self._heat(key, row))
        order = np.argsort(-np.array(heats, np.int64), kind="stable")[:most].tolist()
        for start in range(0, len(order), SLICE_ROWS):
            piece = []
            for at in order[start : start + SLICE_ROWS]:
                found = self._rows.get(keys[at])
                if found is not None and in_force(found.space, found.row):
                    piece.append(record_of(found.space.scope, found.row, found.parameters, heats[at]))
            yield piece
            await asyncio.sleep(0)

    def _heat(self, key: Key, row: HotRow) -> int:
        return (self._near.uses(key) or 0) + row.passed

    async def _walked(self) -> AsyncIterator[tuple[Key, HotRow]]:
        """All rows that stay, some in a turn of the event loop."""
        for at, key in enumerate(list(self._rows)):
            row = self._rows.get(key)
            if row is not None:
                yield key, row
            if at % SLICE_ROWS == SLICE_ROWS - 1:
                await asyncio.sleep(0)


def _bytes(tensor: Array) -> int:
    data = tensor.nbytes if tensor.dtype != object else sum(ITEM_BYTES + len(item) for item in tensor.ravel())
    return TENSOR_BYTES + data
