"""The bridge between a scripted broker and scripted answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import pytest

from foreseen.proxy.kafka import bridge as module
from foreseen.proxy.kafka import outbox
from foreseen.proxy.kafka.bridge import KafkaBridge, Topics
from foreseen.proxy.kafka.messages import Incoming, Outgoing, Reader
from foreseen.proxy.kafka.outbox import ReplyOutbox
from foreseen.proxy.kafka.ports import BrokerError, Place, RecordTooLarge
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.response_bytes import Reply
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.tenants.tenant import PUBLIC_TENANT


class ScriptedBroker:
    """Consumer and producer over lists; the test waits on conditions, never on time."""

    def __init__(self) -> None:
        self.waiting: list[Incoming] = []
        self.sent: list[Outgoing] = []
        self.committed: dict[Place, int] = {}
        self.is_paused = False
        self.fails = 0
        self.refuses: dict[str, BrokerError] = {}
        self.changed, self.paused = asyncio.Condition(), asyncio.Event()

    async def poll(self, timeout_ms: int, most: int) -> Sequence[Incoming]:
        await asyncio.sleep(0)
        if self.is_paused:
            return []
        taken, self.waiting = self.waiting[:most], self.waiting[most:]
        return taken

    def pause(self) -> None:
        self.is_paused = True
        self.paused.set()

    def resume(self) -> None:
        self.is_paused = False

    async def commit(self, offsets: Mapping[Place, int]) -> None:
        self.committed |= offsets

    async def send(self, records: Sequence[Outgoing]) -> Sequence[BrokerError | None]:
        await asyncio.sleep(0)
        errors = [self.refuses.get(record.topic) for record in records]
        if self.fails:
            self.fails -= 1
            errors = [BrokerError("NotLeader: another broker leads")] * len(records)
        self.sent += [record for record, error in zip(records, errors, strict=True) if error is None]
        async with self.changed:
            self.changed.notify_all()
        return errors

    async def until_paused(self) -> None:
        async with asyncio.timeout(20):
            await self.paused.wait()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(lambda: len(self.sent) >= count)


class ScriptedAnswers:
    """Answers by the body: `ok`, `bad` (400), `busy` (503 twice, then 200); what waits in `held` is answered later."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.held: dict[bytes, asyncio.Event] = {}
        self.tasks: list[asyncio.Task[None]] = []

    def begin(self, head: RequestHead, body: bytes, reached: Callable[[Reply], None]) -> Reply | None:
        self.asked.append(body)
        if body in self.held:
            self.tasks.append(asyncio.create_task(self._later(body, reached)))
            return None
        return self._reply(body)

    async def _later(self, body: bytes, reached: Callable[[Reply], None]) -> None:
        await self.held[body].wait()
        reached(self._reply(body))

    def _reply(self, body: bytes) -> Reply:
        if body.startswith(b"bad"):
            return Reply(400, "Content-Type: application/json\r\n", b'{"error":"inputs.x: no","code":"bad_input"}')
        if body.startswith(b"busy") and self.asked.count(body) < 3:
            return Reply(503, "", b'{"error":"busy","code":"overloaded"}')
        return Reply(200, "", b"to " + body)

    def digest_of(self, head: RequestHead, body: bytes) -> str | None:
        return "digest"


class Running:
    def __init__(self, dead: str | None = "dead", *, ordered: bool = False) -> None:
        self.broker, self.answers = ScriptedBroker(), ScriptedAnswers()
        self.metrics = ProxyMetrics()
        reader = Reader("m", "v2", PUBLIC_TENANT, 30.0, None)
        self.bridge = KafkaBridge(
            reader, self.answers, Topics("replies", (), dead), self.metrics,
            ReplyOutbox(self.broker, self.metrics, dead), ordered=ordered,
        )  # fmt: skip
        self.task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Running:
        self.task = asyncio.create_task(self.bridge.run(self.broker))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.bridge.stopping.set()
        assert self.task is not None
        await self.task

    def ask(self, *values: bytes, partition: int = 0) -> None:
        first = len([r for r in self.broker.waiting if r.partition == partition])
        self.broker.waiting += [
            Incoming("asked", partition, first + at, b"k", value, ()) for at, value in enumerate(values)
        ]


