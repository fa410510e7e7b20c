"""Builds and runs `foreseen kafka`: a proxy whose requests are messages of a topic. It listens only for scrapes."""

from __future__ import annotations

import asyncio
import importlib.util
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import structlog
import uvloop
from msgspec import structs

from foreseen.errors import ForeseenError, ModelUnavailable, SetupError
from foreseen.gc_freeze import settle
from foreseen.paths import state_socket
from foreseen.proxy.assembly import Proxy
from foreseen.proxy.from_settings import upstream_for
from foreseen.proxy.kafka.bridge import KafkaBridge, Topics
from foreseen.proxy.kafka.messages import Reader, RowInput
from foreseen.proxy.kafka.outbox import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, ReplyOutbox
from foreseen.proxy.kafka.ports import BrokerError, KafkaOutbox, Place
from foreseen.proxy.kafka.transactions import TransactionalOutbox
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.response_bytes import Reply
from foreseen.proxy.until_ready import known_models, scraped
from foreseen.settings import KafkaSettings
from foreseen.tasks import end
from foreseen.tenants.tenant import PUBLIC_TENANT, Tenant

if TYPE_CHECKING:
    from foreseen.proxy.kafka.client import KafkaConsumer

LAG_SECONDS = 5.0
STOP_SECONDS = 10.0
"""For leaving the group, and for what a producer still has; brokers may be away."""

log = structlog.get_logger()


class ProxyAnswers:
    """The normal path of one proxy, and the digest that its answers are of."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    def begin(self, head: RequestHead, body: bytes, reached: Callable[[Reply], None]) -> Reply | None:
        """As the tenant is in force now. Where it is not, the reply says that the message is to be tried again."""
        responder, tenant = self._proxy.responder, self._proxy.keyring.renewed(head.tenant)
        if tenant is None:
            why = ModelUnavailable(f"tenant {head.tenant.name} is not in the keys file any more, or has expired")
            return responder.failed(head.model, head.protocol, why, time.perf_counter())
        head = responder.traced(structs.replace(head, tenant=tenant))
        reply = responder.begin(head, body, reached, whole=False)
        return reply if isinstance(reply, Reply) else None

    def digest_of(self, head: RequestHead, body: bytes) -> str | None:
        try:
            served = self._proxy.served.get(head.model or self._proxy.responder.named(head, body).model)
        except ForeseenError:
            return None
        return None if served is None or served.facts is None else served.facts.digest


class Membership:
    """One membership in the group, with what is under way in it; a new one begins with nothing."""

    def __init__(self, settings: KafkaSettings, proxy: Proxy, reader: Reader, stopping: asyncio.Event) -> None:
        from foreseen.proxy.kafka.client import KafkaConsumer
        from foreseen.proxy.kafka.producer import KafkaProducer, PartitionTransactions

        self._settings, self._proxy, self._stopping = settings, proxy, stopping
        self._producer = KafkaProducer(settings) if settings.transactional_id is None else None
        dead_letter, metrics = settings.dead_letter_topic, proxy.metrics
        self._outbox: KafkaOutbox = (
            TransactionalOutbox(partial(PartitionTransactions, settings), metrics)
            if self._producer is None
            else ReplyOutbox(self._producer, metrics, dead_letter)
        )
        topics = Topics(settings.reply_topic, settings.allow_reply_topic, dead_letter)
        self._bridge = KafkaBridge(
            reader, ProxyAnswers(proxy), topics, metrics, self._outbox, ordered=settings.ordered, stopping=stopping
        )
        self._consumer = KafkaConsumer(settings, self)

    async def read(self) -> None:
        """Work until the process stops. Raises BrokerError where the membership ends otherwise."""
        try:
            if self._producer is not None:
                await self._producer.start()
            if not await _unless(self._stopping, self._consumer.start()):
                return
            log.info("reading", topic=self._settings.topic, group=self._settings.group, models=list(self._proxy.served))
            watching = asyncio.create_task(_watch_lag(self._proxy, self._consumer))
            try:
                await self._bridge.run(self._consumer)
            finally:
                await end(watching)
        finally:
            for part in (self._consumer, self._producer):
                try:
                    if part is not None:
                        async with asyncio.timeout(STOP_SECONDS):
                            await part.stop()
                except (BrokerError, TimeoutError) as error:
                    log.warning("kafka: group not left cleanly", error=str(error) or "the brokers do not answer")

    async def partitions_assigned(self, places: Sequence[Place]) -> None:
        await self._bridge.assigned(places)

    async def partitions_revoked(self, places: Sequence[Place]) -> None:
        await self._bridge.revoked(self._consumer, places)


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
        settle()
        pause = FIRST_PAUSE_SECONDS
        while not stopping.is_set():
            began = asyncio.get_running_loop().time()
            try:
                await Membership(settings, proxy, reader, stopping).read()
            except BrokerError as error:
                if asyncio.get_running_loop().time() - began > LONGEST_PAUSE_SECONDS:
                    pause = FIRST_PAUSE_SECONDS
                log.warning("kafka: not reachable or refused; retrying", error=str(error), seconds=pause)
                await _wait(stopping, pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


async def _unless(stopping: asyncio.Event, call: Coroutine[None, None, None]) -> bool:
    """Whether the call ended before `stopping` was set; then it is cancelled. aiokafka waits long for a topic."""
    calling, waiting = asyncio.create_task(call), asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait((calling, waiting), return_when=asyncio.FIRST_COMPLETED)
        if not calling.done():
            return False
        await calling
        return True
    finally:
        waiting.cancel()
        await end(calling)


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
