"""Splits the rows of one flight into several model requests, to avoid head-of-line blocking. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from foreseen.proxy.cache.flight import Waiter

GROUP_SECONDS = 0.02
"""Compute time for which a model request of its own pays: its overhead is a fiftieth of that."""


def split_request(waiters: Sequence[Waiter], row_seconds: float) -> list[Sequence[int]]:
    """The rows of each model request, by position. A fast model gets all rows in one. Otherwise clients of similar row
    size are grouped, so that a group keeps the model busy for GROUP_SECONDS; the rows of one client stay together.

    A model request is answered when its last row is. The model sorts rows into batches by length, so the rows of many
    clients in one large request would spread over several batches, and every client would wait for the last of them.
    """
    if row_seconds * len(waiters) <= GROUP_SECONDS or waiters[0].client == waiters[-1].client:
        return [range(len(waiters))]
    by_client = defaultdict[int, list[int]](list)
    for at, waiter in enumerate(waiters):
        by_client[waiter.client].append(at)

    def size(places: Sequence[int]) -> int:
        return max(sum(tensor.size for tensor in waiters[at].row.tensors) for at in places)

    groups: list[list[int]] = [[]]
    for places in sorted(by_client.values(), key=size):
        if groups[-1] and (len(groups[-1]) + len(places)) * row_seconds > GROUP_SECONDS:
            groups.append([])
        groups[-1] += places
    return list(groups)
