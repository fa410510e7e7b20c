"""The queue on a real store, and a worker on it: one end for each job, whoever dies, forges or comes late."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec import structs
from redis.asyncio import ConnectionPool, Redis, UnixDomainSocketConnection

from foreseen.errors import EntryError, ModelUnavailable, QueueFull, QueueUnavailable, StateUnavailable
from foreseen.keys.key import Framer
from foreseen.modelspec.manifest import ModelInput, ModelOutput, ModelSignature
from foreseen.proxy.jobs.worker import MOST_ALONE, JobWorker
from foreseen.queue.equal_rows import distinct, placed
from foreseen.queue.frame_rows import rows_of
from foreseen.queue.queue import Queue, connect_queue
from foreseen.queue.queue_types import Bounds, Extras, JobEnd, PutBack
from foreseen.queue.records import Failure, Head, Records, Result, Rows, Ticket, answers_of, new_job, new_nonce, part_of
from foreseen.queue.scripts import BASE
from foreseen.stores.state import State
from foreseen.types import ALL_STEPS, Answer, Output, OutputOptions, Prediction, Row, Space
from tests.doubles import DIGEST, ROOT, SIGNATURE, DictFar, ScriptedModel, numbered, pipeline, predicted, row, value_of

BOUNDS = Bounds(jobs=100, bytes=10_000_000, job_seconds=60.0, result_seconds=60.0)
RECORDS = Records(ROOT)
FRAMER = Framer(SIGNATURE)


@contextlib.asynccontextmanager
async def opened(state_url: str, bounds: Bounds = BOUNDS) -> AsyncIterator[Queue]:
    one = connect_queue(state_url, bounds)
    try:
        yield one
    finally:
        await one.close()


async def submit(
    queue: Queue, value: int = 1, same: bytes = b"", model: str = "m", caller: bytes = b""
) -> tuple[bytes, bytes]:
    """A job of one row; the job that the ticket is of, and the ticket's nonce."""
    job, nonce = new_job(), new_nonce()
    head = Head(job, same, "public", model, "p", 1, sorted(ALL_STEPS))
    sealed = RECORDS.seal(Rows(job, FRAMER.frames([row(value)])))
    ticket = RECORDS.seal(Ticket(nonce, "public", same or job, OutputOptions()))
    given = await queue.submit(same, job, nonce, RECORDS.seal(head), sealed, ticket, 1, 2000, Extras(caller=caller))
    return given.job, given.nonce


async def take(queue: Queue, worker: str, company: Any = "many") -> list[Any]:
    """Deliver all messages to a worker, and start their jobs."""
    found = await queue.next(worker, 100)
    return await queue.begin(worker, [(one.message, one.job) for one in found], MOST_ALONE, company)


async def state_of(queue: Queue, job: bytes, nonce: bytes) -> str:
    seen = await queue.see(job, nonce)
    return "gone" if seen is None else seen.state


async def ended(queue: Queue) -> dict[str, int]:
    counts = (await queue.standing()).counts
    return {name.removeprefix("ended:"): value for name, value in counts.items() if name.startswith("ended:")}


def served(model: ScriptedModel) -> Any:
    """What a worker needs of a served model."""
    return SimpleNamespace(
        manifest=SimpleNamespace(model=SIGNATURE),
        preparation="p",
        framer=FRAMER,
        space=lambda scope: Space(scope, "m", DIGEST),
    )


PURGES: Any = SimpleNamespace(of=lambda scope, model, digest: 0, purged_since=lambda key, made_at: False)


@contextlib.asynccontextmanager
async def working(
    queue: Queue, model: ScriptedModel, name: str = "w", gone: frozenset[str] = frozenset()
) -> AsyncIterator[JobWorker]:
    """A worker that works; who is in `gone` has certainly ended."""
    story = pipeline(model, DictFar(), near_bytes=0)
    worker = JobWorker(
        name, queue, RECORDS, story, {"m": served(model)}, PURGES, most_rows=100, is_gone=gone.__contains__
    )
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        await task
        await story.close(1.0)