async def turns(count: int = 50) -> None:
    """Let what is ready to run do so."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(outbox, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(module, "REVOKED_SECONDS", 0.05)


async def test_messages_are_answered_and_committed_at_the_end() -> None:
    async with Running() as running:
        running.ask(b"ok1", b"ok2", b"ok3")
        await running.broker.until(3)
    assert sorted(out.value for out in running.broker.sent) == [b"to ok1", b"to ok2", b"to ok3"]
    assert running.broker.committed == {("asked", 0): 3}


async def test_a_commit_waits_for_the_slow_one_before() -> None:
    """A process that ends with one message unanswered leaves it, and all behind it, to its successor."""
    running = Running()
    running.answers.held[b"slow"] = asyncio.Event()
    async with running:
        running.ask(b"ok0", b"slow", b"ok2")
        await running.broker.until(2)
        await turns()
        await running.bridge.commit(running.broker)
        assert running.broker.committed == {("asked", 0): 1}
        running.answers.held[b"slow"].set()
        await running.broker.until(3)
    assert running.broker.committed == {("asked", 0): 3}


async def test_what_the_message_is_at_fault_for_is_a_dead_letter() -> None:
    async with Running() as running:
        running.ask(b"bad1", b"ok")
        await running.broker.until(2)
    dead = next(out for out in running.broker.sent if out.topic == "dead")
    assert dead.value == b"bad1"
    assert dict(dead.headers)["foreseen-error-code"] == b"bad_input"
    assert running.broker.committed == {("asked", 0): 2}
    assert running.metrics.kafka_messages.labels("dead-letter")._value.get() == 1


async def test_without_dead_letters_the_reply_says_what_is_wrong() -> None:
    async with Running(dead=None) as running:
        running.ask(b"bad1")
        await running.broker.until(1)
    (out,) = running.broker.sent
    assert (out.topic, out.value) == ("replies", b'{"error":"inputs.x: no","code":"bad_input"}')
    assert dict(out.headers)["foreseen-error-code"] == b"bad_input"


async def test_what_is_not_its_fault_is_tried_until_it_works() -> None:
    """The model's 503, and a broker that refuses the reply."""
    running = Running()
    running.broker.fails = 2
    async with running:
        running.ask(b"busy")
        await running.broker.until(1)
    assert running.answers.asked == [b"busy"] * 3
    assert [out.value for out in running.broker.sent] == [b"to busy"]
    assert running.metrics.kafka_messages.labels("retried")._value.get() == 4


async def test_one_that_waits_is_tried_as_soon_as_another_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long its pause has become: a model that was full is not idle meanwhile."""
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 3600.0)
    async with Running() as running:
        running.ask(b"busy")
        await turns()
        for at in (1, 2):
            running.ask(b"ok", partition=at)
            await running.broker.until(at)
            await turns()
        await running.broker.until(3)
    assert running.answers.asked == [b"busy", b"ok", b"busy", b"ok", b"busy"]


async def test_a_topic_that_refuses_replies_holds_up_no_other() -> None:
    """Its records wait with growing pauses, and their offsets with them; dead letters go on."""
    running = Running()
    running.broker.refuses["replies"] = BrokerError("TopicAuthorizationFailedError: replies")
    async with running:
        running.ask(b"ok", b"bad1")
        await running.broker.until(1)
        assert [out.topic for out in running.broker.sent] == ["dead"]
        await running.bridge.commit(running.broker)
        assert running.broker.committed == {}
        del running.broker.refuses["replies"]
        await running.broker.until(2)
    assert running.broker.committed == {("asked", 0): 2}


async def test_a_reply_that_is_too_large_for_the_broker_is_a_dead_letter() -> None:
    """Else its partition would wait for ever."""
    running = Running()
    running.broker.refuses["replies"] = RecordTooLarge("MessageSizeTooLargeError: 3 MB")
    async with running:
        running.ask(b"ok")
        await running.broker.until(1)
    (out,) = running.broker.sent
    assert (out.topic, out.value) == ("dead", b"ok")
    assert dict(out.headers)["foreseen-error-code"] == b"reply_too_large"
    assert running.broker.committed == {("asked", 0): 1}


async def test_ordered_replies_leave_in_the_order_of_their_messages() -> None:
    """A partition's, whatever is answered first; another partition does not wait."""
    running = Running(ordered=True)
    running.answers.held[b"slow"] = asyncio.Event()
    async with running:
        running.ask(b"slow", b"ok1", b"ok2")
        running.ask(b"other", partition=1)
        await running.broker.until(1)
        assert [out.value for out in running.broker.sent] == [b"to other"]
        running.answers.held[b"slow"].set()
        await running.broker.until(4)
    assert [out.value for out in running.broker.sent[1:]] == [b"to slow", b"to ok1", b"to ok2"]


async def test_partitions_are_paused_above_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than the bound is under way, and everything is answered in the end."""
    monkeypatch.setattr(module, "MOST_MESSAGES", 4)
    monkeypatch.setattr(module, "MOST_POLLED", 2)
    running = Running()
    slow = [b"slow%d" % at for at in range(4)]
    running.answers.held = {value: asyncio.Event() for value in slow}
    async with running:
        running.ask(*slow, *(b"ok%d" % at for at in range(20)))
        await running.broker.until_paused()
        assert len(running.answers.asked) <= 4
        for event in running.answers.held.values():
            event.set()
        await running.broker.until(24)
    assert running.broker.committed == {("asked", 0): 24}


async def test_a_revoked_partition_is_committed_and_forgotten() -> None:
    """What is finished there is committed; what is not is left to the next owner, and not answered here."""
    running = Running()
    running.answers.held[b"slow"] = asyncio.Event()
    async with running:
        running.ask(b"ok", b"slow")
        await running.broker.until(1)
        await turns()
        await running.bridge.revoked(running.broker, [("asked", 0)])
    assert running.broker.committed == {("asked", 0): 1}
    assert [out.value for out in running.broker.sent] == [b"to ok"]
