"""A miss in one coroutine says what the pipeline's own steps say, counts alike and stores the same."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from msgspec import structs

from foreseen.errors import (
    BadInput,
    DeadlineExceeded,
    DigestMoved,
    FarError,
    InputRejected,
    ModelFailed,
    ModelUnavailable,
    Overloaded,
    RowsRefused,
)
from foreseen.proxy.cache.flight import FlightBatch, FlightKey, Flights
from foreseen.proxy.cache.freshness import Policy, control_of
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.lone_miss import LoneMiss
from foreseen.types import ALL_STEPS, ANY_AGE, Key, MaxAge, RequestOptions
from tests.doubles import BrokenFar, DictFar, ScriptedModel, StuckFar, pipeline, question, row, value_of
from tests.proxy.predict.test_template_answers import NUMBERS, TEXT, V2, asked
from tests.twins import Twin, Twins, plain, small_tokenizer

ERRORS: list[Callable[[int], Exception]] = [
    lambda _: ModelFailed("it fails"),
    lambda _: ModelUnavailable("it is away"),
    lambda _: Overloaded("it is full", retry_after=3),
    lambda _: DeadlineExceeded("too late"),
    lambda _: BadInput("no such row"),
    lambda rows: RowsRefused([InputRejected("not again", retry_after=9)] * rows),
    lambda rows: RowsRefused([BadInput("no such row")] * rows),
    lambda _: DigestMoved("d9"),
]


class FailingFar(DictFar):
    """Fails, or refuses a key, when a test says so."""

    error: FarError | None = None
    alone: FarError | None = None

    async def get(self, keys: Any) -> Any:
        if self.error is not None:
            raise self.error
        return [self.alone] * len(keys) if self.alone is not None else await super().get(keys)

    async def put(self, entries: Any) -> None:
        if self.error is not None:
            raise self.error
        await super().put(entries)


class LoneTwins(Twins):
    """Two systems that differ in how a lone row is computed; the first counts how many were in one coroutine."""

    def __init__(self, manifest: Any, **options: Any) -> None:
        super().__init__(manifest, templates=True, lone=False, far=True, **options)
        self.fars: list[FailingFar] = []
        self.lone = 0
        for twin in self.both:
            far = FailingFar()
            twin.far = twin.pipeline.tiers._far = far
            self.fars.append(far)
        suits = self.one.pipeline.lone.suits

        def counted(batch: FlightBatch) -> bool:
            found = suits(batch)
            self.lone += found
            return found

        self.one.pipeline.lone.suits = counted  # type: ignore[method-assign]

    @property
    def both(self) -> tuple[Twin, Twin]:
        return self.one, self.other

    async def ask_settled(self, asked: Sequence[tuple[RequestHead, bytes]]) -> None:
        """Ask both, one after the other has done all that it does in the background, with the same jitter."""
        replies = []
        self.asked += 1
        for twin in self.both:
            random.seed(self.asked)
            replies.append(await asyncio.gather(*(twin.ask(*one) for one in asked)))
            await asyncio.sleep(0)
            await twin.pipeline.flights.drain(5)
            await twin.pipeline.tiers.close(5)
        assert [*map(plain, replies[0])] == [*map(plain, replies[1])]

    def same_entries(self) -> None:
        """Near and far hold the same, byte by byte."""
        far = [{key: value for key, (value, _) in one.values.items()} for one in self.fars]
        assert far[0] == far[1]
        near = [{key: one.prediction for part in (n._small, n._main) for key, one in part.items()} for n in self.nears]
        assert near[0] == near[1]

    @property
    def nears(self) -> list[Any]:
        return [twin.near for twin in self.both]


def change(both: LoneTwins, dice: random.Random, step: int) -> None:
    """Something happens to both systems."""
    kind = dice.randrange(9)
    error = dice.choice(ERRORS)
    damaged, kept, alone = dice.randrange(60), dice.random() < 0.5, dice.choice(["timeout", "moved"])
    for twin, far in zip(both.both, both.fars, strict=True):
        far.error = far.alone = twin.model.error = None
        if kind == 0:
            twin.model.error = error
        elif kind == 1:
            far.error = FarError("timeout")
        elif kind == 2:
            far.alone = FarError(alone)
        elif kind == 3:
            twin.model.digest = f"d{step}"
        elif kind == 4:
            twin.near.clear()
        elif kind == 5:  # far's entries are damaged, all alike
            for key, (value, until) in list(far.values.items()):
                far.values[key] = value[:damaged] + b"\x00" + value[damaged + 1 :], until
            twin.near.clear()
        elif kind == 6 and kept:
            far.values.clear()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("far_value_bytes", [10_000, 40])
async def test_a_lone_miss_says_what_the_general_steps_say(seed: int, far_value_bytes: int) -> None:
    """Rows of a small pool, with errors of the model and of far, damaged entries, new digests, purges and time that
    passes in between, so that entries are stale or expired; alone, twice at once, and with `Cache-Control`."""
    both, dice = LoneTwins(NUMBERS, freshness=Policy(20.0, 10.0, 30.0, 60.0)), random.Random(seed)
    for twin in both.both:
        twin.pipeline.tiers._limits = structs.replace(twin.pipeline.tiers._limits, far_value_bytes=far_value_bytes)
    for step in range(600):
        if step % 7 == 0:
            change(both, dice, step)
        if step % 11 == 0:
            both.clock.now += dice.choice([0.3, 7.0, 21.0])
        if step % 61 == 60:
            for twin in both.both:
                keys = [*twin.near._small, *twin.near._main][::2]
                await twin.pipeline.forget(dict.fromkeys(keys, both.clock.now))
        head, rows = V2, [dice.randrange(30)] if dice.random() < 0.8 else [dice.randrange(30), dice.randrange(30)]
        if dice.random() < 0.1:
            directive = dice.choice(["no-cache", "no-store", "only-if-cached", "max-age=5", "max-stale", "min-fresh=5"])
            head = structs.replace(V2, control=control_of(directive))
        body = asked(*rows, **({"parameters": {"priority": 5}} if dice.random() < 0.1 else {}))
        await both.ask_settled([(head, body)] * (dice.choice([2, 3]) if dice.random() < 0.2 else 1))
    both.same_counts()
    both.same_entries()
    assert both.lone > 100, "the test would prove nothing"


async def test_texts_of_a_lone_miss_too() -> None:
    """Rows whose shapes differ, joined while they are in flight."""
    both = LoneTwins(TEXT, assets={"t.json": small_tokenizer()})
    heads = RequestHead("m", None, "v1", V2.tenant)
    for number in range(40):
        body = b'{"instances": ["word%d word1 the%s"]}' % (number, b" word2" * (number % 5))
        await both.ask_settled([(heads, body)] * (1 + number % 3))
    both.same_counts()
    both.same_entries()
    assert both.lone == 40


async def test_a_joiner_finds_the_flight_in_both_of_its_waits() -> None:
    """While far is asked, and while the model computes: one computation, and the joiner is collapsed onto it."""
    model, far = ScriptedModel(), DictFar()
    story = pipeline(model, far)
    model.gate.clear()
    first = asyncio.ensure_future(story.answer(question(row(7))))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(story.answer(question(row(7))))
    await model.entered.wait()
    third = asyncio.ensure_future(story.answer(question(row(7))))
    await asyncio.sleep(0)
    model.gate.set()
    answers = [(await one)[0] for one in (first, second, third)]
    assert [answer.source for answer in answers] == ["model", "collapsed", "collapsed"]
    assert model.calls == [1]
    assert len(story.flights) == 0


async def test_a_key_that_is_purged_meanwhile_is_answered_and_not_kept() -> None:
    """The purge comes while the model computes; one that comes while far is written waits for that."""
    model, far = ScriptedModel(), DictFar()
    story = pipeline(model, far)
    model.gate.clear()
    asking = asyncio.ensure_future(story.answer(question(row(7))))
    await model.entered.wait()
    (key,) = story.keys(question(row(7)))
    await story.forget({key: 0.0})
    model.gate.set()
    (answer,) = await asking
    await story.close(5)
    assert (answer.stored, value_of(answer.prediction)) == (False, 70)
    assert (story.tiers.near.peek(key), far.values) == (None, {})

    stuck = StuckFar()
    story = pipeline(ScriptedModel(), stuck)
    (answer,) = await story.answer(question(row(8)))
    purging = asyncio.ensure_future(story.forget({key: 0.0}))
    for _ in range(5):
        await asyncio.sleep(0)
    assert answer.stored
    assert not purging.done()
    stuck.gate.set()
    await asyncio.wait_for(purging, 5)


async def test_the_answer_goes_before_the_entry() -> None:
    """A far that does not take the entry keeps nobody waiting, and the process waits for it when it stops."""
    stuck = StuckFar()
    story = pipeline(ScriptedModel(), stuck)
    (answer,) = await asyncio.wait_for(story.answer(question(row(8))), 5)
    assert answer.stored
    assert story.tiers.pending_bytes > 0
    stuck.gate.set()
    await story.close(5)
    assert story.tiers.pending_bytes == 0


async def test_without_far_and_with_a_broken_one() -> None:
    """A row is computed and kept in near."""
    for far in (None, BrokenFar()):
        model = ScriptedModel()
        story = pipeline(model, far)
        (first,) = await story.answer(question(row(5)))
        (second,) = await story.answer(question(row(5)))
        assert [first.source, second.source, model.calls] == ["model", "near", [1]]
        await story.close(5)
        assert story.tiers.pending_bytes == 0


def batch(**options: Any) -> FlightBatch:
    space = question(row(1)).space
    made = FlightBatch(FlightKey(space, options.get("parameters", b""), "online", options.get("steps", ALL_STEPS),
                                 options.get("age", ANY_AGE)))  # fmt: skip
    flights = Flights(lambda _: asyncio.sleep(0))
    flights._collecting[made.flight_key] = made
    keys = {Key(bytes([number]) * 32): row(number) for number in range(options.get("rows", 1))}
    flights.add_all(keys, made.flight_key, RequestOptions(1e9, traceparent=options.get("trace")), {})
    return made


@pytest.mark.parametrize(
    ("options", "suits"),
    [({}, True), ({"rows": 2}, False), ({"parameters": b"{}"}, False), ({"steps": frozenset(("near", "model"))}, False),
     ({"age": MaxAge(max_age=1.0)}, False), ({"trace": "00-" + "1" * 32 + "-" + "1" * 16 + "-01"}, False)],
)  # fmt: skip
async def test_what_is_not_ordinary_takes_the_general_steps(options: dict[str, Any], suits: bool) -> None:
    """Several rows, parameters, fewer steps, limits on age, a trace."""
    lone: LoneMiss = pipeline(ScriptedModel(), DictFar()).lone
    assert lone.suits(batch(**options)) is suits


async def test_a_model_that_is_worth_a_lease_takes_the_general_steps() -> None:
    """Its rows are shared with other proxies."""
    story = pipeline(ScriptedModel(), DictFar())
    assert story.lone.suits(batch())
    story.leases._far, story.leases._slow_seconds = DictFar(), 0.1  # type: ignore[assignment]
    assert not story.lone.suits(batch())
    story.leases._row_seconds["m"] = 0.001
    assert story.lone.suits(batch())