async def until_ended(queue: Queue, *tickets: tuple[bytes, bytes]) -> list[str]:
    """The ends of these, as the news tell of them."""
    async with asyncio.timeout(20), queue.news() as following:
        while True:
            states = [await state_of(queue, *ticket) for ticket in tickets]
            if not {"queued", "running"} & set(states):
                return states
            await following()


async def result(queue: Queue, job: bytes, nonce: bytes) -> list[int]:
    seen = await queue.see(job, nonce, record=True)
    assert seen is not None
    answers = answers_of(RECORDS.open_of(Result, job, seen.record or b""))
    return [value_of(answer.prediction) for answer in answers]


async def test_a_worker_answers_rows_of_many_jobs_in_one_request(queue: Queue) -> None:
    """Twenty jobs wait; the model is asked once; each has its own answer."""
    model = ScriptedModel()
    tickets = [await submit(queue, value) for value in range(1, 21)]
    async with working(queue, model):
        assert set(await until_ended(queue, *tickets)) == {"succeeded"}
    assert model.calls == [20]
    assert [await result(queue, *ticket) for ticket in tickets] == [[10 * value] for value in range(1, 21)]
    assert await ended(queue) == {"succeeded": 20}
    assert (await queue.standing()).counts["state:queued"] == 0


async def test_the_same_question_is_one_job_as_long_as_it_is_fresh(queue: Queue, store: Redis) -> None:
    """Under way and afterwards; not after its freshness has ended."""
    same = b"s" * 32
    first, nonce = await submit(queue, same=same)
    second, _ = await submit(queue, same=same)
    assert first == second
    async with working(queue, ScriptedModel()):
        await until_ended(queue, (first, nonce))
    assert (await submit(queue, same=same))[0] == first
    await store.hset(f"{BASE}.job:".encode() + first, "u", 1)
    assert (await submit(queue, same=same))[0] != first


async def test_a_late_end_changes_nothing(queue: Queue) -> None:
    """Two workers had the job; the second's end, of whatever kind, is not taken; its message is gone."""
    job, nonce = await submit(queue)
    (one,) = await take(queue, "w1")
    (claimed,) = await queue.claim("w2", "w1", 0.0, 10)
    await queue.begin("w2", [(claimed.message, job)], MOST_ALONE, "few")
    assert await queue.finish("w1", [JobEnd(one.message, job, "failed", b"early")]) == 0  # it is w2's by now
    assert await queue.finish("w1", [JobEnd(one.message, job, "succeeded", b"r")]) == 1  # an answer is an answer
    assert await queue.finish("w2", [JobEnd(one.message, job, "failed", b"late")]) == 0
    assert await state_of(queue, job, nonce) == "succeeded"
    assert await ended(queue) == {"succeeded": 1}
    assert await queue.mine("w2") == []


async def test_deaths_lead_from_company_to_solitude_to_the_dead_letters(queue: Queue) -> None:
    """A job whose workers die: among many, among few, then alone three times; then it is poison."""
    job, _ = await submit(queue)
    verdicts = []
    company = {"run": "many", "few": "few", "alone": "alone"}
    (handed,) = await take(queue, "w0")
    for turn in range(1, 10):
        verdicts.append(handed.verdict)
        (message,) = await queue.claim(f"w{turn}", f"w{turn - 1}", 0.0, 10)
        pair = [(message.message, job)]
        (handed,) = await queue.begin(f"w{turn}", pair, MOST_ALONE)
        if handed.verdict == "poison":
            break
        (handed_again,) = await queue.begin(f"w{turn}", pair, MOST_ALONE, company[handed.verdict])
        assert handed_again.verdict == "run"
    assert verdicts == ["run", "few", "alone", "alone", "alone"]
    assert (await queue.standing()).counts["redelivered"] == 5


