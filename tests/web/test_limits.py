"""Limits by themselves: buckets, who counts as one caller, and who has to go when there is no room."""

from __future__ import annotations

from collections import Counter

import pytest

from foreseen.web.limits import IDLE_SECONDS, MAX_ADDRESSES, UNIX, Bucket, Buckets, Gate, ListenerLimits, network_of


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def passed(bucket: Bucket, times: int) -> int:
    count = 0
    for _ in range(times):
        if not bucket.wait():
            bucket.take()
            count += 1
    return count


def test_a_burst_then_the_rate() -> None:
    """Ten at once, then two a second; a long rest fills it again and no further."""
    clock = Clock()
    bucket = Bucket(2.0, 10, clock)
    assert passed(bucket, 20) == 10
    assert bucket.wait() == 0.5
    clock.now += 1
    assert passed(bucket, 20) == 2
    clock.now += 1000
    assert passed(bucket, 20) == 10


def test_a_rate_below_one_lets_one_pass() -> None:
    """One in ten seconds is a rate, too."""
    clock = Clock()
    bucket = Bucket(0.1, 0, clock)
    assert passed(bucket, 5) == 1
    assert bucket.wait() == pytest.approx(10)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
    ],
)
def test_who_counts_as_one(one: str, other: str, same: bool) -> None:
    """An IPv4 address; of IPv6 the network that one caller is given."""
    assert (network_of(one) == network_of(other)) is same
    buckets = Buckets(1.0, 1)
    assert (buckets.of(one) is buckets.of(other)) is same


def test_no_rate_and_no_address_is_no_bucket() -> None:
    """Off by default; a unix socket's peer is this machine."""
    assert Buckets(0.0, 0).of("10.0.0.1") is None
    assert Buckets(1.0, 1).of(UNIX) is None


def test_addresses_are_bounded() -> None:
    """The longest unused is forgotten, and begins anew."""
    buckets = Buckets(1.0, 1)
    first, kept = buckets.of("0.0.0.0"), buckets.of("0.0.0.1")
    for number in range(MAX_ADDRESSES - 1):
        buckets.of(f"1.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        if not number % 1000:
            assert buckets.of("0.0.0.1") is kept
    assert buckets.of("0.0.0.0") is not first


class Guest:
    """A connection that rests since then, or is at work."""

    def __init__(self, since: float | None) -> None:
        self.since = since
        self.closed = False

    def rests_since(self) -> float | None:
        return self.since

    def force_close(self) -> None:
        self.closed = True


def test_who_has_rested_longest_makes_room() -> None:
    """Not who is at work, and not who has only just come."""
    told = Counter[str]()
    gate = Gate(ListenerLimits(connections=3), lambda limit: told.update([limit]))
    old, busy, young = Guest(1.0), Guest(None), Guest(99.9)
    assert all(gate.enter(guest, 100.0) for guest in (old, busy, young))
    assert gate.enter(Guest(None), 100.0)
    assert (old.closed, busy.closed, young.closed) == (True, False, False)
    assert not gate.enter(Guest(None), 100.0)
    assert told == {"idle": 1, "connections": 1}
    gate.leave(busy)
    assert gate.enter(Guest(None), 100.0)
    assert gate.enter(Guest(None), 100.0 + IDLE_SECONDS)
    assert young.closed
    assert len(gate) == 3


def test_no_limit_lets_all_in() -> None:
    """The listeners of our own processes."""
    gate = Gate(ListenerLimits())
    assert all(gate.enter(Guest(0.0), 0.0) for _ in range(1000))
