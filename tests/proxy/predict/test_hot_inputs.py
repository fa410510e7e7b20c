"""The rows that a process serves most: noted, bounded, ordered, forgotten, and as bytes for another process."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from msgspec import structs

from foreseen.errors import BadInput
from foreseen.modelspec.row_records import HotRowsHead, RowRecord, decode, encode, row_of
from foreseen.proxy.cache.freshness import control_of
from foreseen.proxy.cache.look_result import LookResult
from foreseen.proxy.cache.near import Near
from foreseen.proxy.predict.sampling.hot_inputs import ITEM_BYTES, ROW_BYTES, TENSOR_BYTES, HotInputs
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.tenants.tenant import PUBLIC
from foreseen.types import Answer, Key, Prediction, Question, RequestOptions, Row, Scope, Space
from tests.doubles import Clock
from tests.proxy.predict.test_template_answers import NUMBERS, V2
from tests.twins import Twin

SPACE = Space(PUBLIC, "m", "d")
SIZE = ROW_BYTES + 2 * TENSOR_BYTES + ITEM_BYTES + 2 + 16 + 6
"""Of a row of these tests with a number of one digit."""


def key(number: int) -> Key:
    return Key(number.to_bytes(32, "big"))


def row(number: int) -> Row:
    return Row((np.array([number, number + 1], "<i8"), np.array([b"text %d" % number], object)), None)


def offer(hot: HotInputs, *numbers: int, space: Space = SPACE) -> None:
    """Rows that near had."""
    question = Question(space, [row(number) for number in numbers], RequestOptions(0.0), b"{}")
    keys = [key(number) for number in numbers]
    found = {one: cast("Answer", None) for one in keys}
    hot.offer_rows(cast("Any", None), question, keys, LookResult(found, {}), {})


def near_with(*numbers: int) -> Near:
    near = Near(2**20)
    for number in numbers:
        near.put(key(number), Prediction((), (), "d", 0.0, 1.0, 0.0))
    return near


def ring(capacity_bytes: int, near: Near | None = None) -> HotInputs:
    return HotInputs(capacity_bytes, near or near_with(), ProxyMetrics())


async def given(
    hot: HotInputs, most: int = 10**6, *, model: str = "m", dead: tuple[Space, ...] = ()
) -> list[RowRecord]:
    pieces = [piece async for piece in hot.hottest(model, most, lambda space, row: space not in dead)]
    return [record for piece in pieces for record in piece]


def numbers(records: list[RowRecord]) -> list[int]:
    return [int(row_of(record).tensors[0].flat[0]) for record in records]


async def test_rows_come_by_heat_and_read_back_as_they_were() -> None:
    """Uses of near's entry and passes of the pipeline count; only the model's rows; scope and parameters travel."""
    near = near_with(1, 2, 3)
    hot = ring(2**20, near)
    offer(hot, 1, 2, 3)
    offer(hot, 9, space=Space(PUBLIC, "other", "d"))
    offer(hot, 2)
    for _ in range(3):
        near.get(key(3))
    records = await given(hot, 2)
    assert [record.heat for record in records] == [4, 2]
    head, decoded = decode(encode(HotRowsHead("w", 2)) + encode(records[:1]) + encode(records[1:]) + encode([]))
    assert (head.worker, head.workers, decoded) == ("w", 2, records)
    first = row_of(decoded[0])
    for got, wanted in zip(first.tensors, row(3).tensors, strict=True):
        assert got.dtype == wanted.dtype
        assert got.tolist() == wanted.tolist()
    assert (decoded[0].scope, decoded[0].parameters) == (PUBLIC, b"{}")


@pytest.mark.parametrize("content", [b"", b"\0\0\0\x09abc", encode([])])
def test_what_is_no_answer_of_a_worker_is_refused(content: bytes) -> None:
    """Nothing at all, one that was cut short, rows without a head."""
    with pytest.raises(msgspec.MsgspecError):
        decode(content)


async def test_rows_in_use_stay_where_there_is_no_room() -> None:
    """The oldest row goes unless near has used it; what is larger than all of the bound is not kept."""
    near = near_with(*range(40))
    hot = ring(4 * (SIZE + 1), near)
    offer(hot, 0)
    near.get(key(0))
    for number in range(1, 40):
        offer(hot, number)
        assert hot.bytes <= hot.capacity_bytes
    kept = numbers(await given(hot))
    assert kept[0] == 0
    assert 39 in kept
    assert len(hot) == len(kept) == 4
    tiny = ring(10, near)
    offer(tiny, 1)
    assert (len(tiny), tiny.bytes) == (0, 0)


def test_what_is_counted_is_no_less_than_what_is_allocated() -> None:
    """The bound is one of memory: 5,000 rows of two tensors offered to room for about 1,100."""
    hot = ring(2**20)
    offer(hot, *range(500))  # what is allocated once
    hot.forget(None)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(5_000):
            offer(hot, number)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 2**20 - SIZE - 8 < hot.bytes <= 2**20
    assert taken <= 2**20
    hot.forget(None)
    assert (len(hot), hot.bytes) == (0, 0)


def test_a_kept_row_is_no_view_of_its_request() -> None:
    """A view would hold the whole request's memory, beyond the bound."""
    hot = ring(2**20)
    table = np.zeros((1000, 2), "<i8")
    question = Question(SPACE, [Row((table[5],), None)], RequestOptions(0.0))
    hot.offer_rows(cast("Any", None), question, [key(5)], LookResult({key(5): cast("Answer", None)}, {}), {})
    (kept,) = hot._rows.values()
    assert kept.row.tensors[0].base is None