async def test_poison_is_a_dead_letter_that_can_be_retried_or_dropped(queue: Queue) -> None:
    """What is found to be poison ends as failed, with an error that says so; a retry runs it as if it were new."""
    ticket = await submit(queue)
    (handed,) = await take(queue, "gone")
    for _ in range(2 + MOST_ALONE):
        (handed,) = await queue.begin("gone", [(handed.message, ticket[0])], MOST_ALONE, "alone")
        await queue._client.hset(f"{BASE}.job:".encode() + ticket[0], "o", "another")
    model = ScriptedModel()
    async with working(queue, model, gone=frozenset({"gone"})):
        assert await until_ended(queue, ticket) == ["failed"]
    seen = await queue.see(*ticket, record=True)
    assert seen is not None
    failure = RECORDS.open_of(Failure, ticket[0], seen.record or b"")
    assert (failure.status, failure.code) == (422, "input_rejected_by_model")
    letters = await queue.dead_letters()
    assert msgspec.json.decode(letters[ticket[0]])["model"] == "m"
    assert model.calls == []
    assert await queue.retry(ticket[0])
    assert not await queue.retry(ticket[0])
    async with working(queue, model):
        assert await until_ended(queue, ticket) == ["succeeded"]
    assert (await queue.standing()).dead == 0
    assert not await queue.drop(ticket[0])


async def test_a_worker_that_is_killed_leaves_its_jobs_to_another(queue: Queue) -> None:
    """Its consumer is known to have ended: another takes over at once, and takes it off the list."""
    tickets = [await submit(queue, value) for value in range(1, 6)]
    await take(queue, "dead")
    async with working(queue, ScriptedModel(), gone=frozenset({"dead"})):
        assert set(await until_ended(queue, *tickets)) == {"succeeded"}
        while "dead" in await queue.workers():  # noqa: ASYNC110 - the store tells nobody
            await asyncio.sleep(0.01)
    assert (await queue.standing()).counts["redelivered"] == 5


async def test_what_is_not_the_jobs_fault_puts_it_back(queue: Queue, store: Redis) -> None:
    """A model that is away: queued again, with an attempt counted, and due later; then it is answered."""
    model, ticket = ScriptedModel(), await submit(queue)
    model.error = ModelUnavailable("away")
    async with working(queue, model):
        while not await store.zcard(f"{BASE}.later"):  # noqa: ASYNC110 - the store tells nobody
            await asyncio.sleep(0.01)
        seen = await queue.see(*ticket)
        assert seen is not None
        assert (seen.state, seen.attempts) == ("queued", 1)
        model.error = None
        await store.zadd(f"{BASE}.later", {ticket[0]: 0})
        assert await until_ended(queue, ticket) == ["succeeded"]


async def test_a_cancelled_job_is_not_run(queue: Queue) -> None:
    """Its message is off the queue; who cancels twice, or a stranger, changes nothing."""
    job, nonce = await submit(queue)
    assert not await queue.cancel(job, b"x" * 12)
    assert await queue.cancel(job, nonce)
    assert await queue.cancel(job, nonce)
    assert await take(queue, "w") == []
    assert await ended(queue) == {"cancelled": 1}
    assert await state_of(queue, job, nonce) == "cancelled"


async def test_what_is_over_is_forgotten_and_its_memory_is_free(state_url: str, store: Redis) -> None:
    """A job that is not done in time expires, a result that nobody fetched goes; then all the bytes are back."""
    async with opened(state_url, Bounds(100, 10_000_000, 0.0, 0.0)) as queue:
        await queue.open()
        ticket = await submit(queue)
        await queue.tick()
        await queue.tick()
        assert await state_of(queue, *ticket) == "gone"
        standing = await queue.standing()
        assert (standing.counts["bytes"], standing.counts["ended:expired"]) == (0, 1)
        assert {key async for key in store.scan_iter(f"{BASE}.job:*")} == set()


async def test_the_queue_is_bounded_in_jobs_and_in_bytes(state_url: str, store: Redis) -> None:
    """One more is refused, and says what is full."""
    async with (
        opened(state_url, Bounds(2, 10_000_000, 60.0, 60.0)) as few,
        opened(state_url, Bounds(9, 6000, 60.0, 60.0)) as small,
    ):
        await submit(few)
        await submit(few)
        with pytest.raises(QueueFull, match="2 jobs"):
            await submit(few)
        with pytest.raises(QueueFull, match="6000 bytes"):
            await submit(small)


