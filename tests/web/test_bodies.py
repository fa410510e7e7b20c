"""What request bodies may hold in sum, and how far one may inflate."""

from __future__ import annotations

import gzip
import os
import zlib

import pytest

from foreseen.errors import BadRequest, Overloaded, TooLarge
from foreseen.web.bodies import (
    FREE_BYTES,
    MAX_RATIO,
    MEDIUM_BYTES,
    RATIO_FREE_BYTES,
    Bodies,
    Charge,
    Inflater,
    inflated,
)

LIMIT = 64 * 2**20


def test_small_bodies_take_no_room() -> None:
    """However many large ones there are."""
    bodies = Bodies(medium_bytes=1, large_bytes=1)
    for _ in range(100):
        Charge(bodies).grow(FREE_BYTES)
    assert bodies.used == 0


def test_a_body_takes_what_has_come_of_it_and_gives_it_back() -> None:
    """First of the room for medium bodies, as it grows of the one for large ones."""
    bodies = Bodies()
    charge = Charge(bodies)
    charge.grow(FREE_BYTES)
    charge.grow(1)
    assert (bodies.medium.used, bodies.large.used) == (FREE_BYTES + 1, 0)
    charge.grow(MEDIUM_BYTES)
    assert (bodies.medium.used, bodies.large.used) == (0, FREE_BYTES + 1 + MEDIUM_BYTES)
    charge.release()
    charge.release()
    assert bodies.used == 0


def test_large_bodies_leave_medium_ones_their_room() -> None:
    """The one that does not fit is refused, and what it held is free."""
    bodies = Bodies(medium_bytes=MEDIUM_BYTES, large_bytes=3 * MEDIUM_BYTES)
    first, second, medium = Charge(bodies), Charge(bodies), Charge(bodies)
    first.grow(2 * MEDIUM_BYTES)
    with pytest.raises(Overloaded):
        second.grow(2 * MEDIUM_BYTES)
    assert bodies.large.used == 2 * MEDIUM_BYTES
    medium.grow(MEDIUM_BYTES)
    with pytest.raises(Overloaded):
        second.grow(FREE_BYTES + 1)
    for charge in (first, second, medium):
        charge.release()
    assert bodies.used == 0


def test_one_body_always_fits() -> None:
    """A limit on bodies that is above the room for all of them refuses nobody who comes alone."""
    Charge(Bodies(large_bytes=1)).grow(LIMIT)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_coding_is_bounded_in_its_ratio(coding: str) -> None:
    """A body of zeros inflates a thousandfold; up to 8 MiB that is as good as any."""
    packed = gzip.compress if coding == "gzip" else zlib.compress
    assert inflated(packed(bytes(RATIO_FREE_BYTES)), coding, LIMIT) == bytes(RATIO_FREE_BYTES)
    with pytest.raises(TooLarge, match="binary form"):
        inflated(packed(bytes(RATIO_FREE_BYTES + 1)), coding, LIMIT)
    dense = os.urandom(RATIO_FREE_BYTES // MAX_RATIO) + bytes(RATIO_FREE_BYTES)
    assert inflated(packed(dense), coding, LIMIT) == dense


def test_inflating_is_charged_as_it_goes() -> None:
    """So that the sum of all bodies is bounded in what they really are, not in what came."""
    bodies = Bodies(large_bytes=2 * MEDIUM_BYTES)
    other, charge = Charge(bodies), Charge(bodies)
    other.grow(MEDIUM_BYTES + 1)
    with pytest.raises(Overloaded):
        Inflater(gzip.compress(bytes(LIMIT // 16)), "gzip", LIMIT, charge).run(LIMIT)
    assert bodies.medium.used <= MEDIUM_BYTES
    charge.release()
    other.release()
    assert bodies.used == 0


def test_inflating_can_be_done_in_steps() -> None:
    """The first MiB may be all there is; the rest waits until no other large body is inflated."""
    plain = os.urandom(3 * MEDIUM_BYTES)
    inflater = Inflater(gzip.compress(plain), "gzip", LIMIT)
    assert not inflater.run(MEDIUM_BYTES)
    assert inflater.run(LIMIT)
    assert inflater.value() == plain
    with pytest.raises(BadRequest, match="cut off"):
        Inflater(gzip.compress(plain)[:-9], "gzip", LIMIT).run(LIMIT)
