"""Rows of one flight → which of them are asked of the model together. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from foreseen.proxy.cache.flight import Waiter

GROUP_SECONDS = 0.02
"""What a request to a model is worth: its way there costs a fiftieth of that."""


def split_request(waiters: Sequence[Waiter], row_seconds: float) -> list[Sequence[int]]:
    """Which rows are asked of the model together: all of them, where it is quick; else those of so many askers as keep
    it busy for GROUP_SECONDS, of neighbours in size. What one asks for stays together.

    A request is answered when its last row is, and the model's batches are neighbours in length: the rows of one large
    request of many callers are spread over several batches, and everybody waits for the last.
    """
    if row_seconds * len(waiters) <= GROUP_SECONDS or waiters[0].client == waiters[-1].client:
        return [range(len(waiters))]
    askers = defaultdict[int, list[int]](list)
    for at, waiter in enumerate(waiters):
        askers[waiter.client].append(at)

    def size(places: Sequence[int]) -> int:
        return max(sum(tensor.size for tensor in waiters[at].row.tensors) for at in places)

    groups: list[list[int]] = [[]]
    for places in sorted(askers.values(), key=size):
        if groups[-1] and (len(groups[-1]) + len(places)) * row_seconds > GROUP_SECONDS:
            groups.append([])
        groups[-1] += places
    return list(groups)