async def test_one_caller_has_a_share_of_the_queue_and_the_next_always_has_room(state_url: str, store: Redis) -> None:
    """Half of it alone, in jobs and in bytes; a newcomer half of what is left, and so on; what ends is free again."""
    bounds = Bounds(8, 1_000_000, 60.0, 60.0, share=0.5)
    async with opened(state_url, bounds) as queue:
        await queue.open()
        first = [await submit(queue, caller=b"a" * 16) for _ in range(4)]
        with pytest.raises(QueueFull, match="this caller"):
            await submit(queue, caller=b"a" * 16)
        await submit(queue, caller=b"b" * 16)
        await submit(queue, caller=b"b" * 16)
        with pytest.raises(QueueFull, match="this caller"):
            await submit(queue, caller=b"b" * 16)
        await submit(queue, caller=b"c" * 16)
        with pytest.raises(QueueFull):
            await submit(queue, caller=b"d" * 16)
        await queue.cancel(*first[0])
        await submit(queue, caller=b"d" * 16)
    await store.flushall()
    async with opened(state_url, Bounds(1000, 30_000, 60.0, 60.0, share=0.5)) as queue:
        await queue.open()
        for _ in range(20):
            with contextlib.suppress(QueueFull):
                await submit(queue, caller=b"d" * 16)
        assert 8000 < int(await store.hget(f"{BASE}.callers", b"b" + b"d" * 16) or 0) <= 15_000
        await submit(queue, caller=b"e" * 16)


async def test_one_caller_has_a_share_of_the_files_and_the_next_always_has_room(state_url: str, store: Redis) -> None:
    """Half of the bytes alone; a newcomer has room; what is forgotten or has expired is free again."""
    a, b = b"a" * 16, b"b" * 16
    async with opened(state_url, Bounds(8, 1_000_000, 60.0, 60.0, share=0.5)) as queue:
        await queue.blobs.keep("file-1", b"x" * 500, 1000, a)
        with pytest.raises(QueueFull, match="50% of 1000 bytes"):
            await queue.blobs.keep("file-2", b"x" * 10, 1000, a)
        await queue.blobs.keep("file-2", b"x" * 200, 1000, b)
        with pytest.raises(QueueFull, match="1000 bytes are kept"):
            await queue.blobs.keep("file-3", b"x" * 400, 1000)
        assert await queue.blobs.read("file-2") == b"x" * 200
        await queue.blobs.forget("file-1")
        await queue.blobs.keep("file-4", b"x" * 300, 1000, a)
        await store.hset(f"{BASE}.blobs", "file-4", "300 1")  # expired long ago
        await queue.blobs.keep("file-5", b"x" * 400, 1000, a)
        assert set(await store.hkeys(f"{BASE}.blobs.callers")) == {b"file-2", b"file-5"}


async def test_a_ticket_of_anothers_job_counts_for_who_has_it(state_url: str, store: Redis) -> None:
    """Who joins pays for the ticket and not the caller whose job it is; when all is forgotten nobody has anything."""
    async with opened(state_url, Bounds(100, 10_000_000, 60.0, 0.0, share=0.5)) as queue:
        await queue.open()
        same = RECORDS.same(numbered(1))
        ticket = await submit(queue, same=same, caller=b"a" * 16)
        alone = int(await store.hget(f"{BASE}.callers", b"b" + b"a" * 16) or 0)
        for _ in range(3):
            await submit(queue, same=same, caller=b"b" * 16)
        assert int(await store.hget(f"{BASE}.callers", b"b" + b"a" * 16) or 0) == alone
        assert int(await store.hget(f"{BASE}.callers", b"b" + b"b" * 16) or 0) > 0
        async with working(queue, ScriptedModel()):
            await until_ended(queue, ticket)
        assert not await store.hexists(f"{BASE}.callers", b"j" + b"a" * 16)
        await queue.tick()
        assert await state_of(queue, *ticket) == "gone"
        assert await store.hgetall(f"{BASE}.callers") == {}


def test_equal_rows_are_stored_once() -> None:
    """And come back in the order in which they were asked; where all differ nothing is added."""
    frames = [b"a", b"b", b"a", b"a", b"c"]
    unique, places = distinct(frames)
    assert unique == [b"a", b"b", b"c"]
    assert placed(unique, places) == frames
    assert distinct([b"a", b"b"]) == ([b"a", b"b"], b"")
    assert placed([1, 2], b"") == [1, 2]
    many = [b"x" * 200] * 300_000
    assert len(RECORDS.seal(Rows(new_job(), *distinct(many)))) < 10_000
    for damaged in (places[:-1], b"no zlib", distinct([b"a"] * 2 + [b"b"] * 9)[1]):
        with pytest.raises(EntryError, match="format"):
            placed(["only one"], damaged)


