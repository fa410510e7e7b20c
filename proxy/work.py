"""Wires a worker process together and runs it: a proxy without listeners, which takes its questions from the queue."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace

import structlog
import uvloop

from foreseen.errors import SetupError
from foreseen.settings import WorkerSettings
from proxy.app import Proxy, upstream_for
from proxy.generations import is_gone
from proxy.worker import Worker

log = structlog.get_logger()


async def _run(settings: WorkerSettings) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    # What is fetched goes through the state store, so a near tier of its own would only cost memory.
    proxy = Proxy(replace(settings, near_bytes=0, replay_bytes=0, observe=()), await upstream_for(settings))
    if proxy.queue is None:
        raise SetupError("a worker needs the state store that the proxies have; give --state")
    async with proxy.running():
        worker = Worker(
            proxy.generations.worker,
            proxy.queue,
            proxy.records,
            proxy.pipeline,
            proxy.served,
            proxy.generations,
            most_rows=settings.job_rows,
            is_gone=is_gone,
        )
        working = asyncio.create_task(worker.run())
        log.info("working", models=list(proxy.served))
        stopped = asyncio.create_task(stopping.wait())
        await asyncio.wait((working, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        worker.stop()
        await working


def run(settings: WorkerSettings) -> None:
    """Work until SIGTERM or SIGINT. Raises SetupError where something is not as it must be."""
    uvloop.run(_run(settings))
