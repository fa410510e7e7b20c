"""Webhooks on a real state store: put in with the end of their job, claimed by one, sent again when due, never lost."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import Counter

import pytest
from redis.asyncio import Redis

from foreseen.errors import QueueUnavailable
from foreseen.proxy.jobs.ticket_types import TicketStatus
from foreseen.proxy.jobs.webhook.deliveries import Deliveries, pause_after
from foreseen.proxy.jobs.webhook.webhook_payloads import event
from foreseen.proxy.jobs.webhook.webhooks import Delivery
from foreseen.queue.outbox import HOOKS, TRIES, Claimed, Outbox, Outcome
from foreseen.queue.queue import Queue, connect_queue
from foreseen.queue.queue_types import Bounds, Extras, JobEnd
from foreseen.queue.records import Failure, Head, Hook, Records, Rows, Ticket, new_job, new_nonce
from foreseen.types import OutputOptions, Owner
from tests.doubles import ROOT

BOUNDS = Bounds(1000, 10_000_000, 3600.0, 3600.0)
URL = "https://hooks.example/x"
RECORDS = Records(ROOT)


class Asked:
    """Jobs that a test puts into the queue, and ends."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    async def submit(self, same: bytes = b"", *, url: str | None = URL) -> tuple[bytes, bytes]:
        """A ticket's job and nonce."""
        job, nonce, seal = new_job(), new_nonce(), RECORDS.seal
        head = seal(Head(job, same, "public", "m", "p", 1, ["model"]))
        hook = seal(Hook(nonce, "public", url)) if url is not None else b""
        ticket, rows = seal(Ticket(nonce, "public", same or job, OutputOptions())), seal(Rows(job, [b"f"]))
        given = await self.queue.submit(same, job, nonce, head, rows, ticket, 1, 1000, Extras(hook))
        return given.job, nonce

    async def end(self, job: bytes, state: str = "failed") -> None:
        """Work on what is in the queue until this job has ended."""
        pending = {one.job: one.message for one in await self.queue.mine("w")}
        if job not in pending:
            delivered = await self.queue.next("w", 100)
            await self.queue.begin("w", [(one.message, one.job) for one in delivered], 3)
            pending |= {one.job: one.message for one in delivered}
        record = RECORDS.seal(Failure(job, 422, "input_rejected_by_model", "no"))
        await self.queue.finish("w", [JobEnd(pending[job], job, state, record, time.time() + 100)])  # type: ignore[arg-type]


@pytest.fixture
def asked(queue: Queue) -> Asked:
    return Asked(queue)


async def claimed_by(box: Outbox, lease: float = 60.0) -> list[tuple[bytes, bytes]]:
    return [(one.job, one.nonce) for one in await box.claim(100, lease)]


async def test_a_webhook_is_due_when_its_job_has_ended_and_not_before(queue: Queue, asked: Asked) -> None:
    """Put in by what ends the job, in the same transaction; a ticket without one leaves no trace."""
    ticket = await asked.submit()
    other = await asked.submit(url=None)
    assert await claimed_by(queue.outbox) == []
    await asked.end(ticket[0])
    await asked.end(other[0])
    assert await claimed_by(queue.outbox) == [ticket]


async def test_every_ticket_of_a_job_has_its_own(queue: Queue, asked: Asked) -> None:
    """Two ask the same and are told; one without a webhook is not; who joins when it is done is told at once."""
    first = await asked.submit(b"same")
    second = await asked.submit(b"same")
    silent = await asked.submit(b"same", url=None)
    assert first[0] == second[0] == silent[0]
    await asked.end(first[0], "succeeded")
    assert set(await claimed_by(queue.outbox)) == {first, second}
    late = await asked.submit(b"same")
    assert late[0] == first[0]
    assert await claimed_by(queue.outbox) == [late]


async def test_a_cancelled_ticket_is_told_once(queue: Queue, asked: Asked) -> None:
    """At its own end, not again at its job's; the last one that is cancelled ends the job."""
    first = await asked.submit(b"same")
    second = await asked.submit(b"same")
    await queue.cancel(*first)
    assert await claimed_by(queue.outbox) == [first]
    for one in await queue.outbox.claim(10, 0.0):
        await queue.outbox.settle(one, "delivered")
    await queue.cancel(*first)
    await queue.cancel(*second)
    seen = {one for one in await claimed_by(queue.outbox) if one != first}
    assert seen == {second}


async def test_of_two_who_claim_one_gets_it(queue: Queue, asked: Asked) -> None:
    """Twenty tickets, two workers at once: each goes to exactly one."""
    for ticket in [await asked.submit() for _ in range(20)]:
        await asked.end(ticket[0])
    mine, others = await asyncio.gather(claimed_by(queue.outbox), claimed_by(queue.outbox))
    assert len(set(mine) | set(others)) == len(mine) + len(others) == 20


