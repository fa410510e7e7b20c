"""Messages of a topic → their replies: one loop that polls, offsets committed behind what is done.

Delivery is at least once. A reply is with the broker before its message counts as finished, and a commit never passes
a message that is not finished. A rebalance or a crash repeats what was under way; the rows of it are cached by then.
(`transactions.py` makes it exactly once.)

What a message itself is at fault for goes to the dead letters. Everything else is tried again, with backoff, for as
long as it takes: its partition is paused when too much is under way, and polling goes on, so that a slow model never
costs the membership in the group.

A message of known rows is answered in the turn in which it was read, and costs no task.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from functools import partial

import orjson
import structlog

from foreseen.errors import ForeseenError
from foreseen.proxy.kafka.messages import Incoming, Outgoing, Reader, dead_letter_of, reply_of, reply_topic
from foreseen.proxy.kafka.offsets import PartitionOffsets
from foreseen.proxy.kafka.outbox import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS
from foreseen.proxy.kafka.ports import Answers, BrokerError, Consumer, KafkaOutbox, Place, Processed
from foreseen.proxy.kafka.retries import PausedRetries
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.response_bytes import Reply
from foreseen.tasks import end
from foreseen.telemetry.metrics import ProxyMetrics

log = structlog.get_logger()

MOST_MESSAGES, MOST_BYTES = 1024, 64 << 20
"""Under way in one process; above either every partition is paused."""
MOST_POLLED, AT_ONCE = 512, 64
"""Messages of one poll, and of one turn of the event loop."""
POLL_MS, COMMIT_SECONDS, PAUSE_SECONDS = 200, 1.0, 1.0
"""Partitions are paused where nothing gets free for so long."""
REVOKED_SECONDS = 5.0
"""How long a rebalance waits for what is under way on partitions that go to another process."""
TRANSIENT = frozenset((401, 403, 408, 429))
"""Statuses below 500 that are not the message's fault: the operator's keys, or load."""


class Topics:
    """Where replies and dead letters go."""

    def __init__(self, reply: str, allowed: Iterable[str], dead_letter: str | None) -> None:
        self.reply, self.dead_letter = reply, dead_letter
        self.allowed = frozenset((*allowed, reply))


class OwnedPartition:
    """A partition while it is this process's. `sequence` holds what was processed back until it is its turn."""

    __slots__ = ("offsets", "sequence")

    def __init__(self, *, ordered: bool) -> None:
        self.offsets: PartitionOffsets[None] = PartitionOffsets()
        self.sequence: PartitionOffsets[Processed] | None = PartitionOffsets() if ordered else None


