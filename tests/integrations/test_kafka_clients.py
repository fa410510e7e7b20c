"""Requests written and replies read by confluent-kafka (librdkafka) and by kafka-python, at two brokers that are not
ours: Tansu, and librdkafka's mock cluster, whose partitions have their leaders at three addresses.

kafka-python finds no way into the mock cluster ("Unable to bootstrap").
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.integrations.conftest import ROOT, SECONDS
from tests.kafka_broker import Brokers, broker
from tests.kafka_gate import GROUP_REFUSED, JOIN_GROUP, NO_TOPIC, TOPIC_REFUSED
from tests.live import Live
from tests.questions import ask_fingerprint, fingerprint, numbers
from tests.stories.test_92_kafka import bridge
from tests.stories.test_92_kafka_brokers import MOST_OF_A_KIND, answered, watched

PYTHON = ROOT / ".venv-kafka/bin/python"
SCRIPT = Path(__file__).with_name("kafka_clients.py")
CLIENTS = ("confluent", "kafka-python")
MESSAGES, MANY, KILLS, WRONG = 20, 400, 3, 10


def run(*words: object, given: str = "") -> list[Any]:
    """The lines that the other environment prints."""
    command = [str(PYTHON), str(SCRIPT), *map(str, words)]
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


class MockCluster(Brokers):
    """Three of librdkafka's brokers; they make topics when they are asked for."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._written, self._read = process.stdin, process.stdout
        super().__init__(self._read.readline().strip())

    def do(self, line: str) -> None:
        """A fault; `kafka_clients.py` lists them."""
        print(line, file=self._written, flush=True)
        assert self._read.readline() == "done\n"

    def close(self) -> None:
        self._written.close()
        self._read.close()


