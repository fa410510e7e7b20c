"""Poison isolation: finds the rows that a model refuses or that crash its process, so that other rows get answers.

A request holds rows of many callers. Where the model refuses one (4xx, 5xx), its halves are asked, so that one bad row
of 64 is found with 12 requests. Where the process ends, its rows are asked one by one, each alone in the process; a row
that ends it alone twice is kept in quarantine (`quarantine.py`) and refused for a while. Proxies that share a Redis try
suspected rows of one model one at a time (`isolation.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog

from foreseen.errors import BadInput, DeadlineExceeded, ForeseenError, ModelFailed, ModelUnavailable, TooLarge
from foreseen.proxy.backend.model_client import ConnectionBroke, WrongReply
from foreseen.proxy.backend.poison.isolation import IsolationLock
from foreseen.proxy.backend.poison.quarantine import Quarantine
from foreseen.proxy.backend.retry_budget import RetryBudget
from foreseen.types import Prediction, RequestOptions, Row

log = structlog.get_logger()

Outcome = Prediction | ForeseenError
Ask = Callable[[Sequence[Row], bytes, RequestOptions], Awaitable[list[Prediction]]]
"""One request as it is, one prediction per row. Raises ConnectionBroke where its rows may have ended the process."""
FirstAsk = Callable[[], Awaitable[list[Prediction]]]
AskRows = Callable[[Sequence[Row], bytes, RequestOptions], Awaitable[list[Outcome]]]
SPLITS = 32.0
"""Requests that may be sent beyond those that were asked for, to find the rows that the model refuses: one of 64 is
found with 12. Where the model refuses everything, what is sent grows by a tenth."""
RETURN_SECONDS = (0.02, 0.2)
"""Between two looks whether a process is back."""


class PoisonIsolation:
    """Of one model: sends its requests, and isolates the rows that they fail by."""

    def __init__(
        self, model: str, ask: Ask, check: Callable[[], Awaitable[Any]], quarantine: Quarantine, lock: IsolationLock
    ) -> None:
        """`check` raises ModelUnavailable unless the process is there and ready."""
        self.quarantine = quarantine
        self._model = model
        self._ask = ask
        self._check = check
        self._lock = lock
        self._retries, self._splits = RetryBudget(), RetryBudget(SPLITS)

    def sent(self) -> None:
        """A request is about to be sent, which earns its share of the budgets for repetitions."""
        self._retries.sent()
        self._splits.sent()

    async def predict(
        self, rows: Sequence[Row], parameters: bytes, options: RequestOptions, first: FirstAsk | None = None
    ) -> list[Outcome]:
        """One request; where the model refuses it, its halves. Its rows are of many callers, and a row that the model
        cannot answer must not spoil the others' answers. `first` is another way to ask for the first time, among
        other requests and before the deadline."""
        try:
            return await self._predict_together(rows, parameters, options, first)
        except WrongReply as error:
            return [error] * len(rows)
        except (BadInput, ModelFailed, TooLarge) as error:
            if len(rows) == 1:
                return [error]
            if not (self._splits.spend() and self._splits.spend()):
                raise
        half = len(rows) // 2
        outcomes: list[Outcome] = []
        for part in (rows[:half], rows[half:]):
            try:
                outcomes += await self.predict(part, parameters, options)
            except ForeseenError as error:
                outcomes += [error] * len(part)
        return outcomes

    async def _predict_together(
        self, rows: Sequence[Row], parameters: bytes, options: RequestOptions, first: FirstAsk | None
    ) -> list[Outcome]:
        """One request. Where its connection breaks, once more as it was: a prediction is a pure function of its rows.
        Where the process has ended, one by one."""
        try:
            if first is not None:
                return [*await first()]
            return [*await self._ask_among_others(rows, parameters, options)]
        except ConnectionBroke:
            if not self._retries.spend():  # it would add to what broke it
                raise
        with contextlib.suppress(ModelUnavailable):  # an idle connection may be closed just when it is used
            return [*await self._ask_among_others(rows, parameters, options)]
        return await self._one_by_one(rows, parameters, options)

    async def around_suspects(
        self, rows: Sequence[Row], parameters: bytes, options: RequestOptions, ask_rest: AskRows
    ) -> list[Outcome]:
        """A row that has ended the process before is asked alone or not at all; the rest by `ask_rest`."""
        places = [at for at, row in enumerate(rows) if self.quarantine.crashes(row, parameters)]
        rest = [at for at in range(len(rows)) if at not in set(places)]
        outcomes: dict[int, Outcome] = {}
        if rest:
            answered = await ask_rest([rows[at] for at in rest], parameters, options)
            outcomes.update(zip(rest, answered, strict=True))
        tried = await self._one_by_one([rows[at] for at in places], parameters, options)
        outcomes.update(zip(places, tried, strict=True))
        return [outcomes[at] for at in range(len(rows))]

    async def _one_by_one(self, rows: Sequence[Row], parameters: bytes, options: RequestOptions) -> list[Outcome]:
        """Each row alone in the process; a row that ends it is tried once more when the others have answers."""
        outcomes: dict[int, Outcome] = {}
        waiting = list(range(len(rows)))
        while waiting:
            for at in waiting:
                outcome = await self._alone(rows[at], parameters, options)
                if outcome is not None:
                    outcomes[at] = outcome
            waiting = [at for at in waiting if at not in outcomes]
        return [outcomes[at] for at in range(len(rows))]

    async def _alone(self, row: Row, parameters: bytes, options: RequestOptions) -> Outcome | None:
        """One row's prediction or refusal; None where it has ended the process for the first time."""
        refusal = self.quarantine.refusal(row, parameters)
        if refusal is not None:
            return refusal
        while True:
            await self._until_there(options)
            try:
                turn = self._lock.turn(self._model)
                async with asyncio.timeout_at(options.deadline), self.quarantine.alone(turn):
                    await self._check()  # the row before, of another proxy process, may have ended it
                    predictions = await self._ask([row], parameters, options)
            except TimeoutError:
                raise DeadlineExceeded(f"model {self._model!r} did not answer before the deadline") from None
            except ConnectionBroke:
                self.quarantine.crashed(row, parameters)
                log.error("a row has ended the model's process", model=self._model)
                return self.quarantine.refusal(row, parameters)
            except ModelUnavailable:
                continue  # the process ended before this row was sent
            self.quarantine.cleared(row, parameters)
            return predictions[0]

    async def _until_there(self, options: RequestOptions) -> None:
        """Wait for a process that is being started again. Raises ModelUnavailable at the deadline."""
        while True:
            try:
                await self._check()
            except ModelUnavailable:
                pause = random.uniform(*RETURN_SECONDS)  # noqa: S311 - so that two proxies seldom try at once
                if asyncio.get_running_loop().time() + pause >= options.deadline:
                    raise
                await asyncio.sleep(pause)
            else:
                return

    async def _ask_among_others(
        self, rows: Sequence[Row], parameters: bytes, options: RequestOptions
    ) -> list[Prediction]:
        try:
            async with asyncio.timeout_at(options.deadline), self.quarantine.among_others():
                return await self._ask(rows, parameters, options)
        except TimeoutError:
            raise DeadlineExceeded(f"model {self._model!r} did not answer before the deadline") from None