async def test_a_dead_workers_claim_passes_on_and_its_late_settling_counts_for_nothing(
    queue: Queue, asked: Asked, store: Redis
) -> None:
    """At least once: after the lease somebody else sends it, and only who holds it may settle it."""
    ticket = await asked.submit()
    await asked.end(ticket[0])
    (dead,) = await queue.outbox.claim(10, 0.0)
    (with_expiry,) = await queue.outbox.claim(10, 60.0)
    assert (dead.tries, with_expiry.tries) == (1, 2)
    assert not await queue.outbox.settle(dead, "delivered")
    assert not await queue.outbox.put_off(dead, 0.0, failed=True)
    assert await queue.outbox.settle(with_expiry, "delivered")
    assert (await store.zcard(HOOKS), await store.hlen(TRIES)) == (0, 0)
    assert (await queue.standing()).counts["hook:delivered"] == 1


async def test_what_is_put_off_is_due_again_later(queue: Queue, asked: Asked) -> None:
    """By the store's clock; a claim that was no try does not count as one."""
    ticket = await asked.submit()
    await asked.end(ticket[0])
    (one,) = await queue.outbox.claim(10, 60.0)
    assert await queue.outbox.put_off(one, 0.0, failed=False)
    (one,) = await queue.outbox.claim(10, 60.0)
    assert one.tries == 1
    assert await queue.outbox.put_off(one, 30.0, failed=True)
    assert await queue.outbox.claim(10, 60.0) == []
    assert (await queue.standing()).counts["hook:failed"] == 1


async def test_what_is_forgotten_is_not_delivered(queue: Queue, asked: Asked, store: Redis) -> None:
    """With the job its webhook goes, and leaves nothing behind."""
    ticket = await asked.submit()
    await asked.end(ticket[0])
    await store.delete(b"{fsj1}.job:" + ticket[0])
    assert await queue.outbox.claim(10, 60.0) == []
    assert (await store.zcard(HOOKS), await store.hlen(TRIES)) == (0, 0)


async def test_tickets_count_as_memory_until_their_job_is_forgotten(queue: Queue, asked: Asked, store: Redis) -> None:
    """Whoever asks the same a hundred times takes memory that the bound knows of, also when the job has ended; and
    where all is forgotten none is taken."""
    first = await asked.submit(b"same")
    await asked.end(first[0], "succeeded")
    before = (await queue.standing()).counts["bytes"]
    others = [await asked.submit(b"other") for _ in range(100)]
    assert len({job for job, _ in others}) == 1
    await asked.end(others[0][0], "succeeded")
    each = ((await queue.standing()).counts["bytes"] - 2 * before) / 99
    assert each > 150
    for job in (first[0], others[0][0]):
        await store.zadd("{fsj1}.ends", {job: 0})
    await queue.tick()
    assert (await queue.standing()).counts["bytes"] == 0


async def test_a_store_that_is_away_is_said_so(tmp_path: object) -> None:
    """As every other call of the queue."""
    away = connect_queue(f"unix://{tmp_path}/nothing.sock", BOUNDS)
    with pytest.raises(QueueUnavailable):
        await away.outbox.claim(1, 1.0)
    await away.close()


class Receivers:
    """Answers what a test scripts by URL, and holds calls at a gate where there is one."""

    def __init__(self, **outcomes: Outcome) -> None:
        self.outcomes = outcomes
        self.called: list[str] = []
        self.under_way: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.entered = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def call(self, delivery: Delivery) -> tuple[Outcome, str]:
        host = delivery.url.removeprefix("https://").split(".")[0]
        self.called.append(delivery.id)
        self.entered.set()
        self.under_way[host] += 1
        self.most[host] = max(self.most[host], self.under_way[host])
        try:
            if host == "slow":
                await self.gate.wait()
        finally:
            self.under_way[host] -= 1
        return self.outcomes.get(host, "delivered"), "scripted"


class Script:
    """A clerk that writes what the hook says without opening it, and a box in memory."""

    def __init__(self, *urls: str) -> None:
        self.due = [Claimed(secrets.token_bytes(16), b"n" * 12, url.encode(), 0) for url in urls]
        self.settled: list[tuple[str, Outcome | None]] = []
        self.later: list[tuple[str, float, bool]] = []
        self.down = False
        self.ended = asyncio.Event()

    async def claim(self, most: int, lease_seconds: float) -> list[Claimed]:
        if self.down:
            raise QueueUnavailable("away")
        found, self.due = self.due[:most], self.due[most:]
        return [Claimed(one.job, one.nonce, one.hook, one.tries + 1) for one in found]

    async def settle(self, claimed: Claimed, outcome: Outcome | None) -> bool:
        if self.down:
            raise QueueUnavailable("away")
        self.settled.append((claimed.hook.decode(), outcome))
        self.ended.set()
        return True

    async def put_off(self, claimed: Claimed, seconds: float, *, failed: bool) -> bool:
        self.later.append((claimed.hook.decode(), seconds, failed))
        self.due.append(Claimed(claimed.job, claimed.nonce, claimed.hook, claimed.tries - (not failed)))
        return True

    async def write(self, claimed: Claimed) -> Delivery | None:
        url = claimed.hook.decode()
        return None if url == "nothing" else Delivery(f"msg_{claimed.job.hex()}", Owner("public"), url, b"{}")


