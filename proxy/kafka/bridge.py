"""Messages of a topic → their replies: one loop that polls, a task a message, offsets committed behind what is done.

Delivery is at least once. A reply is with the broker before its message counts as finished, and a commit never passes
a message that is not finished. A rebalance or a crash repeats what was under way; the rows of it are cached by then.

What a message itself is at fault for goes to the dead letters. Everything else is tried again, with backoff, for as
long as it takes: its partition is paused when too much is under way, and polling goes on, so that a slow model never
costs the membership in the group.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import orjson
import structlog

from foreseen.errors import ForeseenError
from foreseen.proxy.kafka.messages import Incoming, Outgoing, Reader, dead_letter_of, reply_of, reply_topic
from foreseen.proxy.kafka.offsets import PartitionOffsets
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.response_bytes import Reply
from foreseen.telemetry.metrics import ProxyMetrics

log = structlog.get_logger()

Place = tuple[str, int]
"""Topic and partition."""

MOST_MESSAGES, MOST_BYTES = 1024, 64 << 20
"""Under way in one process; above either every partition is paused."""
POLL_MS, COMMIT_SECONDS = 200, 1.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 30.0
REVOKED_SECONDS = 5.0
"""How long a rebalance waits for what is under way on partitions that go to another process."""
TRANSIENT = frozenset((401, 403, 408, 429))
"""Statuses below 500 that are not the message's fault: the operator's keys, or load."""


class Consumer(Protocol):
    """What is needed of a member of a consumer group; errors of the broker are `BrokerError`."""

    async def poll(self, timeout_ms: int, most: int) -> Sequence[Incoming]:
        """Messages of all partitions that are not paused, in their order."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    async def commit(self, offsets: Mapping[Place, int]) -> None: ...


class Producer(Protocol):
    """Sends records; the call returns when all replicas that count have one."""

    async def send(self, record: Outgoing) -> None: ...


class Answers(Protocol):
    """The normal way of a request (`Responder`)."""

    async def answer(self, head: RequestHead, body: bytes) -> Reply: ...

    def digest_of(self, head: RequestHead, body: bytes) -> str | None: ...


class BrokerError(Exception):
    """The broker could not be reached, or refused; in one line."""


class Topics:
    """Where replies and dead letters go."""

    def __init__(self, reply: str, allowed: Iterable[str], dead_letter: str | None) -> None:
        self.reply, self.dead_letter = reply, dead_letter
        self.allowed = frozenset((*allowed, reply))


