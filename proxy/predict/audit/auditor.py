"""The audit of hits: rows that a cache answered are computed again in the background, and compared.

    draw      rows of hits, uniformly (`draws.py`); the pipeline and the responder offer them
    compute   one row at a time, in the background lane, by the model in force
    compare   bit for bit, or within what the model declares (`same_answer.py`)
    remove    an entry that differs goes from every near and from far, and its key is logged

Nothing waits for an audit, and it holds so many rows and bytes at most: what does not fit is counted as dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import orjson
import structlog
from msgspec import structs

from foreseen.errors import FarError, ForeseenError
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.predict.answer_cache import Lookup
from foreseen.proxy.predict.answer_memory import CachedBody
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.audit.draws import DistinctKeys, Draws, RowBudget
from foreseen.proxy.predict.audit.same_answer import same_answer
from foreseen.proxy.predict.dialects import codecs
from foreseen.proxy.predict.dialects.decode import prepared
from foreseen.proxy.predict.serve import Server
from foreseen.telemetry.metrics import AUDIT_OUTCOMES, ProxyMetrics
from foreseen.types import Key, Prediction, Question, RequestOptions, Row, Space

log = structlog.get_logger()

WAITING_ROWS, WAITING_BYTES = 64, 16 * 2**20
COMPUTE_SECONDS = 30.0
REPEATS = 2
"""So often a row is computed again once its cached answer differs: a model that differs from itself says nothing of it.
"""
PURGE_SECONDS = 5.0
KEY_DIGITS = 16
DIFFERENCES_FILE, DIFFERENCES_BYTES = "audit-differences.jsonl", 256 * 1024


class Drawn(NamedTuple):
    """A row whose answer is audited."""

    served: ServedModel
    space: Space
    parameters: bytes
    key: Key
    row: Row
    answered: Prediction

    @property
    def size(self) -> int:
        return sum(tensor.nbytes for tensor in self.row.tensors) + sum(map(len, self.answered.data))


class EntryRemover(Protocol):
    """Removes entries from all proxies."""

    async def purge(self, kind: Literal["key"], what: str, seconds: float) -> object: ...


class Auditor:
    """Audits the hits of one proxy process."""

    def __init__(self, metrics: ProxyMetrics, draws: Draws, budget: RowBudget, data: Path | None = None) -> None:
        """Differences are noted in a file under `data`, for `foreseen audit`."""
        self.draws = draws
        self._metrics, self._budget, self._data = metrics, budget, data
        self._waiting: asyncio.Queue[Drawn] = asyncio.Queue(WAITING_ROWS)
        self._bytes = 0
        self._distinct: dict[str, DistinctKeys] = {}
        self._server: Server

    def granted(self, model: str, rows: Sequence[int]) -> Sequence[int]:
        """Those of the drawn rows that the budget allows; the others are counted as dropped."""
        self._expect(model)
        taken = self._budget.take(len(rows))
        if taken < len(rows):
            self._metrics.audited.labels(model, "dropped").inc(len(rows) - taken)
        return rows[:taken]

    def add(self, drawn: Drawn) -> None:
        """Audit a row later. Its arrays are copied: they may be views of a whole request's."""
        size = drawn.size
        if self._waiting.full() or self._bytes + size > WAITING_BYTES:
            self._metrics.audited.labels(drawn.space.model, "dropped").inc()
            return
        row = Row(tuple(np.array(tensor) for tensor in drawn.row.tensors), drawn.row.given)
        self._bytes += size
        self._waiting.put_nowait(drawn._replace(row=row))

    def offer_body(self, entry: CachedBody) -> None:
        """The rows of a known body that was answered by its cached reply, where one of them is drawn."""
        drawn, facts = self.draws.of(len(entry.rows)), entry.facts
        if not drawn or facts is None:
            return
        model, scope = entry.meaning[0], entry.meaning[4]
        space = Space(scope, model, facts.digest, entry.generation or 0)
        for at in self.granted(model, drawn):
            key, answered = entry.rows[at]
            self.add(Drawn(entry.served, space, entry.decoded.parameters, key, entry.prepared.rows[at], answered))

    def offer_template(self, head: RequestHead, served: ServedModel, lookup: Lookup, rows: int) -> None:
        """The rows of a body that was answered by its template. One that is drawn is decoded once the reply is sent."""
        drawn = self.draws.of(rows)
        granted = self.granted(head.model, drawn) if drawn else ()
        if granted:
            asyncio.get_running_loop().call_soon(partial(self._decode, head, served, lookup, granted))

    def _decode(self, head: RequestHead, served: ServedModel, lookup: Lookup, places: Sequence[int]) -> None:
        """What the template left out: rows and keys, as the normal way makes them."""
        server = self._server
        try:
            decoded = codecs.decode(structs.replace(head, header_length=lookup.meaning[2]), lookup.text, served)
            decoded, rows = prepared(decoded, served.preparer())
            space = server.space(served, head.tenant.scope)
        except ForeseenError:
            self._metrics.audited.labels(head.model, "failed").inc(len(places))
            return
        wanted = [rows[at] for at in places]
        keys = server.pipeline.tiers.keys(space, served.framer, wanted, decoded.parameters)
        for key, row in zip(keys, wanted, strict=True):
            answered = server.pipeline.tiers.near.peek(key)
            if answered is None:
                self._metrics.audited.labels(head.model, "not-comparable").inc()
            else:
                self.add(Drawn(served, space, decoded.parameters, key, row, answered))

    async def follow(self, server: Server, remover: EntryRemover, models: Iterable[str] = ()) -> None:
        """Audit what is drawn, for ever."""
        self._server = server
        for model in models:
            self._expect(model)
        while True:
            drawn = await self._waiting.get()
            self._bytes -= drawn.size
            try:
                outcome = await self._outcome(drawn, remover)
            except ForeseenError:
                outcome = "failed"
            except Exception as error:
                log.exception("audit: row failed", model=drawn.space.model, error=type(error).__name__)
                outcome = "failed"
            self._metrics.audited.labels(drawn.space.model, outcome).inc()

    def _expect(self, model: str) -> None:
        """Show what may happen before it does: an alert on an increase needs a zero to start from."""
        if model in self._distinct:
            return
        self._distinct[model] = DistinctKeys()
        for outcome in AUDIT_OUTCOMES:
            self._metrics.audited.labels(model, outcome)
        self._metrics.audit_distinct.labels(model)
        self._metrics.audit_unrepeatable.labels(model)

    async def _outcome(self, drawn: Drawn, remover: EntryRemover) -> str:
        """Compute and compare one row. Raises what the model raises."""
        served, space, key = drawn.served, drawn.space, drawn.key
        if not self._server.in_force(served, space):
            return "not-comparable"
        fresh = await self._computed(drawn)
        if fresh.digest != space.digest:
            return "not-comparable"
        distinct = self._distinct[space.model]
        distinct.add(key)
        self._metrics.audit_distinct.labels(space.model).set(distinct.count)
        if same_answer(served, drawn.answered, fresh):
            return "equal"
        for _ in range(REPEATS):
            again = await self._computed(drawn)
            if again.digest != space.digest:
                return "not-comparable"
            if not same_answer(served, fresh, again):
                log.warning("audit: model is not repeatable", model=space.model, digest=space.digest[:12])
                self._metrics.audit_unrepeatable.labels(space.model).set(1)
                return "not-comparable"
        log.error("audit: entry differs", model=space.model, digest=space.digest[:12], key=key.hex()[:KEY_DIGITS])
        self._note(space, key)
        await self._remove(key, remover)
        return "different"

    async def _computed(self, drawn: Drawn) -> Prediction:
        deadline = asyncio.get_running_loop().time() + COMPUTE_SECONDS
        question = Question(drawn.space, (drawn.row,), RequestOptions(deadline, "background"), drawn.parameters)
        return (await self._server.pipeline.bypass(question))[0].prediction

    async def _remove(self, key: Key, remover: EntryRemover) -> None:
        """From this process and far at once; from the other proxies through the state store, where there is one."""
        pipeline = self._server.pipeline
        await pipeline.forget({key: pipeline.tiers.clock()})
        try:
            await pipeline.tiers.delete_far([key])
            await remover.purge("key", key.hex(), PURGE_SECONDS)
        except (FarError, ForeseenError) as error:
            log.warning("audit: entry not removed everywhere", key=key.hex()[:KEY_DIGITS], error=type(error).__name__)

    def _note(self, space: Space, key: Key) -> None:
        """One line in a file of bounded size; without a place for it, the log has it all the same."""
        if self._data is None:
            return
        where = {"model": space.model, "digest": space.digest[:12], "key": key.hex()[:KEY_DIGITS]}
        line = {"at": int(time.time())} | where
        try:
            with (self._data / DIFFERENCES_FILE).open("ab") as file:
                if file.tell() < DIFFERENCES_BYTES:
                    file.write(orjson.dumps(line) + b"\n")
        except OSError as error:
            log.warning("audit: difference not noted", error=error.strerror)
