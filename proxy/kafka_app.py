"""Builds and runs `foreseen kafka`: a proxy whose requests are messages of a topic. It listens only for scrapes."""

from __future__ import annotations

import asyncio
import importlib.util
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
import uvloop

from foreseen.errors import ForeseenError, SetupError
from foreseen.gc_freeze import settle
from foreseen.paths import state_socket
from foreseen.proxy.assembly import Proxy
from foreseen.proxy.from_settings import upstream_for
from foreseen.proxy.kafka.bridge import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, BrokerError, KafkaBridge, Topics
from foreseen.proxy.kafka.messages import Reader, RowInput
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.response_bytes import Reply
from foreseen.proxy.until_ready import known_models, scraped
from foreseen.settings import KafkaSettings
from foreseen.tasks import end
from foreseen.tenants.tenant import PUBLIC_TENANT, Tenant

if TYPE_CHECKING:
    from foreseen.proxy.kafka.client import KafkaConsumer

LAG_SECONDS = 5.0

log = structlog.get_logger()


class ProxyAnswers:
    """The normal way of one proxy, and the digest that its answers are of."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    async def answer(self, head: RequestHead, body: bytes) -> Reply:
        responder = self._proxy.responder
        return await responder.answer(responder.traced(head), body)

    def digest_of(self, head: RequestHead, body: bytes) -> str | None:
        try:
            served = self._proxy.served.get(self._proxy.responder.named(head, body).model)
        except ForeseenError:
            return None
        return None if served is None or served.facts is None else served.facts.digest


async def _run(settings: KafkaSettings) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    proxy = Proxy(replace(settings, observe=()), await upstream_for(settings), "foreseen-kafka")
    proxy.metrics.workers.set(0)  # of proxies
    async with scraped(proxy, settings.host, settings.metrics_port, settings.keepalive_seconds), proxy.running():
        await known_models(proxy.served.values(), stopping)
        reader = Reader(
            settings.model[0].partition("=")[0] if settings.model else "",
            settings.value_as,
            _tenant(proxy, settings),
            settings.deadline_seconds,
            _row_input(proxy, settings),
        )
        topics = Topics(settings.reply_topic, settings.allow_reply_topic, settings.dead_letter_topic)
        bridge = KafkaBridge(reader, ProxyAnswers(proxy), topics, proxy.metrics, ordered=settings.ordered)
        bridge.stopping = stopping
        settle()
        pause = FIRST_PAUSE_SECONDS
        while not stopping.is_set():
            try:
                await _read(settings, proxy, bridge)
            except BrokerError as error:
                log.warning("kafka: not reachable or refused; it is tried again", error=str(error), seconds=pause)
                await _wait(stopping, pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


async def _read(settings: KafkaSettings, proxy: Proxy, bridge: KafkaBridge) -> None:
    """One membership in the group, until the process stops. Raises BrokerError where it ends otherwise."""
    from foreseen.proxy.kafka.client import KafkaConsumer, KafkaProducer

    consumer = KafkaConsumer(settings, lambda places: bridge.revoked(consumer, places))
    producer = KafkaProducer(settings)
    try:
        await producer.start()
        await consumer.start()
        log.info("reading", topic=settings.topic, group=settings.group, models=list(proxy.served))
        watching = asyncio.create_task(_watch_lag(proxy, consumer))
        try:
            await bridge.run(consumer, producer)
        finally:
            await end(watching)
    finally:
        for part in (consumer, producer):
            try:
                await part.stop()
            except BrokerError as error:
                log.warning("kafka: not left in order", error=str(error))


async def _wait(stopping: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stopping.wait(), seconds)
    except TimeoutError:
        return


async def _watch_lag(proxy: Proxy, consumer: KafkaConsumer) -> None:
    while True:
        try:
            proxy.metrics.kafka_lag.set(await consumer.lag())
        except BrokerError:
            log.debug("kafka: lag not known")
        await asyncio.sleep(LAG_SECONDS)


def _tenant(proxy: Proxy, settings: KafkaSettings) -> Tenant:
    if settings.tenant is None:
        return PUBLIC_TENANT
    found = proxy.keyring.named(settings.tenant)
    if found is None:
        raise SetupError(f"--tenant {settings.tenant}: --keys-file has no such tenant")
    return found


def _row_input(proxy: Proxy, settings: KafkaSettings) -> RowInput | None:
    """The inputs of the model whose rows the values are. Raises SetupError where that is not one."""
    if settings.value_as != "row":
        return None
    if len(proxy.served) != 1:
        raise SetupError("--as row: needs exactly one --model")
    (served,) = proxy.served.values()
    return RowInput({one.name: (one.datatype, len(one.shape) - 1) for one in served.manifest.seen.inputs})


def run(settings: KafkaSettings) -> None:
    """Work until SIGTERM or SIGINT. Raises SetupError where something is not as it must be."""
    settings.check()
    if importlib.util.find_spec("aiokafka") is None:
        raise SetupError("foreseen kafka: needs the extra kafka: pip install 'foreseen[kafka]'")
    uvloop.run(_run(with_state(settings)))


def with_state(settings: KafkaSettings) -> KafkaSettings:
    """With the state store that `foreseen up` runs in the same data directory, unless another is given: without it
    purges would not be known here, and the answers of its proxies not be found."""
    own = state_socket(settings.data)
    return replace(settings, state=f"unix://{own}") if settings.state is None and own.exists() else settings
