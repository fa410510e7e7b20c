"""The audit of hits: what is drawn, what is compared, what becomes of an entry that differs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from msgspec import structs

from foreseen.errors import ForeseenError, ModelUnavailable, SetupError
from foreseen.keys.entry import EntryCodec
from foreseen.keys.key import tag_key
from foreseen.proxy.predict.sampling.auditor import DIFFERENCES_FILE, Auditor
from foreseen.proxy.predict.sampling.draws import DistinctKeys, Draws, RowBudget
from foreseen.proxy.predict.sampling.row_sampler import WAITING_ROWS
from foreseen.proxy.predict.sampling.samplers import auditor_of
from foreseen.settings import ProxySettings
from foreseen.telemetry.metrics import AUDIT_OUTCOMES, ProxyMetrics
from foreseen.types import Key, Prediction, RequestOptions, Row
from tests.doubles import ROOT, Clock
from tests.proxy.predict.test_template_answers import NUMBERS, V2
from tests.twins import Twin

EXACT = structs.replace(NUMBERS, exact=True)


def body(*rows: int, name: str | None = None) -> bytes:
    """A request of rows of three numbers each."""
    tensor = {"name": "x", "datatype": "INT64", "shape": [len(rows), 3], "data": [[row, 1, 2] for row in rows]}
    document: dict[str, Any] = {"inputs": [tensor]}
    return orjson.dumps(document if name is None else {"id": name} | document)


class Removals:
    """Purges keys of one process only, and remembers them."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    async def purge(self, kind: str, what: str, seconds: float) -> object:
        self.keys.append(what)
        return None


class Audited:
    """A proxy's rooms, one of whose models is audited."""

    def __init__(
        self, share: float = 1.0, rate: float = 1e9, data: Path | None = None, clock: Callable[[], float] = lambda: 0.0,
        **options: Any,
    ) -> None:  # fmt: skip
        def auditor(metrics: ProxyMetrics) -> Auditor:
            self.auditor = Auditor(metrics, Draws(share, random.Random(7)), RowBudget(rate, clock), data)
            return self.auditor

        options = {"templates": False, "far": True} | options
        self.twin = Twin(EXACT, Clock(), sample=auditor, **options)
        self.removals = Removals()

    async def ask(self, *rows: int, times: int = 1, name: str | None = None) -> list[str]:
        return [await asyncio.wait_for(self.twin.ask(V2, body(*rows, name=name)), 20) for _ in range(times)]

    @asynccontextmanager
    async def auditing(self) -> AsyncIterator[None]:
        following = asyncio.create_task(self.auditor.audit(self.twin.server, self.removals, ["m"]))
        await asyncio.sleep(0)
        try:
            yield
        finally:
            following.cancel()

    def rows(self, outcome: str) -> int:
        return round(self.twin.metrics.audited.labels("m", outcome)._value.get())

    def outcomes(self) -> dict[str, int]:
        return {one: self.rows(one) for one in AUDIT_OUTCOMES if self.rows(one)}

    async def settled(self, rows: int) -> None:
        """Until so many rows have an outcome."""
        async with asyncio.timeout(20):
            while sum(self.outcomes().values()) < rows:  # noqa: ASYNC110 - the turns of the event loop are counted
                await asyncio.sleep(0)

    def tamper(self) -> Key:
        """Another answer under the key of the only entry of far, with a valid tag; near forgets it."""
        far, codec = self.twin.far, EntryCodec(tag_key(ROOT))
        assert far is not None
        ((key, (value, until)),) = far.values.items()
        known = codec.unpack(key, self.twin.model.digest, value)
        wrong = structs.replace(known, data=(bytes(len(known.data[0])),))
        far.values[key] = codec.pack_all([(key, wrong)])[0], until
        self.twin.near.forget(key)
        return key


async def stored(audited: Audited) -> None:
    """Until far has what was computed."""
    await audited.twin.pipeline.tiers.close(20)


@pytest.mark.parametrize("share", [0.001, 0.03, 0.5])
def test_the_share_drawn_is_the_share_asked_for(share: float) -> None:
    """Requests of any number of rows; every place in a request is drawn as often as every other."""
    draws, source = Draws(share, random.Random(1)), random.Random(2)
    rows, places = 0, [0, 0]
    while rows < 400_000:
        count = source.choice((1, 2, 8, 64))
        rows += count
        for at in draws.of(count):
            places[count == 64 and at >= 32] += 1
    drawn = sum(places)
    assert abs(drawn - share * rows) < 4 * (share * rows) ** 0.5
    late = share * rows * 32 / 75  # 64 of 75 rows stand in requests of 64, half of them late
    assert abs(places[1] - late) < 4 * late**0.5


