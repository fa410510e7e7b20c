"""Calls to the queue's store: bounded in time and number, and every error of the store is QueueUnavailable."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import structlog
from redis import exceptions as gone
from redis.asyncio import Redis

from foreseen.errors import QueueUnavailable
from foreseen.queue.scripts import BASE, SCRIPTS
from foreseen.stores.command_batching import Grouped

BUDGET_SECONDS = 2.0
"""A store that takes longer counts as down."""
MAX_CALLS = 16
"""Concurrent calls of one process; more wait their turn, at most as long as the budget."""
PROMISED = frozenset(("submit", "batch", "close", "cancel"))
"""Scripts acknowledged only when the replicas have their writes. A result that is lost is computed again."""

log = structlog.get_logger()


class QueueCalls:
    """Calls on one client. Commands of one turn of the event loop share a pipeline."""

    def __init__(self, client: Redis, replicas: int) -> None:
        """`replicas`: how many the scripts of PROMISED wait for."""
        self.grouped = Grouped(client, BUDGET_SECONDS)
        self.promised = Grouped(client, BUDGET_SECONDS, replicas) if replicas else self.grouped
        self.scripts = {name: client.register_script(text) for name, text in SCRIPTS.items()}
        self._turns = asyncio.Semaphore(MAX_CALLS)

    async def run(self, name: str, *values: Any) -> Any:
        """Run a script by its name. Raises QueueUnavailable."""
        script, promised = self.scripts[name], name in PROMISED
        way, words = self.promised if promised else self.grouped, (1, BASE, *values)
        try:
            return await self.guarded(way.ask("EVALSHA", script.sha, *words, promised=promised))
        except gone.NoScriptError:
            return await self.guarded(way.ask("EVAL", script.script, *words, promised=promised))

    async def ask(self, *words: Any) -> Any:
        """A command, batched with others. Raises QueueUnavailable."""
        return await self.guarded(self.grouped.ask(*words))

    async def now(self) -> float:
        """The store's clock, in Unix seconds."""
        seconds, micros = await self.ask("TIME")
        return int(seconds) + int(micros) / 1e6

    async def call(self, call: Any) -> Any:
        """A call on a connection of its own. Raises QueueUnavailable, also where none is free in time."""
        try:
            async with asyncio.timeout(BUDGET_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            call.close()
            raise QueueUnavailable("the queue does not answer") from None
        try:
            return await self.guarded(call)
        finally:
            self._turns.release()

    async def guarded(self, call: Awaitable[Any]) -> Any:
        """The result of a call, its errors as QueueUnavailable."""
        try:
            return await call
        except gone.NoScriptError:
            raise
        except gone.ResponseError as error:
            if "NOGROUP" in str(error) or "no such key" in str(error):
                raise NoWorkers("no worker has read this queue yet") from None
            if str(error).split(" ", 1)[0] in ("ERR", "WRONGTYPE", "BUSYGROUP"):  # our bug, not the store
                raise
            log.warning("queue refused", error=error.status_code or str(error).split(" ", 1)[0])
            raise QueueUnavailable("the queue does not take jobs now") from None
        except (gone.RedisError, OSError, TimeoutError, RuntimeError) as error:  # the last is uvloop's of a closed one
            log.debug("queue", error=type(error).__name__)
            raise QueueUnavailable("the queue does not answer") from None


class NoWorkers(QueueUnavailable):
    """The consumer group does not exist: no worker has started, or the store has lost it."""
