"""Clients that ask the fingerprint model at a steady rate and prove every answer with the oracle."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator
from typing import Literal, NamedTuple

import aiohttp

from tests.questions import ask_fingerprint, fingerprint, numbers
from tests.raw import FINGERPRINT

HOT = 200
NEW_SHARE, AGAIN_SHARE = 0.2, 0.2
DEADLINE_SECONDS = 10.0
LONGEST_SECONDS = 15.0

Outcome = Literal["ok", "wrong", "refused", "broken", "error"]
"""`refused`: 503 or 504 with a code. `broken`: the connection ended. `error`: any other status."""


class Asked(NamedTuple):
    """One request: when it began and ended, what came of it, and whether its row was new to everybody."""

    began: float
    ended: float
    outcome: Outcome
    new: bool
    said: str


class Load:
    """So many clients, each with a connection of its own, together at so many requests a second."""

    def __init__(self, url: str, *, clients: int = 8, rate: float = 250.0, seed: int = 0) -> None:
        self.clients = clients
        self.asked: list[Asked] = []
        self._url = url + FINGERPRINT
        self._every = clients / rate
        self._random = random.Random(seed)
        self._next = 1_000_000 * (1 + seed % 1000)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Asking, until the end of the block."""
        over = asyncio.Event()
        tasks = [asyncio.create_task(self._client(over)) for _ in range(self.clients)]
        try:
            yield
        finally:
            over.set()
            await asyncio.gather(*tasks)

    async def new_row(self) -> Asked:
        """One question that nobody has asked, on a connection of its own."""
        async with aiohttp.ClientSession() as client:
            return await self._ask(client, self._fresh(), new=True)

    def _fresh(self) -> int:
        self._next += 1
        return self._next

    def _seed(self) -> tuple[int, bool]:
        chance = self._random.random()
        if chance < NEW_SHARE:
            return self._fresh(), True
        if chance < NEW_SHARE + AGAIN_SHARE and self._next % 1_000_000 > HOT:
            return self._random.randrange(self._next - HOT, self._next), False
        return self._random.randrange(HOT), False

    async def _client(self, over: asyncio.Event) -> None:
        timeout = aiohttp.ClientTimeout(total=LONGEST_SECONDS)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1), timeout=timeout) as client:
            due = time.monotonic() + self._every * self._random.random()
            while not over.is_set():
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                due = max(due + self._every, time.monotonic() - 1)
                self.asked.append(await self._ask(client, *self._seed()))

    async def _ask(self, client: aiohttp.ClientSession, seed: int, new: bool) -> Asked:
        began = time.monotonic()
        try:
            headers = {"Request-Timeout": str(DEADLINE_SECONDS)}
            async with client.post(self._url, json=ask_fingerprint(numbers(seed)), headers=headers) as reply:
                status, body = reply.status, await reply.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            outcome: Outcome = "error" if isinstance(error, TimeoutError) else "broken"
            return Asked(began, time.monotonic(), outcome, new, type(error).__name__)
        return Asked(began, time.monotonic(), judged(status, body, seed), new, f"{status} {body[:120]!r}")


def judged(status: int, body: bytes, seed: int) -> Outcome:
    """What an answer is worth."""
    if status in (503, 504) and b'"code"' in body:
        return "refused"
    if status != 200:
        return "error"
    return "ok" if json.loads(body)["outputs"][0]["data"] == fingerprint(numbers(seed)) else "wrong"
