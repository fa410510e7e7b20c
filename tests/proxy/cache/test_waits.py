"""Many that wait for one row are called back in slices, each once, whatever one of them does."""

from __future__ import annotations

import asyncio

import pytest

from foreseen.proxy.cache.flight import RowFuture
from foreseen.proxy.cache.waits import TURN_CALLS, FanOut
from tests.proxy.fastpath.test_responder import System, body


async def turns(fan_out: FanOut) -> None:
    for _ in range(5):
        await asyncio.sleep(0)
    assert not fan_out._due


async def test_every_turn_calls_a_slice() -> None:
    """In the order in which they came; one that waits alone is called with the future."""
    fan_out, called = FanOut(), list[int]()
    future: RowFuture = asyncio.get_running_loop().create_future()
    for number in range(3 * TURN_CALLS + 1):
        fan_out.add(future, lambda number=number: called.append(number))
    future.set_result(None)  # type: ignore[arg-type]
    sizes = []
    for _ in range(6):
        await asyncio.sleep(0)
        sizes.append(len(called))
    assert sizes[:4] == [TURN_CALLS, 2 * TURN_CALLS, 3 * TURN_CALLS, 3 * TURN_CALLS + 1]
    assert called == [*range(3 * TURN_CALLS + 1)]
    assert not fan_out._waiting


async def test_what_is_called_may_have_others_called_and_may_fail() -> None:
    """Others are called in their turn; an error stops none of them."""
    fan_out, called = FanOut(), list[str]()

    def fails() -> None:
        raise RuntimeError("of one")

    def more() -> None:
        called.append("more")
        fan_out.call([lambda: called.append("inner")])

    with pytest.raises(RuntimeError):
        fan_out.call([fails, more, lambda: called.append("last")])
    await turns(fan_out)
    assert called == ["more", "last", "inner"]


async def test_other_requests_have_their_turn_between_the_replies_to_many() -> None:
    """Six hundred callers of one cold row, of known bodies and others: between two turns no more than a slice of them
    is answered, and all are."""
    for asked in ([body((4, 2), own=f"n{n}") for n in range(600)], [body((4, 2), (n, 1)) for n in range(600)]):
        system = System()
        await system.known(body((4, 2), own="first"))
        system.far.values.clear()
        system.model.gate.clear()
        replies = [system.ask(one) for one in asked]
        await asyncio.wait_for(system.model.entered.wait(), 10)
        for _ in range(5):
            await asyncio.sleep(0)
        system.model.gate.set()
        most = before = 0
        while not all(reply.done() for reply in replies):
            await asyncio.sleep(0)
            done = sum(reply.done() for reply in replies)
            most, before = max(most, done - before), done
        assert 0 < most <= 2 * TURN_CALLS
        assert all("HTTP/1.1 200" in reply.result() for reply in replies)