def deliveries(script: Script, receivers: Receivers, *, tries: int = 8, at_once: int = 8) -> Deliveries:
    made = Deliveries(script, script, receivers, tries=tries, at_once=at_once, seconds=1.0, chance=lambda: 0.0)
    assert "under way" in repr(made)
    return made


async def test_failures_are_tried_again_after_growing_pauses_and_then_given_up() -> None:
    """5 s, 20 s, 80 s and so on to an hour, under one id; the eighth failure is the last."""
    script, receivers = Script("https://bad.example/"), Receivers(bad="failed")
    made = deliveries(script, receivers)
    while await made.turn():
        await made.close(10)
    assert [seconds for _, seconds, _ in script.later] == [5.0, 20.0, 80.0, 320.0, 1280.0, 3600.0, 3600.0]
    assert script.settled == [("https://bad.example/", "exhausted")]
    assert len(receivers.called) == 8
    assert len(set(receivers.called)) == 1


def test_pauses_are_cut_by_chance() -> None:
    """By up to a half, so that what failed together does not come back together."""
    assert (pause_after(1, 0.0), pause_after(1, 1.0), pause_after(100, 1.0)) == (5.0, 2.5, 1800.0)


async def test_refusals_are_final_and_what_has_nothing_to_tell_is_not_sent() -> None:
    """One call each; nothing comes back."""
    script, receivers = Script("https://gone.example/", "nothing"), Receivers(gone="refused")
    made = deliveries(script, receivers)
    await made.turn()
    await made.close(10)
    assert set(script.settled) == {("https://gone.example/", "refused"), ("nothing", None)}
    assert len(receivers.called) == 1


async def test_a_receiver_that_hangs_takes_a_fourth_of_the_calls_and_no_more() -> None:
    """Twenty wait for it, two are under way, and another host is served meanwhile."""
    script = Script(*["https://slow.example/"] * 20, "https://good.example/")
    receivers = Receivers()
    receivers.gate.clear()
    made = deliveries(script, receivers)
    while ("https://good.example/", "delivered") not in script.settled:
        await made.turn()
        await asyncio.sleep(0)
    assert receivers.most["slow"] == 2
    assert all(not failed for _, _, failed in script.later)
    receivers.gate.set()
    while len(script.settled) < 21:
        await made.turn()
        await asyncio.sleep(0)
    assert receivers.most["slow"] <= 2
    assert len(receivers.called) == 21


async def test_calls_at_once_are_bounded() -> None:
    """A hundred are due; no more than eight are claimed until some have ended."""
    script, receivers = Script(*[f"https://slow.h{number}.example/" for number in range(100)]), Receivers()
    receivers.gate.clear()
    made = deliveries(script, receivers)
    for _ in range(5):
        await made.turn()
        await asyncio.sleep(0)
    assert len(script.due) == 92
    receivers.gate.set()
    await made.close(10)


async def test_a_store_that_goes_away_ends_nothing() -> None:
    """While it is away nothing is claimed; what was sent meanwhile is due again by its lease, and the loop goes on."""
    script, receivers = Script("https://slow.example/"), Receivers()
    receivers.gate.clear()
    made = deliveries(script, receivers)
    running = asyncio.create_task(made.run())
    await asyncio.wait_for(receivers.entered.wait(), 10)
    script.down = True
    receivers.gate.set()
    await made.close(10)
    assert script.settled == []
    script.down = False
    script.due = [Claimed(b"j" * 16, b"n" * 12, b"https://good.example/", 0)]
    made.nudge()
    await asyncio.wait_for(script.ended.wait(), 10)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def test_what_is_cut_short_at_the_end_is_not_settled() -> None:
    """Calls under way get their time and no more."""
    script, receivers = Script("https://slow.example/"), Receivers()
    receivers.gate.clear()
    made = deliveries(script, receivers)
    await made.turn()
    await made.close(0.01)
    assert script.settled == []
    assert script.later == []


def test_the_same_end_is_the_same_event() -> None:
    """Id and bytes do not change from one try to the next; a second end is another event."""
    told = TicketStatus("t", "failed", 3, "m", 2, 0, 1000.0, 1001.0, 1002.5, 1, Failure(b"", 422, "code", "why"))
    one = event(Owner("tenant:a"), "https://h.example/", told)
    assert one == event(Owner("tenant:a"), "https://h.example/", told)
    assert one.id == "msg_t_1002500"
    assert one.body == (
        b'{"type":"prediction.failed","timestamp":"1970-01-01T00:16:42.500Z","data":{"id":"t","state":"failed",'
        b'"model":"m","rows":2,"done":0,"created_at":1000.0,"started_at":1001.0,"ended_at":1002.5,"attempts":1,'
        b'"error":"why","code":"code","status":422}}'
    )
