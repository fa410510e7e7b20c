"""`foreseen kafka --transactional-id` at a real broker: replies and offsets are committed together, or not at all.

Tansu shows a transaction's records only once it is committed, and commits offsets with it. It shows those of an aborted
one too (its fetch answers name no aborted transactions), so that a kill may show here what a broker of Kafka's would
hide: `tests/proxy/kafka/test_transactions.py` has the kills.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from foreseen.proxy.kafka.messages import Outgoing
from foreseen.proxy.kafka.ports import BrokerError
from foreseen.proxy.kafka.producer import PartitionTransactions
from foreseen.settings import KafkaSettings
from tests.kafka_broker import Broker, broker
from tests.kafka_gate import INIT_PRODUCER_ID, gate
from tests.live import Live
from tests.ports import free_port
from tests.questions import fingerprint, numbers
from tests.stories.test_92_kafka import bridge

pytestmark = pytest.mark.long

MESSAGES = 120
ADD_OFFSETS, END_TRANSACTION, COMMIT = 25, 26, 8


async def seen(one: Broker, topic: str) -> list[bytes]:
    return [record.value for record in await one.committed(topic)]


async def test_every_message_has_one_reply(live: Live, tmp_path: Path) -> None:
    """Two processes, of which the second takes partitions from the first while it works, and then is told to stop:
    each reply is there once, and no offset was committed outside a transaction."""
    port = free_port()
    with broker(tmp_path, port) as one:
        async with gate(one, port) as before:
            await one.create("asked", "replies", "dead", partitions=2)
            keys = {b"%d" % seed for seed in range(MESSAGES)}
            first, second = ([(key, json.dumps(numbers(int(key))).encode()) for key in part] for part in halves(keys))
            await one.send("asked", first)
            with bridge(live, before.address, "--as=row", "--transactional-id=tx"):
                await one.read("replies", {key for key, _ in first}, 120)
                with bridge(live, before.address, "--as=row", "--transactional-id=tx"):
                    await one.send("asked", second)
                    found: list[Any] = await one.read("replies", keys, 120)
            counts = Counter(record.key for record in found)
            assert set(counts.values()) == {1}
            assert await offsets(one) == MESSAGES
            assert {INIT_PRODUCER_ID, ADD_OFFSETS, END_TRANSACTION} <= set(before.seen)
            assert COMMIT not in before.seen
    for record in found:
        assert json.loads(record.value)["outputs"][0]["data"] == fingerprint(numbers(int(record.key)))


async def test_nothing_is_seen_before_its_transaction_is_committed(tmp_path: Path) -> None:
    """An owner that another has taken the partition from commits neither replies nor its offset."""
    port = free_port()
    with broker(tmp_path, port) as one:
        async with gate(one, port) as before:
            await one.create("asked", "replies", partitions=2)
            settings = KafkaSettings(brokers=(before.address,), topic="asked", group="g", transactional_id="tx")
            slow, owner = (PartitionTransactions(settings, ("asked", 0)) for _ in range(2))
            try:
                await slow.start()
                await slow.transact([Outgoing("replies", b"k", b"first", [])], 1)
                assert await seen(one, "replies") == [b"first"]
                await owner.start()
                try:
                    await slow.transact([Outgoing("replies", b"k", b"late", [])], 2)
                except BrokerError:
                    refused = True
                assert refused
                assert b"late" not in await seen(one, "replies")
                assert await offsets(one) == 1
            finally:
                for part in (slow, owner):
                    try:
                        await part.stop()
                    except BrokerError:
                        continue


def halves(keys: set[bytes]) -> tuple[list[bytes], list[bytes]]:
    ordered = sorted(keys)
    return ordered[: len(ordered) // 2], ordered[len(ordered) // 2 :]


async def offsets(one: Broker) -> int:
    """What the group has committed, over all partitions."""
    consumer = AIOKafkaConsumer(bootstrap_servers=one.address, group_id="g", enable_auto_commit=False)
    await consumer.start()
    try:
        return sum([await consumer.committed(TopicPartition("asked", at)) or 0 for at in range(2)])
    finally:
        await consumer.stop()
