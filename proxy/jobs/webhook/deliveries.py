"""Delivers webhooks: claims those that are due, sends them, and settles them or retries with exponential backoff.

Calls are limited in number, in total and for each host, so that a receiver that hangs delays only its own deliveries.
If this process dies, a delivery that it claimed and did not settle is due again when its lease ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable
from typing import Protocol

import structlog

from foreseen.errors import QueueUnavailable, WebhookRefused
from foreseen.proxy.jobs.webhook.webhooks import Delivery
from foreseen.queue.outbox import Claimed, Outcome
from foreseen.queue.targets import target_of

FIRST_PAUSE_SECONDS, GROWTH, LONGEST_PAUSE_SECONDS = 5.0, 4.0, 3600.0
"""5 s, 20 s, 80 s, 5 min, 21 min, 1 h, 1 h, each cut by up to a half: eight tries take at most 2 h 50 min."""
LEASE_MARGIN_SECONDS = 5.0
IDLE_SECONDS = 1.0
CROWDED_SECONDS = 2.0
MAX_CALLS = 16
"""Webhooks under way at a time; a fourth of them to one host."""
"""When a delivery comes up again whose host has enough calls in flight."""

log = structlog.get_logger()


class DeliveryQueue(Protocol):
    """The store of pending deliveries."""

    async def claim(self, most: int, lease_seconds: float) -> list[Claimed]: ...
    async def settle(self, claimed: Claimed, outcome: Outcome | None) -> bool: ...
    async def put_off(self, claimed: Claimed, seconds: float, *, failed: bool) -> bool: ...


class PayloadWriter(Protocol):
    """Writes the payload of a delivery."""

    async def write(self, claimed: Claimed) -> Delivery | None:
        """The event of a ticket; None where there is nothing to send (any longer)."""


class Calls(Protocol):
    """Calls the receiver."""

    async def call(self, delivery: Delivery) -> tuple[Outcome, str]: ...


def pause_after(tries: int, share: float) -> float:
    """Seconds between a try, from 1 on, and the next; `share` in 0…1 is chance."""
    whole = min(FIRST_PAUSE_SECONDS * GROWTH ** (tries - 1), LONGEST_PAUSE_SECONDS)
    return whole * (1 - share / 2)


class Deliveries:
    """The deliveries of one process."""

    def __init__(
        self,
        outbox: DeliveryQueue,
        writer: PayloadWriter,
        calls: Calls,
        *,
        tries: int,
        at_once: int = MAX_CALLS,
        seconds: float,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """At most so many `tries`, calls `at_once`, and `seconds` of one call."""
        self._outbox = outbox
        self._writer = writer
        self._calls = calls
        self._tries = tries
        self._at_once = at_once
        self._per_host = max(1, at_once // 4)
        self._lease_seconds = seconds + LEASE_MARGIN_SECONDS
        self._chance = chance
        self._sending: set[asyncio.Task[None]] = set()
        self._hosts: Counter[str] = Counter()
        self._wake = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Deliveries {len(self._sending)} of {self._at_once} under way, to {len(self._hosts)} hosts>"

    def nudge(self) -> None:
        """A job of this process has ended: look at once."""
        self._wake.set()

    async def run(self) -> None:
        """Claim and send until cancelled."""
        while True:
            self._wake.clear()
            if not await self.turn():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(IDLE_SECONDS):
                        await self._wake.wait()

    async def turn(self) -> int:
        """Claim what there is room for and start to send it; how many were claimed."""
        room = self._at_once - len(self._sending)
        if not room:
            return 0
        try:
            claimed = await self._outbox.claim(room, self._lease_seconds)
        except QueueUnavailable:
            return 0
        for one in claimed:
            task = asyncio.create_task(self._send(one))
            self._sending.add(task)
            task.add_done_callback(self._sent)
        return len(claimed)

    async def close(self, seconds: float) -> None:
        """Let calls under way end, at most so long; what is cut short is due again after its lease."""
        if not self._sending:
            return
        _, late = await asyncio.wait(self._sending, timeout=seconds)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:  # due again when its lease ends
            log.error("internal error", route="webhook", error=type(error).__name__, exc_info=error)

    async def _send(self, claimed: Claimed) -> None:
        """Send and settle one claimed delivery. If the state store is not reachable, the lease expires instead."""
        try:
            delivery = await self._writer.write(claimed)
            if delivery is None:
                await self._outbox.settle(claimed, None)
                return
            host = _host_of(delivery)
            if self._hosts[host] >= self._per_host:
                await self._outbox.put_off(claimed, CROWDED_SECONDS * (0.5 + self._chance()), failed=False)
                return
            self._hosts[host] += 1
            try:
                outcome, why = await self._calls.call(delivery)
            finally:
                self._hosts[host] -= 1
                self._hosts += Counter()  # forgets hosts at zero
            await self._settle(claimed, outcome, why)
        except QueueUnavailable:
            log.warning("webhook not settled: state store not reachable", job=claimed.job.hex()[:12])

    async def _settle(self, claimed: Claimed, outcome: Outcome, why: str) -> None:
        if outcome == "failed" and claimed.tries >= self._tries:
            outcome = "exhausted"
        level = log.debug if outcome == "delivered" else log.warning
        level("webhook", outcome=outcome, why=why, tries=claimed.tries, job=claimed.job.hex()[:12])
        if outcome == "failed":
            await self._outbox.put_off(claimed, pause_after(claimed.tries, self._chance()), failed=True)
        else:
            await self._outbox.settle(claimed, outcome)


def _host_of(delivery: Delivery) -> str:
    try:
        return target_of(delivery.url).host
    except WebhookRefused:
        return ""
