"""`foreseen kafka` when brokers fail it: each failure is a line, it backs off, and goes on by itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from tests.kafka_broker import Broker, Brokers, broker
from tests.kafka_gate import JOIN_GROUP, PRODUCE, TOPICS, Gate, gate, refuse_group, refuse_topic, without_topic
from tests.live import Live
from tests.ports import free_port
from tests.questions import fingerprint, numbers
from tests.stories.test_92_kafka import command

pytestmark = pytest.mark.long

SECONDS = 90
MOST_OF_A_KIND = 10
"""Lines about one thing; aiokafka would write that many in a second."""


class Watched:
    """A `foreseen kafka` process whose log lines are kept."""

    def __init__(self, words: list[str]) -> None:
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._keeping = threading.Thread(target=self._keep, daemon=True)
        self._keeping.start()

    def _keep(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()

    def end(self) -> int:
        """Its exit status, after SIGTERM."""
        self.process.terminate()
        status = self.process.wait(60)
        self._keeping.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status

    async def until(self, holds: Callable[[str], bool], since: int = 0) -> str:
        """The first line since so many of which this holds."""
        return await asyncio.to_thread(self._wait_for, holds, since)

    def _wait_for(self, holds: Callable[[str], bool], since: int) -> str:
        with self._changed:
            assert self._changed.wait_for(lambda: any(map(holds, self.lines[since:])), SECONDS), self.lines
            return next(filter(holds, self.lines[since:]))


@contextlib.asynccontextmanager
async def watched(live: Live, address: str, *flags: str) -> AsyncIterator[Watched]:
    one = Watched(command(live, address, "--as=row", *flags))
    try:
        yield one
    finally:
        assert await asyncio.to_thread(one.end) == 0


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[tuple[Broker, Gate]]:
    port = free_port()
    with broker(tmp_path, port) as one:
        async with gate(one, port) as before:
            await one.create("asked", "replies", "dead", partitions=2)
            yield one, before


async def answered(one: Brokers, *seeds: int) -> None:
    """These messages are sent, and their replies come."""
    await one.send("asked", [(b"%d" % seed, json.dumps(numbers(seed)).encode()) for seed in seeds])
    await replied(one, *seeds)


async def replied(one: Brokers, *seeds: int) -> None:
    for reply in await one.read("replies", {b"%d" % seed for seed in seeds}, SECONDS):
        assert json.loads(reply.value)["outputs"][0]["data"] == fingerprint(numbers(int(reply.key)))


async def test_a_broker_that_refuses_stops_or_loses_a_topic(live: Live, guarded: tuple[Broker, Gate]) -> None:
    """Authorisation for the group and for the reply topic refused, then given; the brokers not reachable for a while;
    the reply topic deleted and made again: every message is answered in the end, and every line of the log is one
    JSON object without a traceback."""
    one, before = guarded
    before.rewrites[JOIN_GROUP] = refuse_group
    async with watched(live, before.address) as process:
        await process.until(lambda line: "GroupAuthorizationFailed" in line and "retrying" in line)
        del before.rewrites[JOIN_GROUP]
        await answered(one, 1, 2)

        before.rewrites[PRODUCE] = refuse_topic("replies")
        mark = len(process.lines)
        await one.send("asked", [(b"3", json.dumps(numbers(3)).encode())])
        line = await process.until(lambda line: "replies not sent" in line, mark)
        assert json.loads(line)["topic"] == "replies"
        assert "TopicAuthorizationFailed" in json.loads(line)["error"]
        del before.rewrites[PRODUCE]
        await replied(one, 3)

        mark = len(process.lines)
        await before.close()
        await process.until(lambda line: "connect" in line.lower(), mark)
        await before.open()
        await answered(one, 4)

        await delete(one, "replies")
        await one.send("asked", [(b"5", json.dumps(numbers(5)).encode())])
        await one.create("replies", partitions=2)  # unless the broker has made it already, when the reply came
        await replied(one, 5)
    for line in process.lines:
        assert "event" in json.loads(line)
        assert "Traceback" not in line


async def test_the_topic_of_the_requests_goes_and_comes_back(live: Live, guarded: tuple[Broker, Gate]) -> None:
    """Where the broker says that there is no such topic, the process says so in lines that do not flood the log, and
    goes on when the topic is there again. It starts, and stops, without the topic too."""
    one, before = guarded
    async with watched(live, before.address) as process:
        await answered(one, 1, 2)
        before.rewrites[TOPICS] = without_topic("asked")
        line = await process.until(lambda line: "topic asked: not there" in line and "retrying" in line)
        assert "Traceback" not in line
        async with watched(live, before.address) as other:
            await other.until(lambda line: "asked not found" in line)
        del before.rewrites[TOPICS]
        await answered(one, 3, 4)
    events = [json.loads(line)["event"] for line in process.lines]
    assert max(Counter(events).values()) < MOST_OF_A_KIND, events


async def delete(one: Broker, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=one.address)
    await admin.start()
    try:
        await admin.delete_topics([topic])
    finally:
        await admin.close()
