"""Exactly once: replies and offsets are in one transaction, whatever ends a membership, and whoever owned it before."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import pytest

from foreseen.proxy.kafka.bridge import KafkaBridge, Topics
from foreseen.proxy.kafka.messages import Incoming, Outgoing, Reader
from foreseen.proxy.kafka.ports import BrokerError, Place
from foreseen.proxy.kafka.transactions import TransactionalOutbox
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.response_bytes import Reply
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.tenants.tenant import PUBLIC_TENANT

MESSAGES = 60
PLACES = [("asked", 0), ("asked", 1)]


class TransactionalBroker:
    """Topics with transactions: what is not committed is not seen, and an older epoch may do nothing any more."""

    def __init__(self, breaks: Callable[[], bool] = lambda: False) -> None:
        self.breaks = breaks
        self.seen: dict[Place, list[bytes]] = defaultdict(list)
        self.offsets: dict[Place, int] = defaultdict(int)
        self.epochs: dict[Place, int] = defaultdict(int)
        self.changed = asyncio.Event()

    def transactions(self, place: Place) -> ScriptedTransactions:
        return ScriptedTransactions(self, place)


class ScriptedTransactions:
    def __init__(self, broker: TransactionalBroker, place: Place) -> None:
        self._broker, self._place, self._epoch = broker, place, 0

    async def start(self) -> None:
        await asyncio.sleep(0)
        self._broker.epochs[self._place] += 1
        self._epoch = self._broker.epochs[self._place]

    async def transact(self, records: Sequence[Outgoing], offset: int) -> None:
        await self._step()
        await self._step()
        if self._broker.epochs[self._place] != self._epoch:
            raise BrokerError("ProducerFenced: a newer one is there")
        self._broker.seen[self._place] += [record.value for record in records]
        self._broker.offsets[self._place] = offset
        self._broker.changed.set()

    async def stop(self) -> None:
        await asyncio.sleep(0)

    async def _step(self) -> None:
        await asyncio.sleep(0)
        if self._broker.breaks():
            raise BrokerError("KafkaTimeoutError: no answer")


class TransactionalReader:
    """Reads a membership's partitions from what was committed when it began."""

    def __init__(self, broker: TransactionalBroker, places: Sequence[Place]) -> None:
        self._places = places
        self._at = {place: broker.offsets[place] for place in places}

    async def poll(self, timeout_ms: int, most: int) -> Sequence[Incoming]:
        await asyncio.sleep(0)
        found = []
        for topic, partition in self._places:
            at = self._at[topic, partition]
            for offset in range(at, min(at + 7, MESSAGES)):
                found.append(Incoming(topic, partition, offset, b"k", b"%d" % offset, ()))
            self._at[topic, partition] = min(at + 7, MESSAGES)
        return found

    def pause(self) -> None:
        """Never full here."""

    def resume(self) -> None:
        """Never full here."""

    async def commit(self, offsets: Mapping[Place, int]) -> None:
        raise AssertionError("offsets are committed in transactions")


class ShuffledAnswers:
    """Answers in any order, some at once."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice

    def begin(self, head: RequestHead, body: bytes, reached: Callable[[Reply], None]) -> Reply | None:
        reply = Reply(200, "", b"to " + body)
        if self._dice.random() < 0.3:
            return reply
        asyncio.get_running_loop().call_later(self._dice.random() / 1000, reached, reply)
        return None

    def digest_of(self, head: RequestHead, body: bytes) -> str | None:
        return None


def membership(broker: TransactionalBroker, dice: random.Random) -> KafkaBridge:
    metrics = ProxyMetrics()
    outbox = TransactionalOutbox(broker.transactions, metrics)
    reader = Reader("m", "v2", PUBLIC_TENANT, 30.0, None)
    return KafkaBridge(reader, ShuffledAnswers(dice), Topics("replies", (), None), metrics, outbox)


async def until_all(broker: TransactionalBroker, place: Place) -> None:
    while broker.offsets[place] < MESSAGES:
        broker.changed.clear()
        await broker.changed.wait()


@pytest.mark.parametrize("seed", range(8))
async def test_every_reply_is_seen_once_and_in_order(seed: int) -> None:
    """Transactions fail at random steps; each failure ends the membership, and the next begins at the committed
    offset."""
    dice = random.Random(seed)
    broker = TransactionalBroker(lambda: dice.random() < 0.2)
    failures = 0
    async with asyncio.timeout(30):
        while any(broker.offsets[place] < MESSAGES for place in PLACES):
            bridge = membership(broker, dice)
            await bridge.assigned(PLACES)
            working = asyncio.create_task(bridge.run(TransactionalReader(broker, PLACES)))
            done = asyncio.gather(*(until_all(broker, place) for place in PLACES))
            await asyncio.wait([working, done], return_when=asyncio.FIRST_COMPLETED)
            bridge.stopping.set()
            done.cancel()
            try:
                await working
            except BrokerError:
                failures += 1
    expected = [b"to %d" % offset for offset in range(MESSAGES)]
    assert [broker.seen[place] for place in PLACES] == [expected, expected]
    assert failures


async def test_an_owner_that_was_only_slow_commits_nothing() -> None:
    """It reads on after another process was given its partition; its transactions are refused."""
    dice = random.Random(3)
    broker = TransactionalBroker()
    slow, place = membership(broker, dice), PLACES[0]
    await slow.assigned([place])
    behind = TransactionalReader(broker, [place])
    owner = membership(broker, dice)
    await owner.assigned([place])
    working = asyncio.create_task(owner.run(TransactionalReader(broker, [place])))
    with pytest.raises(BrokerError, match="ProducerFenced"):
        await slow.run(behind)
    async with asyncio.timeout(30):
        await until_all(broker, place)
    owner.stopping.set()
    await working
    assert broker.seen[place] == [b"to %d" % offset for offset in range(MESSAGES)]


async def test_a_revoked_partition_is_committed_as_far_as_it_was_done() -> None:
    """Its next owner goes on there."""
    dice = random.Random(4)
    broker = TransactionalBroker()
    first, place = membership(broker, dice), PLACES[0]
    await first.assigned([place])
    reader = TransactionalReader(broker, [place])
    working = asyncio.create_task(first.run(reader))
    await broker.changed.wait()
    await first.revoked(reader, [place])
    assert broker.seen[place] == [b"to %d" % offset for offset in range(broker.offsets[place])]
    first.stopping.set()
    await working
    owner = membership(broker, dice)
    await owner.assigned([place])
    going_on = asyncio.create_task(owner.run(TransactionalReader(broker, [place])))
    async with asyncio.timeout(30):
        await until_all(broker, place)
    owner.stopping.set()
    await going_on
    assert broker.seen[place] == [b"to %d" % offset for offset in range(MESSAGES)]


async def test_a_producer_that_cannot_start_ends_the_membership() -> None:
    """Such as one whose user may not use the transactional id."""

    class Refused(ScriptedTransactions):
        async def start(self) -> None:
            raise BrokerError("TransactionalIdAuthorizationFailed: foreseen-asked-0")

    broker, metrics = TransactionalBroker(), ProxyMetrics()
    outbox = TransactionalOutbox(lambda place: Refused(broker, place), metrics)
    reader = Reader("m", "v2", PUBLIC_TENANT, 30.0, None)
    bridge = KafkaBridge(reader, ShuffledAnswers(random.Random(1)), Topics("r", (), None), metrics, outbox)
    await bridge.assigned(PLACES)
    with pytest.raises(BrokerError, match="TransactionalIdAuthorizationFailed"):
        await bridge.run(TransactionalReader(broker, PLACES))