def test_all_and_nothing_are_shares() -> None:
    """Of all rows each is drawn."""
    assert [*Draws(1.0).of(5)] == [0, 1, 2, 3, 4]
    assert not Draws(1e-9, random.Random(1)).of(100)


def test_the_budget_is_a_rate() -> None:
    """One second's rows at once, and no more than come in by then."""
    clock = Clock()
    budget = RowBudget(5.0, clock)
    assert [budget.take(3), budget.take(3), budget.take(3)] == [3, 2, 0]
    clock.now += 0.5
    assert budget.take(9) == 2
    clock.now += 100
    assert budget.take(9) == 5


def test_distinct_keys_are_estimated_in_constant_memory() -> None:
    """Within 2 %; the same key counts once."""
    distinct, source = DistinctKeys(), random.Random(3)
    for _ in range(100_000):
        key = Key(source.randbytes(32))
        distinct.add(key)
        distinct.add(key)
    assert distinct.count == pytest.approx(100_000, rel=0.02)


async def test_hits_of_both_ways_are_audited_and_misses_are_not() -> None:
    """The model's answer, near, the cached reply, and a template: each hit row is compared once."""
    for templates in (False, True):
        audited = Audited(templates=templates)
        async with audited.auditing():
            await audited.ask(1, 2)  # a miss
            assert audited.outcomes() == {}
            await audited.ask(1, 2, times=3)
            await audited.settled(6)
            await audited.ask(2, 1, name="a")  # another body: near, by a template where there is one
            await audited.settled(8)
        assert audited.outcomes() == {"equal": 8}
        assert audited.twin.hits == (templates is True)
        assert audited.twin.metrics.audit_distinct.labels("m")._value.get() == 2


async def test_a_tampered_entry_is_found_and_removed(tmp_path: Path) -> None:
    """It has a valid tag, so far gives it. Its audit removes it everywhere, and the next answer is the model's."""
    audited = Audited(data=tmp_path)
    async with audited.auditing():
        right = (await audited.ask(5))[0]
        await stored(audited)
        key = audited.tamper()
        wrong = (await audited.ask(5))[0]
        await audited.settled(1)
        assert audited.outcomes() == {"different": 1}
        assert wrong.split("\r\n\r\n")[1] != right.split("\r\n\r\n")[1]
        assert audited.twin.far is not None
        assert key not in audited.twin.far.values
        assert audited.twin.near.peek(key) is None
        assert audited.removals.keys == [key.hex()]
        assert (await audited.ask(5))[0].split("\r\n\r\n")[1] == right.split("\r\n\r\n")[1]
    noted = [orjson.loads(line) for line in (tmp_path / DIFFERENCES_FILE).read_bytes().splitlines()]
    assert [(one["model"], one["key"]) for one in noted] == [("m", key.hex()[:16])]


async def test_a_tampered_entry_is_found_within_the_expected_number_of_hits() -> None:
    """At a share of 2 % it takes 50 hits on average, and more than 400 three times in ten thousand."""
    audited = Audited(share=0.02)
    async with audited.auditing():
        await audited.ask(5)
        await stored(audited)
        audited.tamper()
        asked = 0
        while not audited.rows("different"):
            await audited.ask(5)
            await asyncio.sleep(0)
            asked += 1
            assert asked < 400
    assert audited.removals.keys


async def test_what_the_cap_drops_is_counted() -> None:
    """With a clock that stands still, one second's rows are audited."""
    audited = Audited(rate=5.0)
    async with audited.auditing():
        await audited.ask(1, 2, 3)
        await audited.ask(1, 2, 3, times=4)
        await audited.settled(12)
    assert audited.outcomes() == {"equal": 5, "dropped": 7}


async def test_no_hit_is_offered_while_the_cap_is_reached() -> None:
    """The fast path asks nothing then; what would have been drawn is counted as dropped when there is room again, and
    rows of the normal path are counted once. A share of all: so the numbers are exact."""
    clock = Clock()
    audited = Audited(rate=5.0, clock=clock, templates=True)
    responder = audited.twin.responder
    async with audited.auditing():
        await audited.ask(1, 2, 3)
        assert responder.sampled is audited.auditor
        await audited.ask(1, 2, 3, times=2)  # five of six
        assert responder.sampled is None
        await audited.ask(1, 2, 3, times=10)  # the fast path: 30
        await audited.ask(3, 2, name="a")  # by a template, or the normal path: 2
        await audited.ask(4, times=2)  # computed, and a hit: 1
        clock.now += 1
        async with asyncio.timeout(20):
            while responder.sampled is None:  # noqa: ASYNC110 - a timer ends the pause
                await asyncio.sleep(0.01)
        assert audited.rows("dropped") == 1 + 30 + 2 + 1
        await audited.ask(1, 2, 3)
        await audited.settled(5 + 34 + 3)
    assert audited.outcomes() == {"equal": 8, "dropped": 34}


