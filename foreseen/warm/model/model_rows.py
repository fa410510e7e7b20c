"""Sends rows to a model at the lowest priority: rows of similar length together, in requests of a given compute time,
two in flight. A refused request is halved until the row at fault is alone.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from foreseen.errors import BadInput, ModelFailed, SetupError, TooLarge
from foreseen.modelspec.row_outputs import split_outputs
from foreseen.modelspec.rows import stack, tokens
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.tensors import raw_of
from foreseen.types import Key, Output, Prediction, Row
from foreseen.warm.model.client import V2Client
from foreseen.warm.plan import Plan

FIRST_ROWS = 32
"""Rows of the first request, before it is known how long a row takes."""
MAX_ROWS = 4096
UNDER_WAY = 2

Rows = dict[Key, tuple[Row, bytes]]
"""One row of each key, with its parameters."""
Keep = Callable[[Mapping[Key, Prediction]], dict[Key, str]]
"""Keeps the answers of one request; of those that it does not keep, why."""


class ModelRows:
    """One model process or server, asked as a plan says. Its answers carry the plan's digest and lifetime."""

    def __init__(self, plan: Plan, address: str, *, checked: bool = True) -> None:
        """`checked`: the model says its digest with every answer, and it must be the plan's."""
        self._plan, self._checked = plan, checked
        self._signature = plan.manifest.model
        self._client = V2Client(address, plan.manifest.name, plan.patience_seconds)
        self._threads = ThreadPoolExecutor(UNDER_WAY, thread_name_prefix="model")
        self._lock = threading.Lock()
        self._row_seconds: float | None = None
        self._not_before = 0.0

    def close(self) -> None:
        self._threads.shutdown()
        self._client.close()

    def ask(
        self, keys: Sequence[Key], waiters: Rows, keep: Keep | None = None, *, held: bool = True
    ) -> tuple[dict[Key, Prediction], dict[Key, str]]:
        """The answers, and why there is none; `held` to the plan's rate. Raises SetupError."""
        # Shortest first within one set of parameters: neighbours in length need least padding.
        queue = sorted(keys, key=lambda key: (waiters[key][1], tokens(waiters[key][0], self._signature)))
        made: dict[Key, Prediction] = {}
        failed: dict[Key, str] = {}
        flying: list[Future[None]] = []
        at = 0
        try:
            while at < len(queue):
                size = self._size(len(queue) - at)
                part = [key for key in queue[at : at + size] if waiters[key][1] == waiters[queue[at]][1]]
                at += len(part)
                if len(flying) == UNDER_WAY:
                    flying.pop(0).result()
                if held:
                    self._wait_turn(len(part))
                flying.append(self._threads.submit(self._part, part, waiters, made, failed, keep))
        finally:
            for one in flying:
                one.result()
        return made, failed

    def _size(self, left: int) -> int:
        """How many rows the model computes in `batch_ms`, as far as measured; the last rows are split evenly."""
        seconds = self._row_seconds
        most = FIRST_ROWS if not seconds else int(self._plan.batch_ms / 1000 / seconds)
        if self._plan.rows_per_second is not None:
            most = min(most, max(1, int(self._plan.rows_per_second)))
        return min(max(most, 1), MAX_ROWS, left)

    def _part(
        self,
        keys: Sequence[Key],
        waiters: Rows,
        made: dict[Key, Prediction],
        failed: dict[Key, str],
        keep: Keep | None,
    ) -> None:
        """One request; if it is refused, its halves, down to the row that is wrong."""
        rows = [waiters[key][0] for key in keys]
        try:
            predictions = self._predict(rows, waiters[keys[0]][1])
        except (BadInput, TooLarge, ModelFailed) as error:
            if len(keys) == 1:
                failed[keys[0]] = str(error)
                return
            half = len(keys) // 2
            self._part(keys[:half], waiters, made, failed, keep)
            self._part(keys[half:], waiters, made, failed, keep)
            return
        answered = dict(zip(keys, predictions, strict=True))
        if keep is not None:
            failed.update(keep(answered))
        made.update(answered)

    def _wait_turn(self, rows: int) -> None:
        """Keep to the rate: wait until so many rows are due."""
        if self._plan.rows_per_second is None:
            return
        with self._lock:
            now = time.monotonic()
            wait = self._not_before - now
            self._not_before = max(now, self._not_before) + rows / self._plan.rows_per_second
        if wait > 0:
            time.sleep(wait)

    def _predict(self, rows: Sequence[Row], parameters: bytes) -> list[Prediction]:
        batch = stack(rows, self._signature)
        asked = [(i.name, i.datatype, batch[i.name]) for i in self._signature.inputs]
        reply = self._client.infer(asked, parameters)
        if self._checked and reply.response.parameters.get("digest") != self._plan.digest:
            raise SetupError("the model changed during the run; run the same command again for the new one")
        reported = reply.response.parameters.get("seconds")
        each = float(reported) if isinstance(reported, int | float) else reply.seconds / len(rows)
        outputs = {tensor.name: tensor.array for tensor in reply.response.outputs}
        answered = split_outputs(outputs, rows, self._signature)
        self._row_seconds = each if self._row_seconds is None else (self._row_seconds + each) / 2
        now, plan = time.time(), self._plan
        predictions = []
        for arrays in answered:
            heads = tuple(
                Output(s.name, s.datatype, a.shape) for s, a in zip(self._signature.outputs, arrays, strict=True)
            )
            data = tuple(raw_of(a, DATATYPES[h.datatype]) for h, a in zip(heads, arrays, strict=True))
            life = plan.ttl_seconds * random.uniform(1 - plan.jitter, 1 + plan.jitter)  # noqa: S311 - spreads expiry
            predictions.append(Prediction(heads, data, plan.digest, now, now + life, each))
        return predictions
