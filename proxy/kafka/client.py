"""aiokafka as the bridge's consumer and producer. The only module that imports it; its errors become BrokerError."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.helpers import create_ssl_context

from foreseen.errors import SetupError
from foreseen.proxy.kafka.bridge import BrokerError, Place
from foreseen.proxy.kafka.messages import Incoming, Outgoing
from foreseen.settings import KafkaSettings

MAX_POLL_INTERVAL_MS = 300_000
REQUEST_BYTES = 64 << 20


def access(settings: KafkaSettings) -> dict[str, Any]:
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


def _ssl_context(settings: KafkaSettings) -> ssl.SSLContext:
    files = [settings.ssl_cafile, settings.ssl_certfile, settings.ssl_keyfile]
    names = [None if file is None else str(file) for file in files]
    try:
        context: ssl.SSLContext = create_ssl_context(cafile=names[0], certfile=names[1], keyfile=names[2])
        return context
    except (OSError, ssl.SSLError) as error:
        raise SetupError(f"--ssl-cafile, --ssl-certfile or --ssl-keyfile: {error}") from None


class KafkaConsumer(ConsumerRebalanceListener):  # type: ignore[misc]
    """A member of the group. A group without committed offsets starts at the earliest message."""

    def __init__(self, settings: KafkaSettings, revoked: Callable[[Sequence[Place]], Awaitable[None]]) -> None:
        self._topic, self._revoked = settings.topic, revoked
        self._consumer = AIOKafkaConsumer(
            **access(settings),
            group_id=settings.group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            max_poll_interval_ms=MAX_POLL_INTERVAL_MS,
            fetch_max_bytes=REQUEST_BYTES,
        )

    async def start(self) -> None:
        """Join the group. Raises BrokerError."""
        self._consumer.subscribe([self._topic], listener=self)
        await _spoken(self._consumer.start())

    async def stop(self) -> None:
        """Leave it, so that its partitions move at once."""
        await _spoken(self._consumer.stop())

    async def poll(self, timeout_ms: int, most: int) -> Sequence[Incoming]:
        found = await _spoken(self._consumer.getmany(timeout_ms=timeout_ms, max_records=most))
        return [
            Incoming(one.topic, one.partition, one.offset, one.key, one.value, one.headers)
            for records in found.values()
            for one in records
        ]

    def pause(self) -> None:
        self._consumer.pause(*self._consumer.assignment())

    def resume(self) -> None:
        self._consumer.resume(*self._consumer.paused())

    async def commit(self, offsets: Mapping[Place, int]) -> None:
        mine = self._consumer.assignment()
        wanted = {TopicPartition(*place): at for place, at in offsets.items() if TopicPartition(*place) in mine}
        if wanted:
            await _spoken(self._consumer.commit(wanted))

    async def lag(self) -> int:
        """Messages of the own partitions that have not been read yet, as the broker's last answers say."""
        total = 0
        for partition in self._consumer.assignment():
            end = self._consumer.highwater(partition)
            if end is not None:
                total += max(0, end - await _spoken(self._consumer.position(partition)))
        return total

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """aiokafka's own name. It waits for this before the group goes on."""
        await self._revoked([(one.topic, one.partition) for one in revoked])

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """aiokafka's own name."""


class KafkaProducer:
    """Sends replies; the call returns when all in-sync replicas have one. Not idempotent: delivery is at least once,
    and an idempotent producer needs a right of its own and brokers that know producer ids."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._producer = AIOKafkaProducer(
            **access(settings),
            acks="all",
            linger_ms=2,
            max_request_size=REQUEST_BYTES,
        )

    async def start(self) -> None:
        await _spoken(self._producer.start())

    async def stop(self) -> None:
        await _spoken(self._producer.stop())

    async def send(self, record: Outgoing) -> None:
        await (
            await _spoken(self._producer.send(record.topic, value=record.value, key=record.key, headers=record.headers))
        )


async def _spoken(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except KafkaError as error:
        raise BrokerError(f"{type(error).__name__}: {error}".splitlines()[0][:300]) from error
    except (TimeoutError, OSError) as error:
        raise BrokerError(str(error) or type(error).__name__) from error
