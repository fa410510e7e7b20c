"""aiokafka as the bridge's consumer, and how brokers are reached. aiokafka's errors become BrokerError here."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError, MessageSizeTooLargeError, RecordListTooLargeError
from aiokafka.helpers import create_ssl_context

from foreseen.errors import SetupError
from foreseen.proxy.kafka.messages import Incoming
from foreseen.proxy.kafka.ports import BrokerError, Place, RecordTooLarge
from foreseen.settings import BrokerSettings, KafkaSettings

MAX_POLL_INTERVAL_MS = 300_000
REQUEST_BYTES = 64 << 20
METADATA_MS = 10_000
"""How often topics are looked at, so that a topic that is gone, or has more partitions, is noticed."""
SELDOM_SECONDS, NUMBERS = 10.0, re.compile(r"[0-9]+")
COMMIT_SECONDS = 5.0
"""aiokafka tries some commits again for ever."""
MOST_CHARACTERS = 300
"""Of an error's line."""


def access(settings: BrokerSettings) -> dict[str, Any]:
    """How the brokers are spoken to. Raises SetupError naming the file that cannot be read."""
    options: dict[str, Any] = {
        "bootstrap_servers": ",".join(settings.brokers),
        "security_protocol": settings.security_protocol,
    }
    if settings.security_protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(settings)
    if settings.security_protocol.startswith("SASL"):
        if settings.sasl_username is None or settings.sasl_password_file is None:
            raise SetupError(
                f"--security-protocol {settings.security_protocol}: needs --sasl-username and --sasl-password-file"
            )
        try:
            password = settings.sasl_password_file.read_text("utf-8").strip()
        except OSError as error:
            raise SetupError(f"--sasl-password-file {settings.sasl_password_file}: {error.strerror}") from None
        options |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.sasl_username,
            "sasl_plain_password": password,
        }
    return options


def _ssl_context(settings: BrokerSettings) -> ssl.SSLContext:
    files = [settings.ssl_cafile, settings.ssl_certfile, settings.ssl_keyfile]
    names = [None if file is None else str(file) for file in files]
    try:
        context: ssl.SSLContext = create_ssl_context(cafile=names[0], certfile=names[1], keyfile=names[2])
        return context
    except (OSError, ssl.SSLError) as error:
        raise SetupError(f"--ssl-cafile, --ssl-certfile or --ssl-keyfile: {error}") from None


class PartitionOwner(Protocol):
    """What is told of the partitions that come and go, before the group goes on."""

    async def partitions_assigned(self, places: Sequence[Place]) -> None: ...
    async def partitions_revoked(self, places: Sequence[Place]) -> None: ...