async def test_tenants_have_rows_of_their_own() -> None:
    """The same input of two tenants is two rows, each under its own scope."""
    hot, scopes = ring(2**20), [Scope("a"), Scope("b")]
    for at, scope in enumerate(scopes):
        question = Question(Space(scope, "m", "d"), [row(1)], RequestOptions(0.0))
        hot.offer_rows(cast("Any", None), question, [key(at)], LookResult({key(at): cast("Answer", None)}, {}), {})
    records = await given(hot)
    assert [record.scope for record in records] == scopes
    assert numbers(records) == [1, 1]


# Purges.


async def test_a_purged_row_is_never_given() -> None:
    """By its key and with everything at once, in a purged space before it has been swept; also while rows are given."""
    hot, second = ring(2**20), Space(PUBLIC, "m", "d", 1)
    offer(hot, *range(600))
    offer(hot, 1000, space=second)
    hot.forget({key(3): 0.0})
    assert 3 not in numbers(await given(hot))
    assert numbers(await given(hot, dead=(SPACE,))) == [1000]
    pieces = hot.hottest("m", 10**6, lambda space, row: True)
    first = await anext(pieces)
    hot.forget(None)
    assert len(first) == 256
    assert [piece async for piece in pieces] == [[], []]
    assert (len(hot), hot.bytes) == (0, 0)


async def test_purged_spaces_are_swept() -> None:
    """Within a second of a purge their rows are no longer in memory; those of other spaces stay."""
    hot, last, kept = ring(2**20), [0], Space(PUBLIC, "n", "d")
    offer(hot, *range(5))
    offer(hot, 9, space=kept)

    def after(space: Space) -> Space:
        return structs.replace(space, generation=last[0]) if space.model == "m" else space

    following = asyncio.create_task(hot.follow(lambda: last[0], after))
    await asyncio.sleep(0)
    assert len(hot) == 6
    last[0] = 7
    async with asyncio.timeout(20):
        while len(hot) > 1:  # noqa: ASYNC110 - the sweep is what is tested
            await asyncio.sleep(0.02)
    following.cancel()
    assert numbers(await given(hot, model="n")) == [9]
    assert hot.bytes == SIZE


# With a pipeline.


def body(*rows: int) -> bytes:
    tensor = {"name": "x", "datatype": "INT64", "shape": [len(rows), 3], "data": [[row, 1, 2] for row in rows]}
    return msgspec.json.encode({"inputs": [tensor]})


def twin() -> Twin:
    return Twin(NUMBERS, Clock(), templates=True, far=True, hot_bytes=2**20)


async def test_rows_are_noted_once_they_are_answered() -> None:
    """A miss when its answer is there; near's hits count passes; also what only far had. A row in two requests at once
    is one."""
    both = twin()
    await asyncio.gather(both.ask(V2, body(1, 2)), both.ask(V2, body(2, 3)))
    assert sorted(numbers(await given(both.hot))) == [1, 2, 3]
    assert both.model.rows == 3
    await both.pipeline.tiers.close(20)
    both.hot.forget(None)
    both.near.clear()
    await both.ask(V2, body(3, 1))
    assert sorted(numbers(await given(both.hot))) == [1, 3]
    assert both.model.rows == 3


async def test_what_failed_or_may_not_be_kept_is_not_noted() -> None:
    """A row that the model refuses would fail in the candidate, too; `no-store` holds for inputs; jobs' rows are not
    what is served most."""
    one = twin()
    one.model.error = lambda rows: BadInput("no")
    await one.ask(V2, body(1))
    one.model.error = None
    await one.ask(structs.replace(V2, control=control_of("no-store")), body(2))
    await one.ask(structs.replace(V2, lane="background"), body(3))
    assert await given(one.hot) == []
    await one.ask(V2, body(4))
    assert numbers(await given(one.hot)) == [4]


async def test_a_purge_during_a_flight_keeps_its_row_out() -> None:
    """The request is answered, and its row is not noted."""
    one = twin()
    asked = one.ask(V2, body(1))
    one.hot.forget(None)
    await asked
    assert await given(one.hot) == []
