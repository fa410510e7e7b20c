"""Replay's memory: a kept reply is as good as what it stands on, counted, and bounded."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from foreseen.proxy.cache.near import Near
from foreseen.proxy.fastpath.known_heads import END_OF_HEAD
from foreseen.proxy.predict.replay import Kept, Memory
from foreseen.types import Key, Prediction
from tests.doubles import Clock, numbered, predicted

KEYS = numbered(3)


def kept(
    near: Near, *, keys: list[Key] | None = None, body: bytes = b"kept", clock: Clock | None = None, **more: Any
) -> Kept:
    """A reply that stands on entries which are in near."""
    now = (clock or Clock())()
    rows: list[tuple[Key, Prediction]] = []
    for key in keys or KEYS[:1]:
        prediction = near.peek(key)
        if prediction is None:
            prediction = predicted(1, made_at=now - 5, ttl=100)
            near.put(key, prediction)
        rows.append((key, prediction))
    options: dict[str, Any] = {"alive": lambda: True, "count": lambda seconds, trace: None} | more
    return Kept(rows, (body, b""), None, **options)


def request(body: bytes = b"question", **headers: str) -> bytes:
    lines = ["POST /x HTTP/1.1", "Host: h", f"Content-Length: {len(body)}", *(f"{n}: {v}" for n, v in headers.items())]
    return "\r\n".join(lines).encode() + END_OF_HEAD + body


def test_a_reply_carries_the_time_of_its_replay() -> None:
    """Age and ttl are those of the second; within a second the very same bytes are sent."""
    near, clock = Near(10_000), Clock()
    clock.now = 1_000_000.0
    memory = Memory(near, 10_000, clock)
    memory.keep(request(), kept(near, clock=clock))
    first = memory.reply(request())
    assert first is not None
    assert b"\r\nCache-Status: foreseen;hit;ttl=95;detail=near\r\nAge: 5\r\n" in first
    assert re.search(rb"\r\nContent-Length: 4\r\nDate: [A-Z][a-z]{2}, [0-9A-Za-z :]+ GMT\r\n\r\nkept\Z", first)
    assert memory.reply(request()) is first
    clock.now += 10
    later = memory.reply(request())
    assert later is not None
    assert b";ttl=85;" in later
    assert b"Age: 15\r\n" in later


def test_one_changed_byte_is_another_request() -> None:
    """Every byte of head and body counts."""
    near = Near(10_000)
    memory = Memory(near, 10_000)
    memory.keep(request(), kept(near))
    known = request()
    for at in range(len(known)):
        changed = known[:at] + bytes([known[at] ^ 1]) + known[at + 1 :]
        assert memory.reply(changed) is None
    assert memory.reply(known[:-1]) is memory.reply(known + b"x") is memory.reply(b"") is None
    assert memory.reply(known) is not None


@pytest.mark.parametrize(
    "gone",
    [
        lambda near, clock: near.forget(KEYS[1]),
        lambda near, clock: near.put(KEYS[1], predicted(1)),
        lambda near, clock: near.clear(),
        lambda near, clock: setattr(clock, "now", clock.now + 95),
    ],
    ids=["forgotten", "replaced", "cleared", "expired"],
)
def test_a_reply_goes_with_what_it_stands_on(gone: Callable[[Near, Clock], object]) -> None:
    """One entry of several forgotten, replaced or expired takes the reply with it, for good."""
    near, clock = Near(10_000), Clock()
    memory = Memory(near, 10_000, clock)
    memory.keep(request(), kept(near, keys=KEYS, clock=clock))
    assert memory.reply(request()) is not None
    gone(near, clock)
    assert memory.reply(request()) is None
    assert (len(memory), memory.bytes) == (0, 0)


def test_another_space_in_force_takes_the_reply() -> None:
    """A new digest or generation: what was kept of the old one is gone at once."""
    near, now = Near(10_000), [True]
    memory = Memory(near, 10_000)
    memory.keep(request(), kept(near, alive=lambda: now[0]))
    assert memory.reply(request()) is not None
    now[0] = False
    assert memory.reply(request()) is None
    assert len(memory) == 0


def test_every_replay_is_counted() -> None:
    """Per request, when it happens."""
    near = Near(10_000)
    counted: list[float] = []
    memory = Memory(near, 10_000)
    memory.keep(request(), kept(near, count=lambda seconds, _: counted.append(seconds)))
    for _ in range(5):
        memory.reply(request())
    assert len(counted) == 5


def test_memory_is_bounded_and_the_oldest_go() -> None:
    """Bytes are counted exactly over any number of requests; a reply larger than all of it is not kept."""
    near = Near(1_000_000)
    memory = Memory(near, 10_000)
    for n in range(100):
        memory.keep(request(b"%d" % n), kept(near))
        assert memory.bytes <= 10_000
    assert memory.reply(request(b"99")) is not None
    assert memory.reply(request(b"0")) is None
    assert len(memory) > 3
    memory.keep(request(b"huge"), kept(near, body=bytes(20_000)))
    assert memory.reply(request(b"huge")) is None


def test_a_request_is_kept_at_its_second_hit() -> None:
    """Requests that never come again cost a hint; hints are bounded; nothing is kept where there is no room at all."""
    memory = Memory(Near(10), 10_000)
    assert [memory.worth_keeping(request()), memory.worth_keeping(request())] == [False, True]
    for n in range(memory.MAX_HINTS + 10):
        memory.worth_keeping(b"%d" % n)
    assert len(memory._hints) == memory.MAX_HINTS
    assert not any(Memory(Near(10), 0).worth_keeping(request()) for _ in range(3))
