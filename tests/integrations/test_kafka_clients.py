"""Requests written and replies read by confluent-kafka (librdkafka) and by kafka-python, at a real broker (Tansu)."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.integrations.conftest import ROOT, SECONDS
from tests.kafka_broker import broker
from tests.live import Live
from tests.questions import ask_fingerprint, fingerprint, numbers
from tests.stories.test_92_kafka import bridge

PYTHON = ROOT / ".venv-kafka/bin/python"
SCRIPT = Path(__file__).with_name("kafka_clients.py")
CLIENTS = ("confluent", "kafka-python")
MESSAGES = 20


def run(*words: object, given: str = "") -> list[Any]:
    """The lines that the other environment prints."""
    command = [str(PYTHON), str(SCRIPT), *map(str, words)]
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


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
