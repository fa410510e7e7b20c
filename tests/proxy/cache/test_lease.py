"""Several proxies on one Redis: a row is computed once, whoever asks, and a leader's death is no one's loss."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from foreseen.errors import DeadlineExceeded, FarError, ModelUnavailable
from foreseen.proxy.cache.lease import Leases, LeaseTier
from foreseen.proxy.predict.pipeline import Pipeline
from foreseen.telemetry.metrics import LEASE_OUTCOMES, ProxyMetrics
from foreseen.types import Key
from tests.doubles import BrokenFar, DictFar, Limits, ScriptedModel, pipeline, predicted, question, row, value_of

LONG_SECONDS = 60.0
"""A lease that does not expire while a test runs."""


def leased(far: LeaseTier, slow: float = 0.0, seconds: float = LONG_SECONDS) -> Callable[[ProxyMetrics], Leases]:
    return lambda metrics: Leases(far, metrics, slow, seconds)


def proxies(far: DictFar, *models: ScriptedModel, seconds: float = LONG_SECONDS) -> list[Pipeline]:
    """One proxy per model process: what each of them asks shows in its own."""
    return [pipeline(model, far, leases=leased(far, seconds=seconds)) for model in models]


def outcomes(proxy: Pipeline) -> dict[str, float]:
    counted = {name: proxy._metrics.leases.labels("m", name)._value.get() for name in LEASE_OUTCOMES}
    return {name: value for name, value in counted.items() if value}


async def asked(proxy: Pipeline, *numbers: int, seconds: float = 20.0) -> list[tuple[str, int]]:
    answers = await proxy.answer(question(*(row(number) for number in numbers), seconds=seconds))
    return [(answer.source, value_of(answer.prediction)) for answer in answers]


class Dead(DictFar):
    """A far tier as a process has it that is killed while it computes: it extends nothing and lets go of nothing."""

    def __init__(self, far: DictFar) -> None:
        super().__init__()
        self.values, self.leases = far.values, far.leases

    async def extend(self, keys: Sequence[Key], token: bytes, milliseconds: int) -> None:
        pass

    async def release(self, keys: Sequence[Key], token: bytes) -> None:
        pass


async def test_of_two_proxies_one_computes_and_the_other_waits() -> None:
    """The same cold row at both: one model row; the other's is collapsed, and near with both afterwards."""
    far, first, second = DictFar(), ScriptedModel(), ScriptedModel()
    one, two = proxies(far, first, second)
    first.gate.clear()
    leading = asyncio.create_task(asked(one, 4))
    await first.entered.wait()
    waiting = asyncio.create_task(asked(two, 4))
    await far.asked_twice.wait()
    first.gate.set()
    assert await leading == [("model", 40)]
    assert await waiting == [("collapsed", 40)]
    assert (first.rows, second.rows) == (1, 0)
    assert await asked(two, 4) == [("near", 40)]
    assert (outcomes(one), outcomes(two)) == ({"won": 1}, {"waited": 1})
    await one.close(1)
    assert not far.leases


async def test_each_row_of_a_batch_is_leased_by_itself() -> None:
    """Rows that nobody computes are computed, the others are waited for, in order."""
    far, first, second = DictFar(), ScriptedModel(), ScriptedModel()
    one, two = proxies(far, first, second)
    first.gate.clear()
    leading = asyncio.create_task(asked(one, 1, 2))
    await first.entered.wait()
    waiting = asyncio.create_task(asked(two, 1, 2, 3, 4))
    await second.entered.wait()
    first.gate.set()
    await leading
    assert await waiting == [("collapsed", 10), ("collapsed", 20), ("model", 30), ("model", 40)]
    assert (first.rows, second.rows) == (2, 2)


async def test_a_dead_leaders_row_is_taken_over_by_one() -> None:
    """Its lease expires: of those who wait one computes, and the others wait for that one."""
    far, model = DictFar(), ScriptedModel()
    models = [ScriptedModel() for _ in range(3)]
    (dead,), with_expiry = proxies(Dead(far), model, seconds=0.2), proxies(far, *models, seconds=0.2)
    model.gate.clear()
    dying = asyncio.create_task(asked(dead, 5))
    await model.entered.wait()
    answers = await asyncio.gather(*(asked(proxy, 5) for proxy in with_expiry))
    assert sorted(source for ((source, _),) in answers) == ["collapsed", "collapsed", "model"]
    assert {value for ((_, value),) in answers} == {50}
    assert sum(model.rows for model in models) == 1
    assert sum(outcomes(proxy).get("taken-over", 0) for proxy in with_expiry) == 1
    dying.cancel()


async def test_a_leader_that_takes_long_keeps_its_lease() -> None:
    """It extends it while it lives, so that a slow model is not asked twice."""
    far, first, second = DictFar(), ScriptedModel(), ScriptedModel()
    one, two = proxies(far, first, second, seconds=0.15)
    first.gate.clear()
    leading = asyncio.create_task(asked(one, 6))
    await first.entered.wait()
    waiting = asyncio.create_task(asked(two, 6))
    await asyncio.sleep(0.5)  # three times the lease
    first.gate.set()
    await leading
    assert await waiting == [("collapsed", 60)]
    assert second.rows == 0


