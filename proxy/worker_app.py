"""Builds and runs a worker process: a proxy that takes jobs from the queue. It listens only for scrapes, on demand."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import structlog
import uvloop

from foreseen.errors import SetupError
from foreseen.gc_freeze import settle
from foreseen.proxy.assembly import Proxy
from foreseen.proxy.cache.generations import is_gone
from foreseen.proxy.from_settings import upstream_for
from foreseen.proxy.jobs.prefork import worked_in_child
from foreseen.proxy.jobs.webhook.deliveries import Deliveries
from foreseen.proxy.jobs.webhook.webhook_payloads import WebhookPayloads
from foreseen.proxy.jobs.webhook.webhooks import WebhookSender
from foreseen.proxy.jobs.worker import JobWorker
from foreseen.proxy.until_ready import known_models, scraped
from foreseen.queue.signing import Signer
from foreseen.settings import WorkerSettings
from foreseen.tasks import end

log = structlog.get_logger()


async def _run(settings: WorkerSettings) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    # What is fetched goes through the state store, so a near tier of its own would only cost memory.
    proxy = Proxy(
        replace(settings, near_bytes=0, reply_cache_bytes=0, observe=(), keep_hot_inputs=0),
        await upstream_for(settings),
        "foreseen-worker",
    )
    if proxy.queue is None:
        raise SetupError("a worker needs the state store that the proxies have; give --state")
    proxy.metrics.workers.set(0)  # of proxies; those of the queue are counted by the queue
    async with (
        scraped(proxy, settings.host, settings.metrics_port, settings.keepalive_seconds),
        proxy.running(),
        _telling(proxy),
    ):
        worker = JobWorker(
            proxy.generations.worker,
            proxy.queue,
            proxy.records,
            proxy.pipeline,
            proxy.served,
            proxy.generations,
            most_rows=settings.job_rows,
            is_gone=is_gone,
            spans=proxy.traces,
        )
        await known_models(proxy.served.values(), stopping)
        settle()
        working = asyncio.create_task(worker.run())
        log.info("working", models=list(proxy.served))
        stopped = asyncio.create_task(stopping.wait())
        await asyncio.wait((working, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        worker.stop()
        await working


@asynccontextmanager
async def _telling(proxy: Proxy) -> AsyncIterator[None]:
    """Deliver webhooks meanwhile, where they are allowed. Raises SetupError where there is no secret for them."""
    settings, jobs, queue = proxy.settings, proxy.jobs, proxy.queue
    if not proxy.webhooks or jobs is None or queue is None:
        yield
        return
    seconds = settings.webhook_seconds
    caller = WebhookSender(proxy.webhooks, Signer(settings.webhook_secret), seconds=seconds)
    deliveries = Deliveries(
        queue.outbox,
        WebhookPayloads(jobs, proxy.records),
        caller,
        tries=settings.webhook_tries,
        seconds=seconds,
    )
    running = asyncio.create_task(deliveries.run())
    try:
        yield
    finally:
        await end(running)
        await deliveries.close(seconds)
        await caller.close()


def run(settings: WorkerSettings) -> None:
    """Work until SIGTERM or SIGINT, in a child that is replaced where it is killed.

    Raises SetupError where something is not as it must be.
    """
    if worked_in_child():
        uvloop.run(_run(settings))
