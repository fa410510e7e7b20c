"""The story on scripted tiers when entries grow old: who gets what, who is asked, how often."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import pytest

from foreseen.errors import BadInput, DeadlineExceeded, ModelUnavailable, NotCached
from foreseen.proxy.cache.freshness import Policy
from foreseen.proxy.predict.pipeline import Pipeline
from foreseen.types import Answer, MaxAge, Steps
from tests.doubles import Clock, DictFar, ScriptedModel, pipeline, predicted, question, row, value_of

POLICY = Policy(100.0, revalidate_seconds=50.0, if_error_seconds=1000.0)
STALE = 130.0
"""Past freshness, ±10 %, and within the window of revalidation."""
EXPIRED = 400.0
NO_CACHE: Steps = frozenset(("model", "keep"))


def facts(answers: list[Answer]) -> list[tuple[str, str | None]]:
    return [(answer.source, answer.why) for answer in answers]


def count(story: Pipeline, sample: str) -> float:
    text = story._metrics.exposition().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(sample))


async def turns(until: Callable[[], bool]) -> None:
    """Let the event loop turn until something has come about; it is a matter of a few turns."""
    for _ in range(100):
        if until():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come about")


async def test_a_stale_row_is_answered_at_once_and_refreshed_once_in_the_background() -> None:
    """A hundred askers of a stale row wait for nobody; one refresh runs, in the background lane, and makes it fresh."""
    model, far, clock = ScriptedModel(freshness=POLICY), DictFar(), Clock()
    story = pipeline(model, far, clock=clock)
    await story.answer(question(row(1)))
    await far.stored.wait()
    clock.now += STALE
    model.gate.clear()
    model.entered.clear()
    answers = await asyncio.gather(*(story.answer(question(row(1))) for _ in range(100)))
    assert {fact for one in answers for fact in facts(one)} == {("stale", "stale-while-revalidate")}
    await model.entered.wait()
    assert (model.calls, model.asked[1].lane) == ([1, 1], "background")
    assert facts(await story.answer(question(row(1)))) == [("stale", "stale-while-revalidate")]
    model.gate.set()
    await story.close(5)
    assert facts(await story.answer(question(row(1)))) == [("near", None)]
    assert model.calls == [1, 1]


async def test_a_stale_row_of_far_is_answered_and_refreshed_too() -> None:
    """A proxy whose near is empty: the stale entry of Redis is the answer, one refresh follows."""
    model, far, clock = ScriptedModel(freshness=POLICY), DictFar(), Clock()
    await pipeline(model, far, clock=clock).answer(question(row(1)))
    await far.stored.wait()
    clock.now += STALE
    other = pipeline(model, far, clock=clock)
    assert facts(await other.answer(question(row(1)))) == [("stale", "stale-while-revalidate")]
    await other.close(5)
    assert facts(await other.answer(question(row(1)))) == [("near", None)]
    assert model.calls == [1, 1]


async def test_a_refresh_takes_what_another_proxy_has_refreshed() -> None:
    """Stale here, fresh in Redis: the refresh finds it there and asks no model."""
    model, far, clock = ScriptedModel(freshness=POLICY), DictFar(), Clock()
    one, other = pipeline(model, far, clock=clock), pipeline(model, far, clock=clock)
    for story in (one, other):
        await story.answer(question(row(1)))
        await far.stored.wait()
    clock.now += STALE
    await one.answer(question(row(1)))
    await one.close(5)
    assert facts(await other.answer(question(row(1)))) == [("stale", "stale-while-revalidate")]
    await other.close(5)
    assert facts(await other.answer(question(row(1)))) == [("near", None)]
    assert model.calls == [1, 1]


async def test_each_row_of_a_batch_is_judged_by_itself() -> None:
    """Fresh, stale and unknown rows in one batch: two from the cache, one computed, order kept."""
    model, clock = ScriptedModel(freshness=POLICY), Clock()
    story = pipeline(model, clock=clock)
    await story.answer(question(row(1)))
    clock.now += STALE
    await story.answer(question(row(2)))
    answers = await story.answer(question(row(1), row(2), row(3)))
    assert [value_of(answer.prediction) for answer in answers] == [10, 20, 30]
    assert [answer.source for answer in answers] == ["stale", "near", "model"]


async def test_an_expired_row_is_recomputed_and_says_so() -> None:
    """Past all windows of revalidation it is a miss with the reason `expired`, though near and far still hold it."""
    model, far, clock = ScriptedModel(freshness=POLICY), DictFar(), Clock()
    story = pipeline(model, far, clock=clock)
    await story.answer(question(row(1)))
    await far.stored.wait()
    clock.now += EXPIRED
    assert facts(await story.answer(question(row(1)))) == [("model", None)]
    assert count(story, 'foreseen_misses_total{model="m",reason="expired"}') == 1
    assert model.calls == [1, 1]


@pytest.mark.parametrize("near_bytes", [0, 100_000])
async def test_when_the_model_fails_an_old_answer_is_better_than_none(near_bytes: int) -> None:
    """stale-if-error, of near and of far; a row that nobody knows gets the error."""
    model, far, clock = ScriptedModel(freshness=POLICY), DictFar(), Clock()
    story = pipeline(model, far, clock=clock, near_bytes=near_bytes)
    await story.answer(question(row(1)))
    await far.stored.wait()
    clock.now += EXPIRED
    model.error = ModelUnavailable("gone")
    assert facts(await story.answer(question(row(1)))) == [("stale", "stale-if-error")]
    with pytest.raises(ModelUnavailable):
        await story.answer(question(row(1), row(2)))
    with pytest.raises(ModelUnavailable):
        await story.answer(question(row(1), age_limits=MaxAge(stale_if_error=0)))
    with pytest.raises(ModelUnavailable):
        await story.answer(question(row(1), steps=NO_CACHE))
    model.error = BadInput("the input's own fault")
    with pytest.raises(BadInput):
        await story.answer(question(row(1)))
    clock.now += 1000
    model.error = ModelUnavailable("gone")
    with pytest.raises(ModelUnavailable):
        await story.answer(question(row(1)))


async def test_a_hung_model_costs_the_deadline_and_then_an_old_answer_is_given() -> None:
    """The model does not answer: at the caller's deadline the stale entry is the answer."""
    model, clock = ScriptedModel(freshness=POLICY), Clock()
    story = pipeline(model, clock=clock)
    await story.answer(question(row(1)))
    clock.now += EXPIRED
    model.gate.clear()
    assert facts(await story.answer(question(row(1), seconds=0.02))) == [("stale", "stale-if-error")]
    model.gate.set()
    await story.close(5)