class KafkaBridge:
    """One process's share of the topic, for one membership in the group."""

    def __init__(
        self, reader: Reader, answers: Answers, topics: Topics, metrics: ProxyMetrics, outbox: KafkaOutbox, *,
        ordered: bool = False, stopping: asyncio.Event | None = None,
    ) -> None:  # fmt: skip
        self._reader, self._answers, self._topics, self._metrics = reader, answers, topics, metrics
        self._outbox = outbox
        self._ordered = ordered or outbox.commits
        self._partitions: dict[Place, OwnedPartition] = {}
        self._revoked: dict[Place, int] = {}
        self._revocations = 0
        self._retries = PausedRetries()
        self._under_way = self._bytes = 0
        self._paused = False
        self._progress = asyncio.Event()
        self.stopping = asyncio.Event() if stopping is None else stopping

    async def run(self, consumer: Consumer) -> None:
        """Work until `stopping` is set; then finish what is under way and commit it. Raises BrokerError where the group
        cannot be read, or the outbox ends the membership."""
        committing = asyncio.create_task(self._commit_often(consumer))
        sending = asyncio.create_task(self._outbox.run(self._delivered))
        try:
            while not self.stopping.is_set():
                if sending.done():
                    sending.result()
                before = self._revocations
                await self._take(await consumer.poll(POLL_MS, MOST_POLLED), before)
                await self._hold(consumer)
        finally:
            await end(committing)
            await self._settle(set(self._partitions), sending)
            await self.commit(consumer)
            self._forget(list(self._partitions))
            await _ended(sending)
            await self._outbox.close()

    async def assigned(self, places: Sequence[Place]) -> None:
        """These partitions are this process's from now on."""
        await self._outbox.assigned(places)

    async def revoked(self, consumer: Consumer, places: Sequence[Place]) -> None:
        """Other processes get these partitions: finish what is under way there, for a moment, and commit it. What is
        not finished is read again by the partition's next owner."""
        self._metrics.kafka_rebalances.inc()
        self._revocations += 1
        self._revoked |= dict.fromkeys(places, self._revocations)
        await self._settle(set(places))
        await self.commit(consumer)
        self._forget(places)
        await self._outbox.revoked(places)

    async def commit(self, consumer: Consumer) -> None:
        """Commit what is finished without a gap. A failure is logged and tried again later."""
        if self._outbox.commits:
            return
        offsets = {place: at for place, one in self._partitions.items() if (at := one.offsets.to_commit()) is not None}
        if not offsets:
            return
        try:
            await consumer.commit(offsets)
        except BrokerError as error:
            log.warning("kafka: offsets not committed; retrying", error=str(error))
            return
        for place, at in offsets.items():
            if place in self._partitions:
                self._partitions[place].offsets.committed(at)

    async def _commit_often(self, consumer: Consumer) -> None:
        while True:
            await asyncio.sleep(COMMIT_SECONDS)
            await self.commit(consumer)

    async def _settle(self, places: set[Place], sending: asyncio.Task[None] | None = None) -> None:
        """Wait until nothing of these is under way, but not for long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REVOKED_SECONDS):
                while any(len(one.offsets) for place, one in self._partitions.items() if place in places):
                    if sending is not None and sending.done():
                        return
                    self._progress.clear()
                    await self._progress.wait()

    def _forget(self, places: Iterable[Place]) -> None:
        for place in places:
            gone = self._partitions.pop(place, None)
            if gone is not None:
                self._count(-gone.offsets.unfinished, -gone.offsets.bytes)

    async def _take(self, records: Sequence[Incoming], revocations: int) -> None:
        """Begin what was polled after so many revocations, in slices, so that other work gets its turn between them."""
        for at in range(0, len(records), AT_ONCE):
            for record in records[at : at + AT_ONCE]:
                place = record.topic, record.partition
                if self._revoked.get(place, 0) <= revocations:  # else its next owner reads it
                    self._begin(record, place)
            await asyncio.sleep(0)

    def _begin(self, record: Incoming, place: Place) -> None:
        owned = self._partitions.get(place)
        if owned is None:
            owned = self._partitions[place] = OwnedPartition(ordered=self._ordered)
        size = _size(record)
        owned.offsets.begin(record.offset, size)
        if owned.sequence is not None:
            owned.sequence.begin(record.offset)
        self._count(1, size)
        try:
            head, body = self._reader.read(record)
        except ForeseenError as error:
            self._processed(record, owned, *self._refused(record, error.status, error.code, str(error), None))
        else:
            self._ask(record, owned, head, body, FIRST_PAUSE_SECONDS)

    def _ask(self, record: Incoming, owned: OwnedPartition, head: RequestHead, body: bytes, pause: float) -> None:
        """Ask for an answer, again and again where it is not the message's fault that there is none."""
        if not self._owns(record, owned):
            return
        answered = partial(self._answered, record, owned, head, body, pause)
        reply = self._answers.begin(head, body, answered)
        if reply is not None:
            answered(reply)

    def _answered(
        self, record: Incoming, owned: OwnedPartition, head: RequestHead, body: bytes, pause: float, reply: Reply
    ) -> None:  # fmt: skip
        if reply.status < 300:
            topic = reply_topic(record, self._topics.reply, self._topics.allowed)
            out = reply_of(record, reply, topic, self._answers.digest_of(head, body))
            self._processed(record, owned, out, "answered")
            self._retries.kick()
        elif reply.status < 500 and reply.status not in TRANSIENT:
            self._processed(record, owned, *self._refused(record, reply.status, *_error_in(reply), reply))
        else:
            self._metrics.kafka_messages.labels("retried").inc()
            again = partial(self._ask, record, owned, head, body, min(2 * pause, LONGEST_PAUSE_SECONDS))
            self._retries.add(pause, again)

    def _processed(self, record: Incoming, owned: OwnedPartition, out: Outgoing, outcome: str) -> None:
        """To the outbox, in its turn where there is an order."""
        if not self._owns(record, owned):
            return
        one = Processed(record, out, outcome)
        if owned.sequence is None:
            self._outbox.put(one)
            return
        for turn in owned.sequence.finish(record.offset, one):
            self._outbox.put(turn)

    def _delivered(self, one: Processed) -> None:
        owned = self._partitions.get(one.place)
        if owned is not None:
            size = _size(one.record)
            owned.offsets.finish(one.record.offset, size=size)
            self._count(-1, -size)

    def _owns(self, record: Incoming, owned: OwnedPartition) -> bool:
        return self._partitions.get((record.topic, record.partition)) is owned

    def _count(self, messages: int, size: int) -> None:
        self._under_way += messages
        self._bytes += size
        self._metrics.kafka_in_flight.set(self._under_way)
        self._progress.set()

    def _is_full(self, share: int = 1) -> bool:
        """Whether one part of so many of the bounds is under way, or finished behind what is."""
        waiting = sum(len(one.offsets) for one in self._partitions.values())
        return waiting * share >= MOST_MESSAGES or self._bytes * share >= MOST_BYTES

    async def _hold(self, consumer: Consumer) -> None:
        """Above the bounds wait for a moment, then pause; resume below half of them. Paused partitions are still
        polled, for the membership."""
        if not self._paused and self._is_full():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PAUSE_SECONDS):
                    while self._is_full():
                        self._progress.clear()
                        await self._progress.wait()
            if self._is_full():
                self._paused = True
                consumer.pause()
        elif self._paused and not self._is_full(2):
            self._paused = False
            consumer.resume()

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


async def _ended(sending: asyncio.Task[None]) -> None:
    """Ended, whatever it has come to."""
    sending.cancel()
    await asyncio.wait([sending])
    if not sending.cancelled():
        sending.exception()


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
