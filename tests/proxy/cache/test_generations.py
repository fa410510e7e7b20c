"""Generations on a real state store: they only rise, every worker learns of them, and nothing purged comes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
from redis.asyncio import Redis

from foreseen.errors import NotConfirmed, StateUnavailable, UnknownTarget
from foreseen.keys.entry import EntryCodec
from foreseen.keys.key import tag_key
from foreseen.proxy.admin.purge import Purger
from foreseen.proxy.cache.generations import Generations, is_gone, worker_name
from foreseen.proxy.cache.purge_mark import PurgeMark
from foreseen.stores.far import Far
from foreseen.stores.redis_urls import connect
from foreseen.stores.state import State, connect_state, generation_of
from foreseen.tenants.tenant import PUBLIC, own_scope
from foreseen.types import Key
from tests.doubles import (
    ROOT,
    BrokenFar,
    Clock,
    DictFar,
    ScriptedModel,
    numbered,
    pipeline,
    predicted,
    question,
    row,
    value_of,
)
from tests.state_server import state_server


@pytest.fixture
async def state(state_url: str) -> AsyncIterator[State]:
    client: Redis = Redis.from_url(state_url)
    await client.flushall()
    await client.aclose()
    one = connect_state(state_url)
    yield one
    await one.close()


class Worker:
    """One worker's knowledge, and what it was told to forget."""

    def __init__(self, url: str, name: str, mark: MarkDouble | None = None) -> None:
        self.forgotten: list[Mapping[Key, float] | None] = []
        self.generations = Generations(connect_state(url), self._forget, mark)
        self.generations.worker = f"elsewhere/{name}/1/other"

    async def _forget(self, keys: Mapping[Key, float] | None) -> None:
        self.forgotten.append(keys)


@contextlib.asynccontextmanager
async def following(url: str, *names: str) -> AsyncIterator[list[Worker]]:
    """Workers that follow the store until the end of the block."""
    workers = [Worker(url, name) for name in names]
    tasks = [asyncio.create_task(worker.generations.follow()) for worker in workers]
    for worker in workers:
        await asyncio.wait_for(worker.generations.ready.wait(), 10)
    try:
        yield workers
    finally:
        for worker, task in zip(workers, tasks, strict=True):
            await worker.generations.leave()
            task.cancel()
        await asyncio.wait(tasks)


async def test_generations_only_rise_and_stand_above_the_clock(state: State) -> None:
    """A hundred purges at once have a hundred generations, none below the server's clock in µs."""
    before = int(time.time() * 1e6) - 1_000_000
    raised = await asyncio.gather(*(state.purge("model", "m") for _ in range(100)))
    assert len(set(raised)) == 100
    assert min(raised) > before
    assert (await state.generations())["model:m"] == max(raised)


async def test_the_highest_of_what_a_space_belongs_to_counts(state: State) -> None:
    """Everything, its scope, its model, its digest; a scope that was never purged stays at 0."""
    model = await state.purge("model", "m")
    assert generation_of(await state.generations(), PUBLIC, "m", "d") == model
    assert generation_of(await state.generations(), PUBLIC, "n", "d") == 0
    digest = await state.purge("digest", "d")
    assert generation_of(await state.generations(), PUBLIC, "n", "d") == digest > model
    scope = await state.purge("scope", own_scope("a"))
    assert generation_of(await state.generations(), own_scope("a"), "n", "d") == scope > digest
    assert generation_of(await state.generations(), own_scope("b"), "n", "d") == digest
    assert generation_of(await state.generations(), own_scope("b"), "n", "e") == 0
    whole = await state.purge("all", "")
    assert generation_of(await state.generations(), own_scope("a"), "x", "y") == whole > scope


async def test_every_worker_learns_of_a_purge_and_it_ends_when_the_last_has_confirmed(
    state_url: str, state: State
) -> None:
    """Two workers, a model, everything and a key: in force on both when it is acknowledged."""
    purger = Purger(state, pipeline(ScriptedModel(), DictFar()).tiers)
    (key,) = numbered(1)
    async with following(state_url, "one", "two") as workers:
        begun = (await state.generations())["all:"]
        done = await purger.purge("model", "m", 10)
        assert done.workers == 2
        assert [worker.generations.of(PUBLIC, "m", "d") for worker in workers] == [done.generation] * 2
        assert [worker.generations.of(PUBLIC, "n", "d") for worker in workers] == [begun, begun]
        await purger.purge("key", key.hex(), 10)
        await purger.purge("all", "", 10)
        assert [[one and list(one) for one in worker.forgotten[1:]] for worker in workers] == [[[key], None]] * 2
    assert await purger.workers() == {}


