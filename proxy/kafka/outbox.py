"""Replies → the broker, at least once: what is processed while one send is under way goes with the next.

A reply that cannot be sent stays in the queue, and its topic waits with growing pauses; other topics go on. One that
is too large for the broker becomes a dead letter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from foreseen.proxy.kafka.messages import dead_letter_of
from foreseen.proxy.kafka.ports import BrokerError, Place, Processed, Producer, RecordTooLarge
from foreseen.telemetry.metrics import ProxyMetrics

log = structlog.get_logger()

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 30.0


class ReplyOutbox:
    """One queue for all topics. Records of one target partition are sent in the order in which they were put in."""

    commits = False

    def __init__(self, producer: Producer, metrics: ProxyMetrics, dead_letter: str | None = None) -> None:
        self._producer, self._metrics, self._dead_letter = producer, metrics, dead_letter
        self._queue: list[Processed] = []
        self._ready = asyncio.Event()
        self._pauses: dict[str, tuple[float, float]] = {}
        """Topics that refused a record: when they are tried again, and the pause after that."""

    def put(self, one: Processed) -> None:
        self._queue.append(one)
        self._ready.set()

    async def run(self, delivered: Callable[[Processed], None]) -> None:
        while True:
            await self._ready.wait()
            self._ready.clear()
            now = asyncio.get_running_loop().time()
            held = {topic for topic, (until, _) in self._pauses.items() if until > now}
            batch = [one for one in self._queue if one.out.topic not in held]
            self._queue = [one for one in self._queue if one.out.topic in held] if held else []
            if batch:
                await self._send(batch, delivered)

    async def assigned(self, places: Sequence[Place]) -> None:
        """Any partition's replies are taken."""

    async def revoked(self, places: Sequence[Place]) -> None:
        """What was not sent is left to the next owner."""
        gone = frozenset(places)
        self._queue = [one for one in self._queue if one.place not in gone]

    async def close(self) -> None:
        self._queue.clear()

    async def _send(self, batch: list[Processed], delivered: Callable[[Processed], None]) -> None:
        errors = await self._producer.send([one.out for one in batch])
        again: list[Processed] = []
        for one, error in zip(batch, errors, strict=True):
            if error is None:
                self._metrics.kafka_messages.labels(one.outcome).inc()
                delivered(one)
            elif isinstance(error, RecordTooLarge) and one.out.topic != self._dead_letter is not None:
                again.append(self._too_large(one, error))
            else:
                self._metrics.kafka_messages.labels("retried").inc()
                again.append(one)
        failed = {one.out.topic: error for one, error in zip(batch, errors, strict=True) if error is not None}
        for topic in {one.out.topic for one in batch}:
            if topic in failed:
                self._pause(topic, failed[topic])
            else:
                self._pauses.pop(topic, None)
        self._queue[:0] = again
        if self._queue:
            self._ready.set()

    def _pause(self, topic: str, error: BrokerError) -> None:
        if isinstance(error, RecordTooLarge):
            return
        _, pause = self._pauses.get(topic, (0.0, FIRST_PAUSE_SECONDS))
        loop = asyncio.get_running_loop()
        self._pauses[topic] = loop.time() + pause, min(2 * pause, LONGEST_PAUSE_SECONDS)
        loop.call_later(pause, self._ready.set)
        log.warning("kafka: replies not sent; retrying", topic=topic, error=str(error), in_s=pause)

    def _too_large(self, one: Processed, error: RecordTooLarge) -> Processed:
        assert self._dead_letter is not None
        letter = dead_letter_of(one.record, self._dead_letter, 413, "reply_too_large", str(error))
        return Processed(one.record, letter, "dead-letter")
