"""Offsets are committed only behind what is finished without a gap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from foreseen.proxy.kafka.offsets import PartitionOffsets


def test_a_commit_never_passes_a_message_under_way() -> None:
    one = PartitionOffsets()
    for offset in (5, 6, 9):  # compaction and transactions leave gaps
        one.begin(offset)
    one.finish(6)
    assert one.to_commit() is None
    one.finish(5)
    assert one.to_commit() == 7
    one.committed(7)
    assert one.to_commit() is None
    one.finish(9)
    assert (one.to_commit(), len(one)) == (10, 0)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.randoms())
def test_in_any_order(gaps: list[int], dice: object) -> None:
    """After every step the offset to commit has every smaller offset finished, and it is the largest such."""
    offsets = [at + sum(gaps[: at + 1]) for at in range(len(gaps))]
    one, done = PartitionOffsets(), set[int]()
    for offset in offsets:
        one.begin(offset)
    for offset in dice.sample(offsets, len(offsets)):  # type: ignore[attr-defined]
        one.finish(offset)
        done.add(offset)
        without_gap = 0
        while without_gap < len(offsets) and offsets[without_gap] in done:
            without_gap += 1
        assert one.to_commit() == (offsets[without_gap - 1] + 1 if without_gap else None)
        assert len(one) == len(offsets) - without_gap
