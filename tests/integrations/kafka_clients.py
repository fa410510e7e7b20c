"""Kafka's other clients, and the brokers that one of them brings, run in an environment of their own.

python kafka_clients.py mock BROKERS    librdkafka's mock cluster: prints its addresses, lives until stdin ends. Lines
    there are faults, each answered by a line: down, up, create TOPIC PARTITIONS, delete TOPIC, error TOPIC CODE,
    refuse API TIMES CODE
python kafka_clients.py (confluent|kafka-python) ADDRESS ask TOPIC < LINES of JSON: key, value, headers
python kafka_clients.py (confluent|kafka-python) ADDRESS read TOPIC COUNT    prints records as LINES of JSON
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import confluent_kafka

SECONDS = 120.0


class LibrdkafkaBrokers:
    """The mock cluster of `rdkafka_mock.h`, which the Python package has but does not show. Topics are made when they
    are asked for, with four partitions; their leaders are spread over the brokers. What was written outlives `down`."""

    def __init__(self, brokers: int) -> None:
        (library,) = Path(confluent_kafka.__file__).parent.with_name("confluent_kafka.libs").glob("librdkafka*")
        self._library, self._brokers = ctypes.CDLL(str(library)), brokers
        pointer = ctypes.c_void_p
        for name in ("rd_kafka_new", "rd_kafka_mock_cluster_new"):
            getattr(self._library, name).restype = pointer
        self._library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        self._client = pointer(self._library.rd_kafka_new(0, None, None, 0))
        self._cluster = pointer(self._library.rd_kafka_mock_cluster_new(self._client, brokers))
        self.addresses = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def do(self, verb: str, *words: str) -> None:
        if verb in ("down", "up"):
            for number in range(1, self._brokers + 1):
                self._call(f"broker_set_{verb}", number)
            return
        if verb == "refuse":  # so many requests of one kind, each with this error
            api, times, code = map(int, words)
            self._call("push_request_errors", api, times, *[code] * times)
            return
        name, *numbers = words
        kind = {"create": "topic_create", "delete": "topic_delete", "error": "topic_set_error"}[verb]
        self._call(kind, name.encode(), *map(int, numbers), *([1] if verb == "create" else []))

    def _call(self, name: str, *words: object) -> None:
        getattr(self._library, f"rd_kafka_mock_{name}")(self._cluster, *words)


def mock(brokers: int) -> None:
    cluster = LibrdkafkaBrokers(brokers)
    print(cluster.addresses, flush=True)
    for line in sys.stdin:
        cluster.do(*line.split())
        print("done", flush=True)


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
