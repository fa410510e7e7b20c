"""The story, on scripted tiers: who is asked, how often, and what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from foreseen.errors import DeadlineExceeded, DigestMoved, ModelFailed, NotCached, Overloaded
from foreseen.proxy.cache.flight import Waiter
from foreseen.proxy.cache.request_splitting import GROUP_SECONDS, split_request
from foreseen.types import Answer, Prediction, RequestOptions, Row
from tests.doubles import (
    BrokenFar,
    Clock,
    DictFar,
    Limits,
    ScriptedModel,
    StuckFar,
    pipeline,
    predicted,
    question,
    row,
    value_of,
)


def values(answers: list[Answer]) -> list[int]:
    return [value_of(answer.prediction) for answer in answers]


def sources(answers: list[Answer]) -> list[str]:
    return [answer.source for answer in answers]


async def test_the_first_question_asks_the_model_and_the_second_does_not() -> None:
    """A row is computed once and then answered from near."""
    model = ScriptedModel()
    story = pipeline(model, DictFar())
    first = await story.answer(question(row(4, 2)))
    second = await story.answer(question(row(4, 2)))
    assert (values(first), sources(first), first[0].stored) == ([42], ["model"], True)
    assert (values(second), sources(second)) == ([42], ["near"])
    assert second[0].prediction == first[0].prediction
    assert model.calls == [1]


async def test_another_proxy_finds_it_in_far() -> None:
    """A proxy with an empty near answers from Redis, then from its own near."""
    model, far = ScriptedModel(), DictFar()
    await pipeline(model, far).answer(question(row(1)))
    await far.stored.wait()
    other = pipeline(model, far)
    assert sources(await other.answer(question(row(1)))) == ["far"]
    assert sources(await other.answer(question(row(1)))) == ["near"]
    assert model.calls == [1]


async def test_a_batch_asks_the_model_for_its_unknown_rows_only_in_one_request() -> None:
    """64 rows of which 48 are known: one MGET and one model request of 16, and the order is kept."""
    model, far = ScriptedModel(), DictFar()
    story = pipeline(model, far)
    await story.answer(question(*(row(n) for n in range(0, 64, 4)), *(row(n) for n in range(1, 64, 4))))
    await story.answer(question(*(row(n) for n in range(2, 64, 4))))
    answers = await story.answer(question(*(row(n) for n in range(64))))
    assert values(answers) == [10 * n for n in range(64)]
    assert sources(answers).count("near") == 48
    assert (model.calls, far.gets) == ([32, 16, 16], [32, 16, 16])


async def test_equal_rows_within_a_batch_are_asked_once() -> None:
    """The first of equal rows is the model's, the others are collapsed onto it."""
    model = ScriptedModel()
    answers = await pipeline(model).answer(question(row(1), row(2), row(1), row(1)))
    assert values(answers) == [10, 20, 10, 10]
    assert sources(answers) == ["model", "model", "collapsed", "collapsed"]
    assert model.calls == [2]


async def test_two_hundred_at_once_ask_the_model_once() -> None:
    """Concurrent identical misses make one model call of one row."""
    model = ScriptedModel()
    story = pipeline(model, DictFar())
    answers = await asyncio.gather(*(story.answer(question(row(7))) for _ in range(200)))
    assert model.calls == [1]
    assert sorted({answer[0].source for answer in answers}) == ["collapsed", "model"]
    assert {value_of(answer[0].prediction) for answer in answers} == {70}
    assert len(story.flights) == 0


async def test_rows_of_one_moment_share_one_request() -> None:
    """Different questions that arrive in one turn of the event loop make one MGET and one model request."""
    model, far = ScriptedModel(), DictFar()
    story = pipeline(model, far)
    await asyncio.gather(*(story.answer(question(row(n))) for n in range(20)))
    assert (model.calls, far.gets) == ([20], [20])


