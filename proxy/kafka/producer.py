"""aiokafka as the bridge's producer: record batches by target partition, and transactions by source partition."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.partitioner import murmur2

from foreseen.proxy.kafka.client import REQUEST_BYTES, access, broker_error, spoken
from foreseen.proxy.kafka.messages import Outgoing
from foreseen.proxy.kafka.ports import BrokerError, Place, RecordTooLarge
from foreseen.settings import KafkaSettings

BATCH_BYTES = 512 * 1024
"""Of a record batch, before compression; a broker takes 1 MiB by default. One larger record is a batch of its own."""
TRANSACTION_MS = 60_000


class KafkaProducer:
    """Sends replies; done when all in-sync replicas have them. Not idempotent: delivery is at least once, and an
    idempotent producer needs a right of its own and brokers that know producer ids."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._producer = _producer(settings)

    async def start(self) -> None:
        await spoken(self._producer.start())

    async def stop(self) -> None:
        await spoken(self._producer.stop())

    async def send(self, records: Sequence[Outgoing]) -> Sequence[BrokerError | None]:
        """One record batch a target partition at a time, so that none overtakes another."""
        errors: list[BrokerError | None] = [None] * len(records)
        targets, refused = await _targets(self._producer, records)
        for topic, error in refused.items():
            errors = [error if one.topic == topic else was for one, was in zip(records, errors, strict=True)]
        sent = [_send(self._producer, target, records, numbers) for target, numbers in targets.items()]
        for failed in await asyncio.gather(*sent):
            for number, error in failed.items():
                errors[number] = error
        return errors


class PartitionTransactions:
    """The transactions of one partition of the requests, by a producer of its own."""

    def __init__(self, settings: KafkaSettings, place: Place) -> None:
        topic, partition = place
        self._group, self._source = settings.group, TopicPartition(topic, partition)
        self._producer = _producer(
            settings,
            transactional_id=f"{settings.transactional_id}-{topic}-{partition}",
            transaction_timeout_ms=TRANSACTION_MS,
        )

    async def start(self) -> None:
        """Shuts out the partition's owner before. Raises BrokerError."""
        await spoken(self._producer.start())

    async def stop(self) -> None:
        """aiokafka aborts what is open."""
        await spoken(self._producer.stop())

    async def transact(self, records: Sequence[Outgoing], offset: int) -> None:
        await spoken(self._producer.begin_transaction())
        targets, refused = await _targets(self._producer, records)
        sent = [_send(self._producer, target, records, numbers) for target, numbers in targets.items()]
        failed = [error for one in await asyncio.gather(*sent) for error in one.values()]
        for error in (*refused.values(), *failed):
            raise error
        await spoken(self._producer.send_offsets_to_transaction({self._source: offset}, self._group))
        await spoken(self._producer.commit_transaction())


def _producer(settings: KafkaSettings, **more: Any) -> AIOKafkaProducer:
    return AIOKafkaProducer(
        **access(settings), acks="all", max_batch_size=BATCH_BYTES, max_request_size=REQUEST_BYTES, **more
    )


async def _targets(
    producer: AIOKafkaProducer, records: Sequence[Outgoing]
) -> tuple[dict[TopicPartition, list[int]], dict[str, BrokerError]]:
    """Which of the records go to which partition, and the topics that have none."""
    counts: dict[str, int] = {}
    refused: dict[str, BrokerError] = {}
    for topic in {one.topic for one in records}:
        try:
            counts[topic] = len(await spoken(producer.partitions_for(topic)))
        except BrokerError as error:
            refused[topic] = error
    any_of = {topic: secrets.randbelow(count) for topic, count in counts.items()}
    targets: dict[TopicPartition, list[int]] = {}
    for number, one in enumerate(records):
        if one.topic in counts:
            chosen = any_of[one.topic] if one.key is None else (murmur2(one.key) & 0x7FFFFFFF) % counts[one.topic]
            targets.setdefault(TopicPartition(one.topic, chosen), []).append(number)
    return targets, refused


async def _send(
    producer: AIOKafkaProducer, target: TopicPartition, records: Sequence[Outgoing], numbers: Sequence[int]
) -> dict[int, BrokerError]:
    """Those of the numbered records that the partition did not get, with the reason."""
    at = 0
    while at < len(numbers):
        batch, first = producer.create_batch(), at
        while at < len(numbers):
            one = records[numbers[at]]
            if batch.append(timestamp=None, key=one.key, value=one.value, headers=one.headers) is None:
                break
            at += 1
        try:
            await (await spoken(producer.send_batch(batch, target.topic, partition=target.partition)))
        except Exception as error:  # noqa: BLE001 - sorted at once
            failure = broker_error(error)
            if isinstance(failure, RecordTooLarge) and at - first > 1:
                failure = BrokerError(str(failure))
            return dict.fromkeys(numbers[first:], failure)
    return {}
