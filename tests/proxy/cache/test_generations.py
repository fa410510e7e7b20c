"""Generations on a real state store: they only rise, every worker learns of them, and nothing purged comes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from redis.asyncio import Redis

from foreseen.errors import NotConfirmed, StateUnavailable
from foreseen.proxy.admin.purge import Purger
from foreseen.proxy.cache.generations import Generations, is_gone, worker_name
from foreseen.stores.state import State, connect_state, generation_of
from foreseen.types import Key
from tests.doubles import BrokenFar, DictFar, ScriptedModel, numbered, pipeline, question, row, value_of
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

    def __init__(self, url: str, name: str) -> None:
        self.forgotten: list[Sequence[Key] | None] = []
        self.generations = Generations(connect_state(url), self._forget)
        self.generations.worker = f"elsewhere/{name}/1/other"

    async def _forget(self, keys: Sequence[Key] | None) -> None:
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
    """Everything, its model, its digest."""
    model = await state.purge("model", "m")
    assert generation_of(await state.generations(), "m", "d") == model
    assert generation_of(await state.generations(), "n", "d") == 0
    digest = await state.purge("digest", "d")
    assert generation_of(await state.generations(), "n", "d") == digest > model
    whole = await state.purge("all", "")
    assert generation_of(await state.generations(), "x", "y") == whole > digest


async def test_every_worker_learns_of_a_purge_and_it_ends_when_the_last_has_confirmed(
    state_url: str, state: State
) -> None:
    """Two workers, a model, everything and a key: in force on both when it is acknowledged."""
    purger = Purger(state, pipeline(ScriptedModel(), DictFar()).tiers)
    (key,) = numbered(1)
    async with following(state_url, "one", "two") as workers:
        done = await purger.purge("model", "m", 10)
        assert done.workers == 2
        assert [worker.generations.of("m", "d") for worker in workers] == [done.generation] * 2
        assert [worker.generations.of("n", "d") for worker in workers] == [0, 0]
        await purger.purge("key", key.hex(), 10)
        await purger.purge("all", "", 10)
        assert [worker.forgotten for worker in workers] == [[[key], None]] * 2
    assert await purger.workers() == {}


async def test_a_worker_that_is_cut_off_is_named_and_not_forgotten(state_url: str, state: State) -> None:
    """It registered and does not answer: the purge says so until an operator says that it has ended."""
    purger = Purger(state, pipeline(ScriptedModel()).tiers)
    await state.register("elsewhere/7/1/other")
    async with following(state_url, "one"):
        with pytest.raises(NotConfirmed, match="elsewhere/7/1/other"):
            await purger.purge("model", "m", 0)
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
            assert other.generations.of("m", "d") == worker.generations.of("m", "d") == raised
        assert await state.purge("model", "m") > raised


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

    async def forget(keys: Sequence[Key] | None) -> None:
        raise AssertionError("nothing was purged")

    lost = Generations(connect_state("unix:///nowhere/state.sock"), forget)
    task = asyncio.create_task(lost.follow())
    await asyncio.sleep(0)
    assert lost.of("m", "d") is None
    task.cancel()
    await asyncio.wait([task])
    await lost.leave()
    assert Generations(None, forget).of("m", "d") == 0


async def test_what_is_aloft_when_a_key_is_purged_lands_and_is_not_kept() -> None:
    """Those aboard get their answer; nobody joins them, neither near nor far has it afterwards."""
    model, far = ScriptedModel(), DictFar()
    story = pipeline(model, far)
    model.gate.clear()
    before = asyncio.create_task(story.answer(question(row(1))))
    await model.entered.wait()
    await story.forget(story.keys(question(row(1))))
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
    await story.forget(story.keys(question(row(1))))
    assert (await story.answer(question(row(1))))[0].source == "model"
    assert (await story.answer(question(row(1))))[0].source == "near"
    assert model.calls == [1, 1]


async def test_a_key_that_could_not_be_deleted_in_redis_is_not_called_purged(state_url: str, state: State) -> None:
    """Every worker has forgotten it, Redis is away: not confirmed."""
    (key,) = numbered(1)
    with pytest.raises(NotConfirmed, match="not deleted in Redis"):
        await Purger(state, pipeline(ScriptedModel(), BrokenFar()).tiers).purge("key", key.hex(), 10)


async def test_without_a_store_nothing_can_be_purged() -> None:
    """It says so, and what to do."""
    with pytest.raises(StateUnavailable, match="--state"):
        await Purger(None, pipeline(ScriptedModel()).tiers).purge("all", "", 1)
