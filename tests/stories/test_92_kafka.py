"""Messages of a topic are answered by the engine: nothing is lost to a kill, and what is wrong is a dead letter."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kafka_broker import Broker, broker
from tests.live import Live
from tests.ports import free_port

MESSAGES = int(os.environ.get("FORESEEN_TEST_KAFKA_MESSAGES", "600"))
KILLS = int(os.environ.get("FORESEEN_TEST_KAFKA_KILLS", "2"))
WRONG = 10
WEIGHTS = [[pow(2 * i + 3, j + 1, 2**64) for j in range(4)] for i in range(16)]


def rows(count: int) -> list[list[int]]:
    dice = random.Random(5)
    return [[dice.randrange(-(2**62), 2**62) for _ in range(16)] for _ in range(count)]


def digest(row: list[int]) -> list[int]:
    """What the model `fingerprint` says of a row: x·M mod 2^64, signed."""
    sums = [sum(x * WEIGHTS[i][j] for i, x in enumerate(row)) % 2**64 for j in range(4)]
    return [one - 2**64 if one >= 2**63 else one for one in sums]


@contextlib.contextmanager
def bridge(system: Live, address: str, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """A `foreseen kafka` process."""
    process = subprocess.Popen(command(system, address, *flags))
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def command(system: Live, address: str, *flags: str) -> list[str]:
    return [
        sys.executable, "-P", "-m", "foreseen.cli", "kafka", f"--data={system.data}", "--model=fingerprint",
        f"--brokers={address}", "--topic=asked", "--reply-topic=replies", "--group=g", "--dead-letter-topic=dead",
        "--log-level=warning", *flags,
    ]  # fmt: skip


def scraped(port: int) -> dict[str, str]:
    """The samples of a process's own metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as page:
        lines = page.read().decode().splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Broker]:
    with broker(tmp_path) as one:
        yield one


@pytest.mark.long
async def test_nothing_is_lost_when_processes_are_killed(live: Live, running: Broker) -> None:
    """Two processes of a group, one killed with SIGKILL again and again: every message has its right reply, duplicates
    agree, and the dead letters are exactly the messages that are wrong."""
    await running.create("asked", "replies", "dead")
    asked = rows(MESSAGES)
    messages = [(b"%d" % at, json.dumps(row).encode()) for at, row in enumerate(asked)]
    wrong = [(b"wrong-%d" % at, b"[1, 2, %d]" % at) for at in range(WRONG)]
    mixed = messages + wrong
    random.Random(1).shuffle(mixed)
    await running.send("asked", mixed)
    stopping, kills = threading.Event(), []

    def keep_killing() -> None:
        while not stopping.is_set():
            process = subprocess.Popen(command(live, running.address, "--as=row"))
            stopping.wait(4 if len(kills) < KILLS else None)
            process.kill() if len(kills) < KILLS else process.terminate()
            kills.append(process.wait(30))

    killer = threading.Thread(target=keep_killing)
    with bridge(live, running.address, "--as=row"):
        killer.start()
        try:
            replies = await running.read("replies", {key for key, _ in messages}, 240)
            dead = await running.read("dead", {key for key, _ in wrong}, 60)
        finally:
            stopping.set()
            killer.join()
    for record in replies:
        outputs = {one["name"]: one["data"] for one in json.loads(record.value)["outputs"]}
        assert outputs["digest"] == digest(asked[int(record.key)])
        assert dict(record.headers)["foreseen-model-digest"]
    print(f"{len(replies) - MESSAGES} duplicates of {MESSAGES}, {len(kills) - 1} kills")
    assert {record.key for record in dead} == {key for key, _ in wrong}
    assert {dict(record.headers)["foreseen-error-status"] for record in dead} == {b"400"}


async def test_known_rows_do_not_reach_the_model(live: Live, running: Broker) -> None:
    """V2 bodies whose rows HTTP has asked before are hits; correlation ids come back."""
    await running.create("asked", "replies", "dead", partitions=1)
    row = rows(1)[0]
    body: Any = {"inputs": [{"name": "x", "datatype": "INT64", "shape": [1, 16], "data": row}]}
    status, _, _ = live.post("/v2/models/fingerprint/infer", body)
    assert status == 200
    before = live.metric("foreseen_rows_total", result="model")
    await running.send("asked", [(b"k", json.dumps(body).encode())], [("kafka_correlationId", b"77")])
    port = free_port()
    with bridge(live, running.address, "--ordered", f"--metrics-port={port}"):
        (reply,) = await running.read("replies", {b"k"}, 120)
        samples: dict[str, str] = {}
        async with asyncio.timeout(60):
            while samples.get('foreseen_kafka_messages_total{outcome="answered"}') != "1.0":
                samples = await asyncio.to_thread(scraped, port)
    gauges = {"foreseen_kafka_lag_messages", "foreseen_kafka_in_flight_messages", "foreseen_kafka_rebalances_total"}
    assert gauges <= samples.keys()
    headers = dict(reply.headers)
    assert headers["kafka_correlationId"] == b"77"
    assert b"hit" in headers["foreseen-cache-status"]
    assert live.metric("foreseen_rows_total", result="model") == before


def test_a_broker_that_is_away_is_one_line(live: Live, tmp_path: Path) -> None:
    """Tried again with backoff, said in one line each; SIGTERM ends it in order."""
    one = Broker(1, tmp_path / "log")
    process = subprocess.Popen(command(live, one.address), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines: list[str] = []
    while not any("kafka: not reachable or refused" in line for line in lines):
        lines.append(process.stderr.readline())
        assert lines[-1], lines
    process.terminate()
    assert process.wait(30) == 0
    process.stderr.close()
    assert not any("Traceback" in line for line in lines)