async def test_a_store_that_is_away_raises(tmp_path: Any) -> None:
    """At once where nothing listens."""
    async with opened(f"unix://{tmp_path}/none.sock") as queue:
        with pytest.raises(QueueUnavailable):
            await submit(queue)


class Cut(UnixDomainSocketConnection):
    """A connection whose transport has ended between two steps, as uvloop tells it."""

    async def connect(self) -> None:
        """It was connected."""

    async def can_read(self, *_: Any, **__: Any) -> bool:
        return False

    async def send_packed_command(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("unable to perform operation on <UnixTransport closed=True>; the handler is closed")


async def test_a_connection_that_ended_meanwhile_is_a_store_that_is_away(state_url: str) -> None:
    """It is no mistake of ours: 503 as of every other end, for the queue, the outbox and the state."""
    client = Redis(connection_pool=ConnectionPool(connection_class=Cut, path=state_url.removeprefix("unix://")))
    queue, state = Queue(client, BOUNDS), State(client)
    with pytest.raises(QueueUnavailable):
        await submit(queue)
    with pytest.raises(QueueUnavailable):
        await queue.outbox.claim(1, 1.0)
    with pytest.raises(StateUnavailable):
        await state.generations()
    await client.aclose()


@pytest.mark.parametrize("call", ["beat", "finish", "claim"])
async def test_a_part_of_a_worker_that_fails_ends_the_worker(queue: Queue, monkeypatch: Any, call: str) -> None:
    """What no part of it expects is not the silent end of that part alone."""

    async def broken(*_: Any, **__: Any) -> Any:
        raise KeyError(call)

    monkeypatch.setattr(queue, call, broken)
    await submit(queue)
    story = pipeline(ScriptedModel(), DictFar(), near_bytes=0)
    models = {"m": served(ScriptedModel())}
    worker = JobWorker("w", queue, RECORDS, story, models, PURGES, most_rows=100, is_gone=bool)
    with pytest.raises(KeyError, match=call):
        await asyncio.wait_for(worker.run(), 20)
    await story.close(1.0)


@pytest.mark.parametrize("field", ["head", "q"])
async def test_a_forged_job_is_never_asked(queue: Queue, store: Redis, field: str) -> None:
    """Another job's head or rows under this job's name: it fails, and the model is not asked for it."""
    one, other = await submit(queue, 1), await submit(queue, 2)
    stolen = await store.hget(f"{BASE}.job:".encode() + other[0], field)
    await store.hset(f"{BASE}.job:".encode() + one[0], field, stolen)
    model = ScriptedModel()
    async with working(queue, model):
        assert await until_ended(queue, one, other) == ["failed", "succeeded"]
    assert model.rows == 1


def test_records_say_what_they_are_and_of_which_job() -> None:
    """Every flipped byte, another kind, another job, another secret, a cut: none of them opens."""
    job = new_job()
    sealed = RECORDS.seal(Failure(job, 422, "code", "message"))
    assert RECORDS.open_of(Failure, job, sealed) == Failure(job, 422, "code", "message")
    for at in range(len(sealed)):
        flipped = sealed[:at] + bytes((sealed[at] ^ 1,)) + sealed[at + 1 :]
        with pytest.raises(EntryError):
            RECORDS.open_of(Failure, job, flipped)
    for kind, whose, value in ((Head, job, sealed), (Failure, new_job(), sealed), (Failure, job, sealed[:-1])):
        with pytest.raises(EntryError):
            RECORDS.open_of(kind, whose, value)
    with pytest.raises(EntryError):
        Records(b"another root secret of 32 bytes..").open_of(Failure, job, sealed)


def test_a_ticket_is_of_its_tenant() -> None:
    """Its id opens for nobody else, and no text that is not one opens at all."""
    job, nonce = new_job(), new_nonce()
    ticket = RECORDS.ticket_id(job, nonce, "public")
    assert RECORDS.read_ticket_id(ticket, "public") == (job, nonce)
    assert RECORDS.read_ticket_id(ticket, "another") is None
    for text in (
        "",
        "x",
        "ü" * 48,
        ticket[:-1],
        ticket + "=",
        ticket + "====",
        ticket + "A",
        ticket[:-1] + ("A" if ticket[-1] != "A" else "B"),
    ):
        assert RECORDS.read_ticket_id(text, "public") is None


def test_a_result_is_its_rows_and_how_they_came() -> None:
    """Keys, predictions of whatever outputs, sources; a row that names outputs which are not there is refused."""
    keys = numbered(3)
    other = Prediction((Output("y", "BYTES", (2,)), Output("z", "FP32", ())), (b"ab", b"1234"), DIGEST, 1.0, 2.0, 0.5)
    answers = [
        Answer(predicted(1), "far"),
        Answer(other, "model", stored=True),
        Answer(predicted(2), "stale", why="max-stale"),
    ]
    part = part_of(DIGEST, 7, keys, answers)
    job = new_job()
    opened_again = RECORDS.open_of(Result, job, RECORDS.seal(Result(job, [part])))
    assert (opened_again.parts[0].generation, [row.key for row in opened_again.parts[0].rows]) == (7, keys)
    assert answers_of(opened_again) == answers
    for wrong in (2, -1, 0):
        row = structs.replace(part.rows[1], layout=wrong)
        with pytest.raises(EntryError):
            answers_of(Result(job, [structs.replace(part, rows=[row])]))


@pytest.mark.parametrize(
    "shapes", [[(2,)], [(2,), (2,), (2,)], [(1,), (2,), (1,)], [(0,), (0,)], [(2, 3), (3, 2)], [()]]
)
def test_rows_come_back_from_frames_as_they_went_in(shapes: list[tuple[int, ...]]) -> None:
    """Of one shape, which are read all at once, and of several."""
    rows = [Row((np.full(shape, number, np.int64),)) for number, shape in enumerate(shapes)]
    same(rows_of(FRAMER.frames(rows), SIGNATURE), rows)


def test_frames_of_one_length_that_differ_in_more_than_numbers_are_read_one_by_one() -> None:
    """Two inputs whose lengths add up to the same; elements of BYTES; and frames of another signature are refused."""
    output = ModelOutput("y", "INT64", ("rows", 1))
    two = ModelSignature((ModelInput("a", "INT32", ("rows", "n")), ModelInput("b", "INT32", ("rows", "m"))), (output,))
    rows = [Row((np.arange(n, dtype=np.int32), np.arange(8 - n, dtype=np.int32))) for n in (3, 5)]
    frames = Framer(two).frames(rows)
    assert len(frames[0]) == len(frames[1])
    same(rows_of(frames, two), rows)
    texts = ModelSignature((ModelInput("text", "BYTES", ("rows",)),), (output,))
    words = [Row((np.array(text, object),)) for text in (b"one", b"two")]
    assert [one.tensors[0].item() for one in rows_of(Framer(texts).frames(words), texts)] == [b"one", b"two"]
    with pytest.raises(EntryError):
        rows_of(frames, texts)


def same(some: Sequence[Row], others: Sequence[Row]) -> None:
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        for left, right in zip(one.tensors, other.tensors, strict=True):
            assert left.dtype == right.dtype
            assert left.shape == right.shape
            assert (left == right).all()


async def test_what_was_put_back_by_another_stays_where_it_is(queue: Queue) -> None:
    """Only the job's own worker may put it back."""
    job, nonce = await submit(queue)
    (handed,) = await take(queue, "w1")
    await queue.put_back("w2", [PutBack(handed.message, job)])
    assert await state_of(queue, job, nonce) == "running"
    await queue.put_back("w1", [PutBack(handed.message, job, suspect=True)])
    assert await state_of(queue, job, nonce) == "queued"
    (handed,) = await take(queue, "w2")
    assert handed.verdict == "alone"


async def test_a_store_that_nobody_has_used_is_up(store: Redis, state_url: str) -> None:
    """No job and no worker yet: nothing waits, nobody works, and that is told, not that the queue is away."""
    async with opened(state_url) as queue:
        standing = await queue.standing()
    assert (standing.counts, standing.oldest_seconds, standing.workers) == ({}, 0.0, 0)