async def test_rows_of_a_slow_model_are_asked_by_their_askers() -> None:
    """What one asks for stays together; of others nobody waits for the rows: one MGET, a request each."""
    model, far = ScriptedModel(), DictFar()
    story = pipeline(model, far)
    await story.answer(question(row(1)))  # 0.25 s, it says
    asked = [question(row(n)) for n in range(10, 13)] + [question(*(row(n) for n in range(20, 28)))]
    answers = await asyncio.gather(*map(story.answer, asked))
    assert [values(one) for one in answers[:3]] == [[100], [110], [120]]
    assert values(answers[3]) == [10 * n for n in range(20, 28)]
    assert (sorted(model.calls[1:]), far.gets) == ([1, 1, 1, 8], [1, 11])
    await story.close(5)
    assert len(far.values) == 12
    model.ours = False  # somebody else's server, which may batch nothing and says nothing of its time
    await asyncio.gather(*(story.answer(question(row(n))) for n in range(30, 35)))
    assert model.calls[5:] == [5]


async def test_one_request_of_a_slow_model_fails_alone() -> None:
    """Its askers get the error, or their stale answer; the others of the same flight their answers."""
    model = ScriptedModel()
    story = pipeline(model)
    await story.answer(question(row(1)))
    predict = model.predict

    async def some(rows: Sequence[Row], parameters: bytes, options: RequestOptions) -> list[Prediction]:
        if rows[0].tensors[0][0] == 10:
            raise ModelFailed("this one")
        answered = await predict(rows, parameters, options)
        return [structs.replace(one, digest="another") for one in answered] if len(rows) == 3 else answered

    model.predict = some  # type: ignore[method-assign]
    asked = [question(row(10)), question(row(11)), question(row(20), row(21), row(22)), question(row(10), row(12))]
    told = await asyncio.gather(*map(story.answer, asked), return_exceptions=True)
    assert [type(one) for one in told] == [ModelFailed, list, DigestMoved, ModelFailed]
    assert values(told[1]) == [110]
    assert len(story.flights) == 0
    assert sources(await story.answer(question(row(12)))) == ["near"]


@pytest.mark.parametrize(
    ("askers", "row_seconds", "groups"),
    [
        ([1, 1, 1], 0.0, [[0, 1, 2]]),
        ([1, 1, 1], 0.0001, [[0, 1, 2]]),
        ([3], 1.0, [[0, 1, 2]]),
        ([1, 1, 1], 1.0, [[2], [1], [0]]),
        ([2, 1, 1], 1.0, [[3], [2], [0, 1]]),
        ([1, 1, 1, 1], GROUP_SECONDS / 2, [[3, 2], [1, 0]]),
        ([1, 2, 1], GROUP_SECONDS / 2, [[3], [1, 2], [0]]),
    ],
)
def test_groups_are_neighbours_in_size(askers: list[int], row_seconds: float, groups: list[list[int]]) -> None:
    """Later ones are shorter here."""
    future: Any = None
    whose = [client for client, rows in enumerate(askers) for _ in range(rows)]
    waiters = [Waiter(Row((np.zeros(9 - client, np.int64),)), future, client) for client in whose]
    assert [list(group) for group in split_request(waiters, row_seconds)] == groups


async def test_a_caller_that_hangs_up_disturbs_nobody() -> None:
    """The flight outlives its callers: the first one leaves, the others get their answer, and it is kept."""
    model = ScriptedModel()
    model.gate.clear()
    story = pipeline(model)
    callers = [asyncio.create_task(story.answer(question(row(7)))) for _ in range(10)]
    await model.entered.wait()
    for caller in callers[:5]:
        caller.cancel()
    model.gate.set()
    answers = await asyncio.gather(*callers, return_exceptions=True)
    assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [True] * 5 + [False] * 5
    assert model.calls == [1]
    assert sources(await story.answer(question(row(7)))) == ["near"]


async def test_when_everybody_has_left_the_answer_is_kept_all_the_same() -> None:
    """Work that has begun is finished and stored: a cold cache would stay cold otherwise."""
    model = ScriptedModel()
    model.gate.clear()
    story = pipeline(model)
    caller = asyncio.create_task(story.answer(question(row(7))))
    await model.entered.wait()
    caller.cancel()
    await asyncio.wait([caller])
    model.gate.set()
    await story.close(5)
    assert sources(await story.answer(question(row(7)))) == ["near"]
    assert model.calls == [1]


