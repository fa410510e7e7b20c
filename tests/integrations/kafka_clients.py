"""Kafka's other clients, and the brokers that one of them brings, run in an environment of their own.

python kafka_clients.py mock BROKERS    librdkafka's mock cluster: prints its addresses, lives until stdin ends
python kafka_clients.py (confluent|kafka-python) ADDRESS ask TOPIC < LINES of JSON: key, value, headers
python kafka_clients.py (confluent|kafka-python) ADDRESS read TOPIC COUNT    prints records as LINES of JSON
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

SECONDS = 120.0


def mock(brokers: int) -> None:
    """Topics are made when they are asked for, with four partitions; their leaders are spread over the brokers."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": "none:1", "test.mock.num.brokers": brokers})
    found = producer.list_topics(timeout=20).brokers.values()
    print(",".join(f"{one.host}:{one.port}" for one in found), flush=True)
    sys.stdin.read()


def ask_confluent(address: str, topic: str, messages: Iterable[Any]) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": address})
    for one in messages:
        producer.produce(topic, key=one["key"], value=one["value"], headers=one["headers"])
    assert producer.flush(SECONDS) == 0


def ask_kafka_python(address: str, topic: str, messages: Iterable[Any]) -> None:
    from kafka import KafkaProducer

    # no producer id: the broker of the tests gives none to requests of this client's version
    producer = KafkaProducer(bootstrap_servers=address, enable_idempotence=False)
    for one in messages:
        headers = [(name, value.encode()) for name, value in one["headers"].items()]
        producer.send(topic, key=one["key"].encode(), value=one["value"].encode(), headers=headers).get(SECONDS)
    producer.close()


def read_confluent(address: str, topic: str) -> Iterator[tuple[bytes, bytes, Any]]:
    from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

    settings = {"bootstrap.servers": address, "group.id": "confluent", "isolation.level": "read_committed"}
    consumer = Consumer(settings)
    until = time.monotonic() + SECONDS
    numbers: Iterable[int] = ()
    while not numbers and time.monotonic() < until:  # the topic may not be there yet
        numbers = consumer.list_topics(topic, timeout=SECONDS).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in numbers])
    while time.monotonic() < until:
        record = consumer.poll(0.5)
        if record is not None and record.error() is None:
            yield record.key(), record.value(), record.headers()


def read_kafka_python(address: str, topic: str) -> Iterator[tuple[bytes, bytes, Any]]:
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(bootstrap_servers=address, auto_offset_reset="earliest")
    until = time.monotonic() + SECONDS
    partitions = None
    while not partitions and time.monotonic() < until:
        partitions = consumer.partitions_for_topic(topic)
    consumer.assign([TopicPartition(topic, number) for number in partitions or ()])
    while time.monotonic() < until:
        for records in consumer.poll(500).values():
            yield from ((record.key, record.value, record.headers) for record in records)


def main() -> None:
    if sys.argv[1] == "mock":
        mock(int(sys.argv[2]))
        return
    client, address, verb, topic, *count = sys.argv[1:]
    ask = {"confluent": ask_confluent, "kafka-python": ask_kafka_python}[client]
    read = {"confluent": read_confluent, "kafka-python": read_kafka_python}[client]
    if verb == "ask":
        ask(address, topic, map(json.loads, sys.stdin))
        return
    left = int(count[0])
    for key, value, headers in read(address, topic):
        named = {name: content.decode() for name, content in headers}
        print(json.dumps({"key": key.decode(), "value": value.decode(), "headers": named}), flush=True)
        left -= 1
        if not left:
            return
    sys.exit(f"{left} records did not come")


if __name__ == "__main__":
    main()
