"""Command batching: commands that arrive while a pipeline is in progress are sent together in the next one.

A store that flushes its append-only file before it replies flushes it once for the whole pipeline. A single command
does not wait. Under load a call costs a fifth of a call alone: in this process, in the store, and on its disk. Slow
commands have a `Grouped` of their own, so that fast ones do not wait behind them (head-of-line blocking).
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from redis.asyncio import Redis

from foreseen.stores.master_locator import pipelined

MOST_COMMANDS, MOST_BYTES = 64, 4 * 2**20
"""Of one group; a larger command goes alone."""
MOST_SECONDS = 20.0
"""For one group, however slowly its replies come."""


class _Asked(NamedTuple):
    words: tuple[Any, ...]
    promised: bool
    reply: asyncio.Future[Any]
    until: float


class Grouped:
    """Batches commands to one server. The reply to a `promised` command is returned once `replicas` replicas have
    it."""

    def __init__(self, client: Redis, seconds: float, replicas: int = 0) -> None:
        self._client = client
        self._seconds = seconds
        self._replicas = replicas
        self._waiting: list[_Asked] = []
        self._going: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Grouped {len(self._waiting)} commands wait>"

    async def ask(self, *words: Any, promised: bool = False) -> Any:
        """The reply. Raises what the server refused it with, and what redis-py and the loop raise where it does not
        answer in time: whether it was carried out is not known then."""
        loop = asyncio.get_running_loop()
        asked = _Asked(words, promised, loop.create_future(), loop.time() + self._seconds)
        self._waiting.append(asked)
        if self._going is None:
            self._going = loop.create_task(self._go())
        return await asked.reply

    async def _go(self) -> None:
        """Send group after group, until no command waits."""
        group: list[_Asked] = []
        try:
            while self._waiting:
                group = self._next()
                try:
                    async with asyncio.timeout(MOST_SECONDS):  # redis-py bounds each read and write by itself
                        await self._carry(group)
                except Exception as error:  # noqa: BLE001 - the callers get it, whatever it is
                    for asked in group:
                        _fail(asked, error)
        finally:
            for asked in group + self._waiting:
                _fail(asked, ConnectionError("the process is stopping"))
            self._waiting, self._going = [], None

    def _next(self) -> list[_Asked]:
        """The next group. Commands of cancelled callers are dropped; those that waited too long get a TimeoutError."""
        now = asyncio.get_running_loop().time()
        group: list[_Asked] = []
        size = taken = 0
        for asked in self._waiting:
            size += sum(len(word) for word in asked.words if isinstance(word, bytes | str))
            if group and (len(group) == MOST_COMMANDS or size > MOST_BYTES):
                break
            taken += 1
            if asked.until < now:
                _fail(asked, TimeoutError())
            elif not asked.reply.done():
                group.append(asked)
        self._waiting = self._waiting[taken:]
        return group

    async def _carry(self, group: list[_Asked]) -> None:
        if not group:
            return
        promised = any(asked.promised for asked in group)
        commands = [asked.words for asked in group]
        replies, lack = await pipelined(self._client, commands, self._replicas if promised else 0)
        for asked, reply in zip(group, replies, strict=True):
            if isinstance(reply, Exception):
                _fail(asked, reply)
            elif asked.promised and lack is not None:
                _fail(asked, lack)
            elif not asked.reply.done():
                asked.reply.set_result(reply)


def _fail(asked: _Asked, error: Exception) -> None:
    if not asked.reply.done():
        asked.reply.set_exception(error)
        asked.reply.exception()  # mark it retrieved: the caller may have been cancelled