async def test_an_error_reaches_those_aboard_and_is_kept_by_nobody() -> None:
    """All waiting requests fail; the next one starts another flight."""
    model = ScriptedModel()
    model.error = ModelFailed("no")
    story = pipeline(model, DictFar())
    failed = await asyncio.gather(*(story.answer(question(row(7))) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in failed] == [ModelFailed] * 3
    model.error = None
    assert values(await story.answer(question(row(7)))) == [70]
    assert model.calls == [1, 1]


async def test_the_deadline_bounds_the_wait_but_not_the_work() -> None:
    """A waiter whose deadline passes gets DeadlineExceeded; the answer is kept when it comes."""
    model = ScriptedModel()
    model.gate.clear()
    story = pipeline(model)
    with pytest.raises(DeadlineExceeded):
        await story.answer(question(row(7), seconds=0.01))
    model.gate.set()
    await story.close(5)
    assert sources(await story.answer(question(row(7)))) == ["near"]


async def test_a_flight_has_the_latest_deadline_aboard() -> None:
    """The latest deadline among the rows of one batch decides how long the model may take."""
    model = ScriptedModel()
    story = pipeline(model)
    start = asyncio.get_running_loop().time()
    await asyncio.gather(story.answer(question(row(1), seconds=5)), story.answer(question(row(2), seconds=50)))
    assert model.asked[0].deadline >= start + 50


async def test_a_broken_far_costs_no_answer() -> None:
    """A far failure is a miss, counted, and never an error."""
    model = ScriptedModel()
    story = pipeline(model, BrokenFar())
    assert values(await story.answer(question(row(7)))) == [70]
    await story.close(5)
    text = story._metrics.exposition().decode()
    assert 'foreseen_far_errors_total{kind="connect"} 2.0' in text
    assert 'foreseen_misses_total{model="m",reason="far-down"} 1.0' in text


async def test_a_store_never_delays_an_answer() -> None:
    """The answer is there while Redis still sits on the store."""
    far = StuckFar()
    story = pipeline(ScriptedModel(), far)
    assert values(await story.answer(question(row(7)))) == [70]
    assert story.tiers.pending_bytes > 0
    far.gate.set()
    await story.close(5)
    assert story.tiers.pending_bytes == 0


async def test_stores_under_way_are_bounded() -> None:
    """What does not fit is dropped and counted; answers go on."""
    far = StuckFar()
    story = pipeline(ScriptedModel(), far, limits=Limits(far_pending_bytes=300))
    for n in range(10):
        assert values(await story.answer(question(row(n)))) == [10 * n]
    assert story.tiers.pending_bytes <= 300
    assert 'foreseen_far_dropped_entries_total{reason="pending"}' in story._metrics.exposition().decode()
    far.gate.set()
    await story.close(5)


async def test_waiting_rows_are_bounded() -> None:
    """A row above the bound is refused at once; those that wait are not disturbed."""
    model = ScriptedModel()
    model.gate.clear()
    story = pipeline(model, limits=Limits(waiting_rows=3))
    waiting = asyncio.create_task(story.answer(question(row(1), row(2), row(3))))
    await model.entered.wait()
    with pytest.raises(Overloaded):
        await story.answer(question(row(4)))
    model.gate.set()
    assert values(await waiting) == [10, 20, 30]


async def test_a_swapped_far_value_is_a_counted_miss_and_is_replaced() -> None:
    """Two entries changed places in Redis: right answers, two verify failures, both entries healed."""
    model, far = ScriptedModel(), DictFar()
    await pipeline(model, far).answer(question(row(1), row(2)))
    await far.stored.wait()
    one, two = far.values
    far.values[one], far.values[two] = far.values[two], far.values[one]
    other = pipeline(model, far)
    assert values(await other.answer(question(row(1), row(2)))) == [10, 20]
    await other.close(5)
    text = other._metrics.exposition().decode()
    assert 'foreseen_verify_failed_total{reason="identity"} 2.0' in text
    assert sources(await pipeline(model, far).answer(question(row(1), row(2)))) == ["far", "far"]


async def test_a_new_digest_is_never_stored_under_the_old() -> None:
    """A model process answers under another digest: the caller gets DigestMoved, and nothing is kept."""
    model, far = ScriptedModel(), DictFar()
    story = pipeline(model, far)
    model.digest = "d2"
    with pytest.raises(DigestMoved) as moved:
        await story.answer(question(row(1)))
    assert moved.value.digest == "d2"
    assert (len(story.tiers.near), far.values) == (0, {})
    assert values(await story.answer(question(row(1), digest="d2"))) == [10]


@pytest.mark.parametrize(
    "other",
    [{"model": "n"}, {"scope": "tenant"}, {"digest": "d9"}, {"parameters": b'{"a":1}'}],
    ids=lambda o: next(iter(o)),
)
async def test_another_space_is_another_entry(other: dict[str, str]) -> None:
    """Model, tenant, digest and result-changing parameters: the same row never shares an entry across them."""
    model = ScriptedModel()
    story = pipeline(model, DictFar())
    await story.answer(question(row(1)))
    model.digest = other.get("digest", model.digest)
    assert sources(await story.answer(question(row(1), **other))) == ["model"]  # type: ignore[arg-type]
    assert model.calls == [1, 1]


async def test_entries_expire_in_near_and_far() -> None:
    """After its lifetime an entry is a miss everywhere, whatever Redis still holds."""
    model, far, clock = ScriptedModel(ttl_seconds=100), DictFar(), Clock()
    story = pipeline(model, far, clock=clock)
    await story.answer(question(row(1)))
    await far.stored.wait()
    clock.now += 111
    assert sources(await story.answer(question(row(1)))) == ["model"]
    assert 'foreseen_misses_total{model="m",reason="expired"} 1.0' in story._metrics.exposition().decode()


async def test_lifetimes_are_spread() -> None:
    """Entries made together do not expire together: ±10 %."""
    answers = await pipeline(ScriptedModel(ttl_seconds=1000)).answer(question(*(row(n) for n in range(200))))
    lives = [answer.prediction.expires_at - answer.prediction.made_at for answer in answers]
    assert 900 <= min(lives) < 950 < 1050 < max(lives) <= 1100


async def test_no_store_keeps_nothing_and_no_cache_looks_nowhere() -> None:
    """`no-store` is all steps without keep; `no-cache` is model and keep."""
    model, far = ScriptedModel(), DictFar()
    story = pipeline(model, far)
    await story.answer(question(row(1), steps=frozenset(("near", "far", "model"))))
    assert (len(story.tiers.near), far.values) == (0, {})
    await story.answer(question(row(1)))
    again = await story.answer(question(row(1), steps=frozenset(("model", "keep"))))
    assert (sources(again), model.calls) == (["model"], [1, 1, 1])


async def test_only_if_cached_never_asks_the_model() -> None:
    """`only-if-cached` is near and far: a hit, or NotCached."""
    model = ScriptedModel()
    story = pipeline(model, DictFar())
    with pytest.raises(NotCached):
        await story.answer(question(row(1), steps=frozenset(("near", "far"))))
    await story.answer(question(row(1)))
    assert sources(await story.answer(question(row(1), steps=frozenset(("near", "far"))))) == ["near"]
    assert model.calls == [1]


async def test_a_model_that_may_not_be_cached_goes_straight_through() -> None:
    """Every request reaches it, nothing is looked up, shared or kept."""
    model, far = ScriptedModel(), DictFar()
    story = pipeline(model, far)
    for _ in range(2):
        assert sources(await story.answer(question(row(1), steps=frozenset(("model",))))) == ["bypass"]
    assert (model.calls, far.gets, len(story.tiers.near)) == ([1, 1], [], 0)


async def test_an_entry_above_the_limit_is_answered_but_not_sent_to_far() -> None:
    """Oversize entries are counted as dropped, and near still keeps them."""
    far = DictFar()
    story = pipeline(ScriptedModel(), far, limits=Limits(far_value_bytes=10))
    assert values(await story.answer(question(row(1)))) == [10]
    await story.close(5)
    assert far.values == {}
    assert 'foreseen_far_dropped_entries_total{reason="large"} 1.0' in story._metrics.exposition().decode()


async def test_without_any_tier_nothing_is_called_stored() -> None:
    """No near, no far: the answer is right and does not say `stored`."""
    answers = await pipeline(ScriptedModel(), None, near_bytes=0).answer(question(row(1)))
    assert (values(answers), answers[0].stored) == ([10], False)


def test_predicted_round_trips() -> None:
    """The doubles' own value codec."""
    assert value_of(predicted(-5)) == -5