async def test_no_cache_computes_anew_and_keeps_it() -> None:
    """It looks nowhere; what it computed is the hit of the next."""
    model, clock = ScriptedModel(), Clock()
    story = pipeline(model, DictFar(), clock=clock)
    await story.answer(question(row(1)))
    clock.now += 10
    (new,) = await story.answer(question(row(1), steps=NO_CACHE))
    (next_one,) = await story.answer(question(row(1)))
    assert (new.source, next_one.source, next_one.prediction) == ("model", "near", new.prediction)
    assert new.prediction.made_at == clock.now


async def test_no_cache_joins_only_flights_that_began_after_it() -> None:
    """Those that are in the air may carry an older answer; those of the same moment are asked together."""
    model = ScriptedModel()
    story = pipeline(model)
    model.gate.clear()
    plain = asyncio.create_task(story.answer(question(row(1))))
    await model.entered.wait()
    anew = [asyncio.create_task(story.answer(question(row(1), steps=NO_CACHE))) for _ in range(10)]
    await turns(lambda: len(model.calls) == 2)
    later = asyncio.create_task(story.answer(question(row(1), steps=NO_CACHE)))
    joining = asyncio.create_task(story.answer(question(row(1))))
    await turns(lambda: len(model.calls) == 3)
    model.gate.set()
    await asyncio.gather(plain, *anew, later, joining)
    assert model.calls == [1, 1, 1]
    assert sorted({one.result()[0].source for one in anew}) == ["collapsed", "model"]
    assert joining.result()[0].source == "collapsed"


async def test_max_age_never_gets_an_older_answer_from_somebody_else_s_flight() -> None:
    """Two ask at the same moment, one for an entry of at most ten seconds: each gets what it takes."""
    model, far, clock = ScriptedModel(), DictFar(), Clock()
    await pipeline(model, far, clock=clock).answer(question(row(1)))
    await far.stored.wait()
    clock.now += 20
    story = pipeline(model, far, clock=clock)
    any_age, young = await asyncio.gather(
        story.answer(question(row(1))), story.answer(question(row(1), age_limits=MaxAge(max_age=10)))
    )
    assert (any_age[0].source, young[0].source) == ("far", "model")
    assert young[0].prediction.made_at == clock.now


async def test_max_stale_takes_what_is_there() -> None:
    """A client that says so gets an entry past its freshness, and no refresh is caused."""
    model, clock = ScriptedModel(freshness=Policy(100.0, if_error_seconds=1000.0)), Clock()
    story = pipeline(model, clock=clock)
    await story.answer(question(row(1)))
    clock.now += EXPIRED
    asked = question(row(1), age_limits=MaxAge(max_stale=math.inf))
    assert facts(await story.answer(asked)) == [("stale", "max-stale")]
    assert model.calls == [1]


async def test_only_if_cached_ends_nobody_else_s_wait() -> None:
    """A plain request of the same moment does not get `not_cached`; a request for the cache only waits for no model."""
    model = ScriptedModel()
    story = pipeline(model, DictFar())
    model.gate.clear()
    cached = asyncio.create_task(story.answer(question(row(1), steps=frozenset(("near", "far")))))
    plain = asyncio.create_task(story.answer(question(row(1))))
    with pytest.raises(NotCached):
        await cached
    await model.entered.wait()
    with pytest.raises(NotCached):
        await story.answer(question(row(1), steps=frozenset(("near", "far"))))
    joined = asyncio.create_task(story.answer(question(row(1))))
    model.gate.set()
    assert value_of((await plain)[0].prediction) == value_of((await joined)[0].prediction) == 10
    assert model.calls == [1]


async def test_who_joins_a_flight_of_an_impatient_asker_keeps_its_own_deadline() -> None:
    """The flight ends at its first request's deadline; a request that joined it with more time starts another."""
    model = ScriptedModel()
    story = pipeline(model)
    model.error = DeadlineExceeded("the impatient one's")
    model.gate.clear()
    impatient = asyncio.create_task(story.answer(question(row(1), seconds=5)))
    await model.entered.wait()
    patient = asyncio.create_task(story.answer(question(row(1), seconds=50)))
    await asyncio.sleep(0)
    model.gate.set()
    with pytest.raises(DeadlineExceeded):
        await impatient
    model.error = None
    assert value_of((await patient)[0].prediction) == 10
    assert model.calls == [1, 1]


async def test_an_entry_of_a_machine_whose_clock_is_ahead_is_new_and_not_negative() -> None:
    """Its age is 0, whatever is asked of its age."""
    clock = Clock()
    story = pipeline(ScriptedModel(), clock=clock)
    (key,) = story.keys(question(row(1)))
    story.tiers.near.put(key, predicted(5, made_at=clock.now + 3600, ttl=100))
    assert facts(await story.answer(question(row(1), age_limits=MaxAge(max_age=0)))) == [("near", None)]