async def test_a_purge_of_a_scope_is_of_that_scope_alone(state_url: str, state: State, store: Redis) -> None:
    """On every worker, over all its models; a store that lost it gets it from a worker again."""
    purger = Purger(state, pipeline(ScriptedModel(), DictFar()).tiers)
    one, other = own_scope("a"), own_scope("b")
    async with following(state_url, "one", "two") as workers:
        begun = (await state.generations())["all:"]
        assert [worker.generations.of(scope, "m", "d") for worker in workers for scope in (one, other)] == [begun] * 4
        done = await purger.purge("scope", one, 10)
        for worker in workers:
            of, formerly = worker.generations.of, worker.generations.formerly
            assert [of(one, model, "d") for model in ("m", "n")] == [done.generation] * 2
            assert [of(scope, "m", "d") for scope in (other, PUBLIC)] == [begun] * 2
            assert (formerly(one, "m", "d"), formerly(other, "m", "d")) == ([begun, 0], [0])
        await store.flushall()
        async with asyncio.timeout(20):
            while (await state.generations()).get(f"scope:{one}") != done.generation:  # noqa: ASYNC110 - a worker's next look
                await asyncio.sleep(0.01)


async def test_a_worker_that_is_cut_off_is_named_and_not_forgotten(state_url: str, state: State) -> None:
    """It registered and does not answer: the purge says so until an operator says that it has ended."""
    purger = Purger(state, pipeline(ScriptedModel()).tiers)
    await state.register("elsewhere/7/1/other")
    async with following(state_url, "one"):
        with pytest.raises(NotConfirmed, match="elsewhere/7/1/other"):
            await purger.purge("model", "m", 0)
        with pytest.raises(UnknownTarget, match=r"registered are: .*elsewhere/7/1/other"):
            await purger.forget_worker("elsewhere/7/1/othre")
        await purger.forget_worker("elsewhere/7/1/other")
        assert (await purger.purge("model", "m", 10)).workers == 1


async def test_a_worker_that_has_ended_here_is_not_waited_for(state: State) -> None:
    """Its process id is gone, or another process's by now."""
    ended = await asyncio.create_subprocess_exec("true")
    await ended.wait()
    host, _, started, namespace = worker_name().rsplit("/", 3)
    for dead in (f"{host}/{ended.pid}/{started}/{namespace}", f"{host}/{os.getpid()}/1/{namespace}"):
        assert is_gone(dead)
        await state.register(dead)
    assert not is_gone(worker_name())
    assert not is_gone("elsewhere/1/1/other")
    assert (await Purger(state, pipeline(ScriptedModel()).tiers).purge("all", "", 0)).workers == 0


async def test_a_store_that_lost_everything_is_told_again(state_url: str, state: State) -> None:
    """What a worker knows is raised there before it reads, and a worker that starts later knows it too."""
    async with following(state_url, "one") as (worker,):
        raised = (await Purger(state, pipeline(ScriptedModel()).tiers).purge("model", "m", 10)).generation
        client: Redis = Redis.from_url(state_url)
        await client.flushall()
        await client.aclose()
        assert worker.generations._state is not None
        await worker.generations._catch_up(worker.generations._state)
        async with following(state_url, "two") as (other,):
            assert other.generations.of(PUBLIC, "m", "d") == worker.generations.of(PUBLIC, "m", "d") == raised
        assert await state.purge("model", "m") > raised


async def test_a_store_that_starts_empty_begins_with_a_purge_of_everything(state_url: str, state: State) -> None:
    """Nobody knows what it may have lost. The first who asks begins it, at its clock; the next finds it so."""
    before = time.time_ns() // 1000
    async with following(state_url, "one", "two") as workers:
        begun = await state.generations()
        assert begun["all:"] == begun["last"] >= before
        assert [worker.generations.of(PUBLIC, "m", "d") for worker in workers] == [begun["last"]] * 2
    async with following(state_url, "three"):
        assert await state.generations() == begun


class MarkDouble:
    """A mark that is there, or is not, as a test likes."""

    def __init__(self, value: int | None = 0) -> None:
        self.value = value

    async def read(self) -> int | None:
        return self.value

    async def raise_to(self, generation: int) -> None:
        self.value = generation