@contextlib.contextmanager
def mock_cluster() -> Iterator[MockCluster]:
    words = [str(PYTHON), str(SCRIPT), "mock", "3"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    cluster = MockCluster(process)
    try:
        yield cluster
    finally:
        cluster.close()
        process.wait(20)


def lines(first: int) -> str:
    """Messages with the keys first, first + 1 …"""
    made = [
        {
            "key": f"{seed}",
            "value": json.dumps(ask_fingerprint(numbers(seed + 1))),
            "headers": {"kafka_correlationId": f"id-{seed}", "ce_type": "asked"},
        }
        for seed in range(first, first + MESSAGES)
    ]
    return "".join(f"{json.dumps(one)}\n" for one in made)


def check(records: list[Any]) -> None:
    """Each reply is the oracle's, under the key and the ids of its message."""
    assert {int(one["key"]) for one in records} == set(range(len(records)))
    for one in records:
        seed = int(one["key"])
        assert json.loads(one["value"])["outputs"][0]["data"] == fingerprint(numbers(seed + 1))
        headers = one["headers"]
        assert (headers["kafka_correlationId"], headers["ce_type"]) == (f"id-{seed}", "asked")
        assert headers["content-type"] == "application/json"
        assert len(headers["foreseen-model-digest"]) == 64
        assert headers["foreseen-cache-status"].startswith("foreseen;")


def ask_and_read(live: Live, address: str, clients: Sequence[str]) -> list[int]:
    """How many right replies each client has read."""
    with bridge(live, address):
        for at, client in enumerate(clients):
            run(client, address, "ask", "asked", given=lines(at * MESSAGES))
        read = [run(client, address, "read", "replies", len(clients) * MESSAGES) for client in clients]
    for records in read:
        check(records)
    return [len(records) for records in read]


async def test_at_tansu(live: Live, tmp_path: Path) -> None:
    with broker(tmp_path) as one:
        await one.create("asked", "replies", "dead")
        read = await asyncio.to_thread(ask_and_read, live, one.address, CLIENTS)
    assert read == [len(CLIENTS) * MESSAGES] * len(CLIENTS)


def test_at_librdkafkas_mock_cluster(live: Live) -> None:
    with mock_cluster() as brokers:
        assert brokers.address.count(":") == 3
        assert ask_and_read(live, brokers.address, ["confluent"]) == [MESSAGES]


async def test_processes_killed_at_the_mock_cluster(live: Live) -> None:
    """A group of two, one of which is killed with SIGKILL again and again: every message has its right reply, and the
    dead letters are the wrong messages and nothing else."""
    keys = {b"%d" % seed for seed in range(MANY)}
    wrong = {b"wrong-%d" % at for at in range(WRONG)}
    messages = [(key, json.dumps(numbers(int(key))).encode()) for key in keys] + [(key, b"[1, 2]") for key in wrong]
    random.Random(1).shuffle(messages)
    with mock_cluster() as brokers, bridge(live, brokers.address, "--as=row"):
        for part in range(KILLS):
            with bridge(live, brokers.address, "--as=row") as process:
                await brokers.send("asked", messages[part::KILLS])
                await asyncio.sleep(3)
                process.kill()
        replies = await brokers.read("replies", keys, SECONDS)
        dead = await brokers.read("dead", wrong, SECONDS)
    for record in replies:
        assert json.loads(record.value)["outputs"][0]["data"] == fingerprint(numbers(int(record.key)))
    assert {record.key for record in replies} == keys
    assert {record.key for record in dead} == wrong


async def test_transactions_at_the_mock_cluster(live: Live) -> None:
    """Each message has one reply, though its partition moves from process to process. (The mock cluster's markers of
    transactions have no checksum.)"""
    keys = {b"%d" % seed for seed in range(MANY)}
    messages = [(key, json.dumps(numbers(int(key))).encode()) for key in keys]
    with mock_cluster() as brokers:
        await brokers.send("asked", messages[::2])
        with bridge(live, brokers.address, "--as=row", "--transactional-id=tx"):
            with bridge(live, brokers.address, "--as=row", "--transactional-id=tx"):
                await brokers.send("asked", messages[1::2])
                await asyncio.sleep(3)
            await brokers.read("replies", keys, SECONDS, check_crcs=False)
        replies = await brokers.committed("replies", check_crcs=False)
    assert Counter(record.key for record in replies) == dict.fromkeys(keys, 1)
    for record in replies:
        assert json.loads(record.value)["outputs"][0]["data"] == fingerprint(numbers(int(record.key)))


async def test_failures_of_the_mock_cluster(live: Live) -> None:
    """Brokers that stop and start with what they have; a group, the topic of the requests and that of the replies
    refused; the topic of the requests gone, with its messages, and made again. Each is said in a line and gone through,
    and no line is written again and again."""
    with mock_cluster() as cluster:
        cluster.do(f"refuse {JOIN_GROUP[0]} 2 {GROUP_REFUSED}")
        async with watched(live, cluster.address) as process:
            await process.until(said("GroupAuthorizationFailed", "retrying"))
            await answered(cluster, 1, 2)

            mark = len(process.lines)
            cluster.do("down")
            await process.until(said("connect"), mark)
            cluster.do("up")
            await answered(cluster, 3, 4)

            for topic in ("asked", "replies"):
                mark = len(process.lines)
                cluster.do(f"error {topic} {TOPIC_REFUSED}")
                if topic == "asked":
                    await process.until(said("retrying", topic), mark)
                cluster.do(f"error {topic} 0")
                await answered(cluster, 5, 6)

            mark = len(process.lines)
            cluster.do("delete asked")
            cluster.do(f"error asked {NO_TOPIC}")
            await process.until(said("topic asked: not there"), mark)
            cluster.do("error asked 0")
            await answered(cluster, 7, 8)
    events = Counter(json.loads(line)["event"] for line in process.lines)
    assert max(events.values()) < MOST_OF_A_KIND, events
    assert not any("Traceback" in line for line in process.lines)


def said(*parts: str) -> Callable[[str], bool]:
    return lambda line: all(part in line for part in parts)
