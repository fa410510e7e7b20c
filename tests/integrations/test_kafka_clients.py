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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.integrations.conftest import ROOT, SECONDS
from tests.kafka_broker import Brokers, broker
from tests.live import Live
from tests.questions import ask_fingerprint, fingerprint, numbers
from tests.stories.test_92_kafka import bridge

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


@contextlib.contextmanager
def mock_cluster() -> Iterator[str]:
    """Three of librdkafka's brokers; they make topics when they are asked for."""
    words = [str(PYTHON), str(SCRIPT), "mock", "3"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


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
    with mock_cluster() as address:
        assert address.count(":") == 3
        assert ask_and_read(live, address, ["confluent"]) == [MESSAGES]


async def test_processes_killed_at_the_mock_cluster(live: Live) -> None:
    """A group of two, one of which is killed with SIGKILL again and again: every message has its right reply, and the
    dead letters are the wrong messages and nothing else."""
    keys = {b"%d" % seed for seed in range(MANY)}
    wrong = {b"wrong-%d" % at for at in range(WRONG)}
    messages = [(key, json.dumps(numbers(int(key))).encode()) for key in keys] + [(key, b"[1, 2]") for key in wrong]
    random.Random(1).shuffle(messages)
    with mock_cluster() as address:
        brokers = Brokers(address)
        with bridge(live, address, "--as=row"):
            for part in range(KILLS):
                with bridge(live, address, "--as=row") as process:
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
    with mock_cluster() as address:
        brokers = Brokers(address)
        await brokers.send("asked", messages[::2])
        with bridge(live, address, "--as=row", "--transactional-id=tx"):
            with bridge(live, address, "--as=row", "--transactional-id=tx"):
                await brokers.send("asked", messages[1::2])
                await asyncio.sleep(3)
            await brokers.read("replies", keys, SECONDS, check_crcs=False)
        replies = await brokers.committed("replies", check_crcs=False)
    assert Counter(record.key for record in replies) == dict.fromkeys(keys, 1)
    for record in replies:
        assert json.loads(record.value)["outputs"][0]["data"] == fingerprint(numbers(int(record.key)))