async def until(wanted: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not wanted():  # noqa: ASYNC110 - another task's turn
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def marked(url: str, mark: MarkDouble, name: str = "one") -> AsyncIterator[Generations]:
    """A worker with a mark, until the end of the block."""
    worker = Worker(url, name, mark)
    task = asyncio.create_task(worker.generations.follow())
    await asyncio.wait_for(worker.generations.ready.wait(), 10)
    yield worker.generations
    await worker.generations.leave()
    task.cancel()
    await asyncio.wait([task])


async def test_a_store_that_was_rolled_back_is_found_out_by_the_mark(
    state_url: str, state: State, store: Redis
) -> None:
    """A purge is acknowledged; no worker runs, and the store is set back to before: who starts then finds a mark above
    what the store knows, and everything counts as purged."""
    mark = MarkDouble()
    async with marked(state_url, mark):
        old = await store.hgetall("fsn1.generations")
        purged = (await Purger(state, pipeline(ScriptedModel()).tiers).purge("model", "m", 10)).generation
        assert mark.value == purged
    await store.delete("fsn1.generations", "fsn1.purges")
    await store.hset("fsn1.generations", mapping=old)
    async with marked(state_url, mark) as generations:
        for model in ("m", "n"):
            assert (generations.of(PUBLIC, model, "d") or 0) > purged
        assert mark.value == (await state.generations())["last"]


async def test_a_store_that_is_rolled_back_under_a_worker_learns_from_it(
    state_url: str, state: State, store: Redis
) -> None:
    """Its connection stays: the worker sees that the store's last purge is not its own, and tells it again, the purges
    of keys too."""
    (key,) = numbered(1)
    async with marked(state_url, MarkDouble(None)):
        old = await store.hgetall("fsn1.generations")
        purger = Purger(state, pipeline(ScriptedModel()).tiers)
        purged = (await purger.purge("model", "m", 10)).generation
        await purger.purge("key", key.hex(), 10)
        await store.delete("fsn1.generations", "fsn1.purges")
        await store.hset("fsn1.generations", mapping=old)
        async with asyncio.timeout(20):
            while (await state.generations()).get("model:m") != purged:  # noqa: ASYNC110 - the worker's next look
                await asyncio.sleep(0.01)
        async with following(state_url, "two") as (other,):
            assert other.generations.was_purged(key)
            assert other.generations.of(PUBLIC, "m", "d") == purged


async def test_a_mark_that_comes_late_is_heeded(state_url: str, store: Redis) -> None:
    """The cache's Redis is away when a worker starts: what was lost is found out once it is back."""
    mark = MarkDouble(None)
    async with marked(state_url, mark) as generations:
        before = generations.of(PUBLIC, "m", "d") or 0
        mark.value = before + 10_000_000_000
        await until(lambda: (generations.of(PUBLIC, "m", "d") or 0) > before + 10_000_000_000)
        assert (generations.of(PUBLIC, "m", "d") or 0) > before + 10_000_000_000


async def test_a_full_log_ends_in_a_purge_of_everything(state_url: str, state: State, store: Redis) -> None:
    """No purge of a key is ever dropped: where there is no room for another, all that is cached is purged instead."""
    state.kept_purges = 5
    async with following(state_url, "one") as (worker,):
        begun = worker.generations.of(PUBLIC, "m", "d") or 0
        purger = Purger(state, pipeline(ScriptedModel(), DictFar()).tiers)
        for key in numbered(4):
            await purger.purge("key", key.hex(), 10)
        assert worker.generations.of(PUBLIC, "m", "d") == begun
        last = await purger.purge("key", numbered(5)[4].hex(), 10)
        assert worker.generations.of(PUBLIC, "m", "d") == last.generation
        assert await store.xlen("fsn1.purges") == 1


async def test_a_mark_is_ours_or_none(state_url: str, store: Redis) -> None:
    """Forged, cut off, another secret's or no string, it is none, and is written again; in trouble nothing is known."""
    far = Far(connect(state_url, 0.2))
    mark = PurgeMark(far, b"root secret of this test, 32 bytes")
    assert await mark.read() == 0
    await mark.raise_to(7)
    assert await mark.read() == 7
    assert await PurgeMark(far, b"another root secret, also 32 bytes").read() == 0
    for forged in (b"", b"7", b"%020d" % 99 + b"\0" * 16, (await store.get("fsn1.purged"))[:-1]):
        await store.set("fsn1.purged", forged)
        assert await mark.read() == 0
    await store.delete("fsn1.purged")
    await store.lpush("fsn1.purged", "x")
    assert await mark.read() == 0
    await mark.raise_to(8)
    assert await mark.read() == 8
    away = Far(connect("unix:///nowhere.sock", 0.2))
    broken = PurgeMark(away, b"root secret of this test, 32 bytes")
    await broken.raise_to(9)
    assert await broken.read() is None
    await away.close()
    await far.close()
    assert await PurgeMark(None, b"root secret of this test, 32 bytes").read() is None


@pytest.mark.processes
async def test_a_purge_survives_a_killed_store(tmp_path: Path) -> None:
    """kill -9 right after the acknowledgement: the store that starts on its file knows the generation."""
    with state_server(tmp_path) as (url, process):
        state = connect_state(url)
        raised = await state.purge("model", "m")
        process.send_signal(signal.SIGKILL)
        process.wait()
        with pytest.raises(StateUnavailable):
            await state.generations()
        await state.close()
    with state_server(tmp_path) as (url, _):
        state = connect_state(url)
        assert (await state.generations())["model:m"] == raised
        assert [purge.generation for purge in await state.since(0)] == [raised]
        await state.close()


async def test_as_long_as_nothing_was_read_nothing_is_known() -> None:
    """With a store that was never reached there is no generation; without one everything is 0."""

    async def forget(keys: Mapping[Key, float] | None) -> None:
        raise AssertionError("nothing was purged")

    lost = Generations(connect_state("unix:///nowhere/state.sock"), forget)
    task = asyncio.create_task(lost.follow())
    await asyncio.sleep(0)
    assert lost.of(PUBLIC, "m", "d") is None
    task.cancel()
    await asyncio.wait([task])
    await lost.leave()
    assert Generations(None, forget).of(PUBLIC, "m", "d") == 0


async def test_what_is_aloft_when_a_key_is_purged_lands_and_is_not_kept() -> None:
    """Waiters get their answer; no request joins them, and neither near nor far stores it afterwards."""
    model, far = ScriptedModel(), DictFar()
    story = pipeline(model, far)
    model.gate.clear()
    before = asyncio.create_task(story.answer(question(row(1))))
    await model.entered.wait()
    await story.forget(dict.fromkeys(story.keys(question(row(1))), time.time()))
    model.entered.clear()
    after = asyncio.create_task(story.answer(question(row(2), row(1))))
    await model.entered.wait()
    model.gate.set()
    assert value_of((await before)[0].prediction) == 10
    assert [answer.source for answer in await after] == ["model", "model"]
    assert not (await before)[0].stored
    assert model.calls == [1, 2]


async def test_a_purged_key_is_not_read_from_far_while_it_is_being_deleted() -> None:
    """Redis still holds it: a miss; computed anew it is kept and found."""
    model, far = ScriptedModel(), DictFar()
    story = pipeline(model, far)
    await story.answer(question(row(1)))
    await far.stored.wait()
    await story.forget(dict.fromkeys(story.keys(question(row(1))), time.time()))
    assert (await story.answer(question(row(1))))[0].source == "model"
    assert (await story.answer(question(row(1))))[0].source == "near"
    assert model.calls == [1, 1]


async def test_an_entry_that_was_purged_by_key_cannot_be_put_back() -> None:
    """Somebody who may write to Redis kept it: it is a miss for as long as it could live; what is computed after the
    purge is a hit from far again."""
    model, far, clock = ScriptedModel(ttl_seconds=1e9), DictFar(), Clock()
    story = pipeline(model, far, near_bytes=0, clock=clock)
    await story.answer(question(row(1)))
    await far.stored.wait()
    (key,) = story.keys(question(row(1)))
    held = far.values[key]
    clock.now += 100
    await story.forget({key: clock.now})
    for seconds in (1, 100, 1_000_000):
        clock.now += seconds
        far.values[key] = held
        far.stored.clear()
        assert (await story.answer(question(row(1))))[0].source == "model"
        await far.stored.wait()
    far.values[key] = EntryCodec(tag_key(ROOT)).pack(key, predicted(10, made_at=clock.now)), far.values[key][1]
    assert (await story.answer(question(row(1))))[0].source == "far"


async def test_a_key_that_could_not_be_deleted_in_redis_is_not_called_purged(state_url: str, state: State) -> None:
    """Every worker has forgotten it, Redis is away: not confirmed."""
    (key,) = numbered(1)
    with pytest.raises(NotConfirmed, match=r"not deleted in Redis \(connect\)"):
        await Purger(state, pipeline(ScriptedModel(), BrokenFar()).tiers).purge("key", key.hex(), 10)


async def test_without_a_store_nothing_can_be_purged() -> None:
    """It says so, and what to do."""
    with pytest.raises(StateUnavailable, match="--state"):
        await Purger(None, pipeline(ScriptedModel()).tiers).purge("all", "", 1)