class KafkaBridge:
    """One process's share of the topic."""

    def __init__(
        self, reader: Reader, answers: Answers, topics: Topics, metrics: ProxyMetrics, *, ordered: bool = False
    ) -> None:
        self._reader, self._answers, self._topics, self._metrics = reader, answers, topics, metrics
        self._ordered = ordered
        self._offsets: defaultdict[Place, PartitionOffsets] = defaultdict(PartitionOffsets)
        self._tasks: dict[asyncio.Task[None], Place] = {}
        self._last: dict[Place, asyncio.Task[None]] = {}
        self._bytes = 0
        self._paused = False
        self.stopping = asyncio.Event()

    async def run(self, consumer: Consumer, producer: Producer) -> None:
        """Work until `stopping` is set; then finish what is under way and commit it. Raises BrokerError where the group
        cannot be read."""
        committing = asyncio.create_task(self._commit_often(consumer))
        try:
            while not self.stopping.is_set():
                records = await consumer.poll(POLL_MS, MOST_MESSAGES)
                for record in records:
                    self._begin(record, producer)
                self._hold(consumer)
        finally:
            committing.cancel()
            await self._settled(self._tasks, REVOKED_SECONDS)
            await self.commit(consumer)
            for task in self._tasks:
                task.cancel()

    async def revoked(self, consumer: Consumer, places: Iterable[Place]) -> None:
        """Other processes get these partitions: finish what is under way there, for a moment, and commit it."""
        gone = frozenset(places)
        self._metrics.kafka_rebalances.inc()
        tasks = [task for task, place in self._tasks.items() if place in gone]
        await self._settled(tasks, REVOKED_SECONDS)
        await self.commit(consumer)
        for task in tasks:
            task.cancel()  # its message is read again by the partition's next owner
        for place in gone:
            self._offsets.pop(place, None)
            self._last.pop(place, None)

    async def commit(self, consumer: Consumer) -> None:
        """Commit what is finished without a gap. A failure is logged and tried again later."""
        offsets = {place: at for place, one in self._offsets.items() if (at := one.to_commit()) is not None}
        if not offsets:
            return
        try:
            await consumer.commit(offsets)
        except BrokerError as error:
            log.warning("kafka: offsets not committed; they are tried again", error=str(error))
            return
        for place, at in offsets.items():
            if place in self._offsets:
                self._offsets[place].committed(at)

    async def _commit_often(self, consumer: Consumer) -> None:
        while True:
            await asyncio.sleep(COMMIT_SECONDS)
            await self.commit(consumer)

    async def _settled(self, tasks: Iterable[asyncio.Task[None]], seconds: float) -> None:
        waiting = [task for task in tasks if not task.done()]
        if waiting:
            await asyncio.wait(waiting, timeout=seconds)

    def _begin(self, record: Incoming, producer: Producer) -> None:
        place = (record.topic, record.partition)
        self._offsets[place].begin(record.offset)
        self._bytes += _size(record)
        before = self._last.get(place) if self._ordered else None
        task = asyncio.create_task(self._process(record, producer, before))
        self._tasks[task] = place
        if self._ordered:
            self._last[place] = task
        self._metrics.kafka_in_flight.set(len(self._tasks))
        task.add_done_callback(lambda done: self._end(done, record))

    def _end(self, task: asyncio.Task[None], record: Incoming) -> None:
        place = self._tasks.pop(task)
        self._bytes -= _size(record)
        self._metrics.kafka_in_flight.set(len(self._tasks))
        if self._last.get(place) is task:
            del self._last[place]
        if not task.cancelled() and task.exception() is None and place in self._offsets:
            self._offsets[place].finish(record.offset)
        elif not task.cancelled():
            log.error(
                "kafka: a message was not processed; it is read again after a restart", error=repr(task.exception())
            )

    def _hold(self, consumer: Consumer) -> None:
        """Pause above the bounds, resume below half of them. Paused partitions are still polled, for the membership."""
        open_messages = sum(map(len, self._offsets.values()))
        if not self._paused and (open_messages >= MOST_MESSAGES or self._bytes >= MOST_BYTES):
            self._paused = True
            consumer.pause()
        elif self._paused and open_messages <= MOST_MESSAGES // 2 and self._bytes <= MOST_BYTES // 2:
            self._paused = False
            consumer.resume()

    async def _process(self, record: Incoming, producer: Producer, before: asyncio.Task[None] | None) -> None:
        """Answer one message, however long that takes; with `before`, after the message before it."""
        out, outcome = await self._outgoing(record)
        if before is not None:
            await asyncio.wait([before])
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                await producer.send(out)
                break
            except BrokerError as error:
                log.warning("kafka: a reply could not be sent; it is tried again", topic=out.topic, error=str(error))
                self._metrics.kafka_messages.labels("retried").inc()
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        self._metrics.kafka_messages.labels(outcome).inc()

    async def _outgoing(self, record: Incoming) -> tuple[Outgoing, str]:
        """What a message comes to, and in which words it is counted."""
        try:
            head, body = self._reader.read(record)
        except ForeseenError as error:
            return self._refused(record, error.status, error.code, str(error), None)
        pause = FIRST_PAUSE_SECONDS
        while True:
            reply = await self._answers.answer(head, body)
            if reply.status < 300:
                topic = reply_topic(record, self._topics.reply, self._topics.allowed)
                return reply_of(record, reply, topic, self._answers.digest_of(head, body)), "answered"
            if reply.status < 500 and reply.status not in TRANSIENT:
                return self._refused(record, reply.status, *_error_in(reply), reply)
            self._metrics.kafka_messages.labels("retried").inc()
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _refused(
        self, record: Incoming, status: int, code: str, message: str, reply: Reply | None
    ) -> tuple[Outgoing, str]:
        """A dead letter; without a topic for those, a reply that says what is wrong."""
        if self._topics.dead_letter is not None:
            return dead_letter_of(record, self._topics.dead_letter, status, code, message), "dead-letter"
        topic = reply_topic(record, self._topics.reply, self._topics.allowed)
        body = orjson.dumps({"error": message, "code": code}) if reply is None else reply.body
        out = reply_of(record, Reply(status, "" if reply is None else reply.lines, body), topic, None)
        out.headers.append(("foreseen-error-code", code.encode()))
        return out, "refused"


def _error_in(reply: Reply) -> tuple[str, str]:
    """Code and message of an error's body, whatever the dialect."""
    try:
        document = orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        return f"status_{reply.status}", ""
    inner = document.get("error") if isinstance(document, dict) else None
    if isinstance(inner, dict):
        return str(inner.get("code")), str(inner.get("message"))
    code = document.get("code") if isinstance(document, dict) else None
    return str(code or f"status_{reply.status}"), str(inner or "")


def _size(record: Incoming) -> int:
    return len(record.value or b"")