class KafkaConsumer(ConsumerRebalanceListener):  # type: ignore[misc]
    """A member of the group. A group without committed offsets starts at the earliest message."""

    def __init__(self, settings: KafkaSettings, owner: PartitionOwner) -> None:
        self._topic, self._owner = settings.topic, owner
        self._transactional = settings.transactional_id is not None
        self._starting: set[TopicPartition] = set()
        self._consumer = AIOKafkaConsumer(
            **access(settings),
            group_id=settings.group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            max_poll_interval_ms=MAX_POLL_INTERVAL_MS,
            metadata_max_age_ms=METADATA_MS,
            fetch_max_bytes=REQUEST_BYTES,
        )

    async def start(self) -> None:
        """Join the group. Raises BrokerError."""
        self._consumer.subscribe([self._topic], listener=self)
        await spoken(self._consumer.start())

    async def stop(self) -> None:
        """Leave it, so that its partitions move at once."""
        await spoken(self._consumer.stop())

    async def poll(self, timeout_ms: int, most: int) -> Sequence[Incoming]:
        """Raises BrokerError, also where the topic is gone."""
        self._check_topic()
        found = await spoken(self._consumer.getmany(timeout_ms=timeout_ms, max_records=most))
        return [
            Incoming(one.topic, one.partition, one.offset, one.key, one.value, one.headers)
            for records in found.values()
            for one in records
        ]

    def pause(self) -> None:
        self._consumer.pause(*self._consumer.assignment())

    def resume(self) -> None:
        self._consumer.resume(*(self._consumer.paused() - self._starting))

    async def commit(self, offsets: Mapping[Place, int]) -> None:
        mine = self._consumer.assignment()
        wanted = {TopicPartition(*place): at for place, at in offsets.items() if TopicPartition(*place) in mine}
        if wanted:
            self._check_topic()
            await spoken(asyncio.wait_for(self._consumer.commit(wanted), COMMIT_SECONDS))

    def _check_topic(self) -> None:
        if not self._consumer.partitions_for_topic(self._topic):
            raise BrokerError(f"topic {self._topic}: not there, or not visible to this user")

    async def lag(self) -> int:
        """Messages of the own partitions that have not been read yet, as the broker's last answers say."""
        total = 0
        for partition in self._consumer.assignment():
            end = self._consumer.highwater(partition)
            if end is not None:
                total += max(0, end - await spoken(self._consumer.position(partition)))
        return total

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """aiokafka's own name. It waits for this before the group goes on."""
        await self._owner.partitions_revoked([(one.topic, one.partition) for one in revoked])

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """aiokafka's own name. With transactions the offsets to begin at are read when the owners before can commit
        nothing any more; until then the partitions are paused."""
        places = [(one.topic, one.partition) for one in assigned]
        if not self._transactional:
            await self._owner.partitions_assigned(places)
            return
        self._starting = set(assigned)
        self._consumer.pause(*self._starting)
        await self._owner.partitions_assigned(places)
        for one in self._starting:
            offset = await spoken(self._consumer.committed(one))
            if offset is not None:
                self._consumer.seek(one, offset)
        self._consumer.resume(*self._starting)
        self._starting = set()


async def spoken(call: Awaitable[Any]) -> Any:
    """What the call comes to. Raises BrokerError for errors of the broker and of the network."""
    try:
        return await call
    except (KafkaError, TimeoutError, OSError) as error:
        raise broker_error(error) from error


def broker_error(error: Exception) -> BrokerError:
    """An error of aiokafka or of the network, in one line. Raises any other again."""
    if isinstance(error, BrokerError):
        return error
    if isinstance(error, KafkaConnectionError) and CAUSE.last:
        return BrokerError(CAUSE.last)
    if isinstance(error, KafkaError):
        name = type(error).__name__
        line = " ".join(f"{name}: {str(error).removeprefix(f'{name}: ')}".split())[:MOST_CHARACTERS]
        too_large = isinstance(error, MessageSizeTooLargeError | RecordListTooLargeError)
        return RecordTooLarge(line) if too_large else BrokerError(line)
    if isinstance(error, TimeoutError | OSError):
        return BrokerError(str(error) or type(error).__name__)
    raise error


class ClientLog(logging.Filter):
    """Keeps what aiokafka has logged last of a connection: its exceptions say only that there is none. Passes lines
    that differ only in numbers once in ten seconds: aiokafka repeats what it tries again ten times a second."""

    def __init__(self) -> None:
        super().__init__()
        self.last = ""
        self._passed: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        line = record.getMessage().splitlines()[0][:MOST_CHARACTERS]
        if record.levelno >= logging.ERROR and "connect" in record.msg:
            self.last = line
        now, kind = time.monotonic(), NUMBERS.sub("", line)
        if record.levelno < logging.WARNING or now - self._passed.get(kind, -SELDOM_SECONDS) >= SELDOM_SECONDS:
            self._passed = {one: at for one, at in self._passed.items() if now - at < SELDOM_SECONDS}
            self._passed[kind] = now
            return True
        return False


CAUSE = ClientLog()
for _name in ("", ".conn", ".cluster", ".consumer.fetcher", ".consumer.group_coordinator", ".producer.sender"):
    logging.getLogger(f"aiokafka{_name}").addFilter(CAUSE)