def test_how_many_of_so_many_rows_are_drawn() -> None:
    """As many as are drawn one by one, with the same spread."""
    draws = Draws(0.01, random.Random(5))
    counts = [draws.number_of(10_000) for _ in range(4000)]
    assert sum(counts) / 4000 == pytest.approx(100, abs=0.8)  # five standard errors
    assert sum((count - 100) ** 2 for count in counts) / 4000 == pytest.approx(99, rel=0.12)
    assert Draws(1.0).number_of(7) == 7


async def test_memory_is_bounded_while_the_model_does_not_answer() -> None:
    """Rows wait up to a number; the others are dropped, and no answer waits."""
    audited = Audited()
    await audited.ask(1)
    await audited.ask(1, times=WAITING_ROWS + 10)
    assert audited.outcomes() == {"dropped": 10}


async def test_a_model_that_changes_is_not_compared() -> None:
    """Its entries are of another space."""
    audited = Audited()
    await audited.ask(1)
    await audited.ask(1)
    audited.twin.model.digest = "d2"
    async with audited.auditing():
        await audited.settled(1)
    assert audited.outcomes() == {"not-comparable": 1}


async def test_a_model_that_differs_from_itself_is_said_to_be_not_repeatable() -> None:
    """Nothing is removed for it."""
    audited = Audited()
    await audited.ask(1)
    await audited.ask(1)
    answer, source = audited.twin.model._answer, random.Random(1)

    def flaky(row: Row, parameters: bytes) -> Prediction:
        one = answer(row, parameters)
        return structs.replace(one, data=(source.randbytes(len(one.data[0])),))

    audited.twin.model._answer = flaky  # type: ignore[method-assign]
    async with audited.auditing():
        await audited.settled(1)
    assert audited.outcomes() == {"not-comparable": 1}
    assert audited.twin.metrics.audit_unrepeatable.labels("m")._value.get() == 1
    assert audited.removals.keys == []


@pytest.mark.parametrize("error", [ModelUnavailable("gone"), RuntimeError("broken")])
async def test_an_audit_that_fails_is_counted_and_the_next_goes_on(error: Exception) -> None:
    """Whatever the model does."""
    audited = Audited()
    await audited.ask(1)
    await audited.ask(1)
    predict = audited.twin.model.predict

    async def failing(rows: Any, parameters: bytes, options: RequestOptions) -> list[Prediction]:
        audited.twin.model.predict = predict  # type: ignore[method-assign]
        assert options.lane == "background"
        raise error

    audited.twin.model.predict = failing  # type: ignore[method-assign]
    async with audited.auditing():
        await audited.settled(1)
        await audited.ask(1)
        await audited.settled(2)
    assert audited.outcomes() == {"failed": 1, "equal": 1}


async def test_answers_are_the_same_with_and_without_an_audit() -> None:
    """Replies and counts of requests; without one, the classes are the plain ones."""
    audited, plain = Audited(), Twin(EXACT, Clock(), templates=False, far=True)
    assert type(plain.responder).__name__ == "Responder"
    assert type(plain.pipeline).__name__ == "Pipeline"
    async with audited.auditing():
        for rows in ((1,), (1,), (1,), (1, 2), (2, 1), (1, 2)):
            mine = (await audited.ask(*rows))[0]
            theirs = await asyncio.wait_for(plain.ask(V2, body(*rows)), 20)
            assert mine.split("\r\n\r\n")[1] == theirs.split("\r\n\r\n")[1]


@pytest.mark.parametrize(("audit", "rate"), [("2", 5.0), ("x", 5.0), ("-1%", 5.0), ("0.1%", 0.0), ("1", 1e6)])
def test_wrong_settings_are_refused(audit: str, rate: float) -> None:
    """With the name of the flag."""
    with pytest.raises(SetupError, match="--audit"):
        auditor_of(ProxySettings(audit=audit, audit_rows_per_second=rate), ProxyMetrics())


def test_an_audit_is_off_by_default() -> None:
    """And on where a share is given, as a share or in per cent."""
    assert auditor_of(ProxySettings(), ProxyMetrics()) is None
    for share in ("0.1%", "0.001", "100 %", "1"):
        assert isinstance(auditor_of(ProxySettings(audit=share), ProxyMetrics()), Auditor)
    assert issubclass(ModelUnavailable, ForeseenError)