async def test_a_leader_that_fails_lets_go_at_once() -> None:
    """Its error is its own; who waits asks for itself."""
    far, first, second = DictFar(), ScriptedModel(), ScriptedModel()
    one, two = proxies(far, first, second)
    first.gate.clear()
    first.error = ModelUnavailable("gone")
    leading = asyncio.create_task(asked(one, 7))
    await first.entered.wait()
    waiting = asyncio.create_task(asked(two, 7))
    await far.asked_twice.wait()
    first.gate.set()
    with pytest.raises(ModelUnavailable):
        await leading
    assert await waiting == [("model", 70)]
    assert outcomes(two) == {"taken-over": 1}


async def test_the_deadline_bounds_the_wait() -> None:
    """Who waits for another proxy waits no longer than it may."""
    far, first, second = DictFar(), ScriptedModel(), ScriptedModel()
    one, two = proxies(far, first, second)
    first.gate.clear()
    leading = asyncio.create_task(asked(one, 8))
    await first.entered.wait()
    with pytest.raises(DeadlineExceeded):
        await asked(two, 8, seconds=0.1)
    assert second.rows == 0
    first.gate.set()
    await leading


class Fails(DictFar):
    """A Redis that does what it is told but for some commands."""

    def __init__(self, *broken: str) -> None:
        super().__init__()
        self.broken = broken

    async def lease(self, keys: Sequence[Key], token: bytes, milliseconds: int) -> list[bool]:
        if "lease" in self.broken:
            raise FarError("timeout")
        return await super().lease(keys, token, milliseconds)

    async def get(self, keys: Sequence[Key]) -> list[bytes | None]:
        if "get" in self.broken and self.gets:
            raise FarError("timeout")
        return await super().get(keys)

    async def release(self, keys: Sequence[Key], token: bytes) -> None:
        if "release" in self.broken:
            raise FarError("permission")
        await super().release(keys, token)


@pytest.mark.parametrize("broken", ["lease", "get"])
async def test_redis_in_trouble_means_to_compute(broken: str) -> None:
    """No lease to be had, or no answer to the look after it: the model is asked, as without, and it is counted."""
    far, model = Fails(broken), ScriptedModel()
    (proxy,) = proxies(far, model)
    assert await asked(proxy, 9) == [("model", 90)]
    assert outcomes(proxy) == {"failed": 1}


async def test_redis_that_is_late_once_is_asked_again() -> None:
    """What was asked for in vain is let go of, so that nobody waits for it."""

    class Late(DictFar):
        async def lease(self, keys: Sequence[Key], token: bytes, milliseconds: int) -> list[bool]:
            first, told = not self.leases, await super().lease(keys, token, milliseconds)
            if first and not self.asked_twice.is_set():
                self.asked_twice.set()
                raise FarError("timeout")
            return told

    far, model = Late(), ScriptedModel()
    (proxy,) = proxies(far, model)
    assert await asyncio.wait_for(asked(proxy, 9), 10) == [("model", 90)]
    assert outcomes(proxy) == {"won": 1}
    await proxy.close(1)
    assert not far.leases


async def test_a_lease_that_cannot_be_let_go_costs_nobody_an_answer() -> None:
    """It expires by itself; the entry is there, so nobody waits for that."""
    far, first, second = Fails("release"), ScriptedModel(), ScriptedModel()
    one, two = proxies(far, first, second)
    assert await asked(one, 1) == [("model", 10)]
    await far.stored.wait()
    assert await asked(two, 1) == [("far", 10)]
    await one.close(1)
    assert one._metrics.far_errors.labels("permission")._value.get() == 1


async def test_without_redis_there_is_no_lease() -> None:
    """A far tier that is not there at all: one failed look, one failed lease, and the answer."""
    model = ScriptedModel()
    proxy = pipeline(model, BrokenFar(), leases=leased(BrokenFar()))
    assert await asked(proxy, 2) == [("model", 20)]


async def test_only_work_that_takes_long_is_leased() -> None:
    """As long as a model has not shown its speed it counts as slow; then rows times seconds decide."""
    far, model = DictFar(), ScriptedModel()
    leases = Leases(far, ProxyMetrics(), 1.0)
    assert leases.worth("m", 1)
    leases.took("m", [predicted(1)] * 3)  # each says 0.25 seconds
    assert [leases.worth("m", rows) for rows in (1, 3, 4, 5)] == [False, False, True, True]
    assert not Leases(far, ProxyMetrics(), float("inf")).worth("m", 10**6)
    proxy = pipeline(model, far, leases=leased(far, slow=1.0))
    await asked(proxy, 1)
    await asked(proxy, 2)
    assert outcomes(proxy) == {"won": 1}


async def test_who_may_not_keep_an_answer_leads_nobody() -> None:
    """`no-store` and `no-cache` take no lease: nobody would find their answer, or they want a newer one."""
    far, model = DictFar(), ScriptedModel()
    (proxy,) = proxies(far, model)
    for steps in (frozenset(("near", "far", "model")), frozenset(("model", "keep"))):
        await proxy.answer(question(row(3), steps=steps))  # type: ignore[arg-type]
    assert (model.rows, outcomes(proxy)) == (2, {})


async def test_a_large_answer_that_far_never_gets_is_let_go() -> None:
    """Nobody will find it there, so whoever waits computes for itself."""
    far, first, second = DictFar(), ScriptedModel(), ScriptedModel()
    one, two = proxies(far, first, second)
    for proxy in (one, two):
        proxy.tiers._limits = Limits(far_value_bytes=10)
    assert await asked(one, 1) == [("model", 10)]
    await asyncio.wait_for(asked(two, 1), 10)
    assert (first.rows, second.rows) == (1, 1)
