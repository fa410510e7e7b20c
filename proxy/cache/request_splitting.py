"""Splits the rows of one flight into several model requests, to avoid head-of-line blocking. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from foreseen.proxy.cache.flight import Waiter

GROUP_SECONDS = 0.02
"""Compute time for which a model request of its own pays: its overhead is a fiftieth of that."""
TURN_SECONDS = 0.1
"""Compute time of one turn at the model, for which another caller's rows may have to wait."""
FEWEST_TURN_ROWS, MOST_TURN_ROWS = 32, 256


def split_request(waiters: Sequence[Waiter], row_seconds: float, *, crowded: bool = False) -> list[Sequence[int]]:
    """The rows of each model request, by position. A fast model gets all rows in one, unless it is `crowded` and they
    are of several callers. Otherwise requests of one caller and of similar row size are grouped, so that a group keeps
    the model busy for GROUP_SECONDS; the rows of one request stay together.

    A model request is answered when its last row is. The model sorts rows into batches by length, so the rows of many
    clients in one large request would spread over several batches, and every client would wait for the last of them.
    """
    if waiters[0].client == waiters[-1].client:
        return [range(len(waiters))]
    if row_seconds * len(waiters) <= GROUP_SECONDS and not (crowded and len(_callers(waiters)) > 1):
        return [range(len(waiters))]
    by_client = defaultdict[int, list[int]](list)
    for at, waiter in enumerate(waiters):
        by_client[waiter.client].append(at)

    def order(places: Sequence[int]) -> tuple[str, int]:
        return waiters[places[0]].caller, max(sum(tensor.size for tensor in waiters[at].row.tensors) for at in places)

    groups: list[list[int]] = [[]]
    for places in sorted(by_client.values(), key=order):
        group = groups[-1]
        apart = group and waiters[group[-1]].caller != waiters[places[0]].caller
        if group and (apart or (len(group) + len(places)) * row_seconds > GROUP_SECONDS):
            groups.append([])
        groups[-1] += places
    return list(groups)


def one_caller(waiters: Sequence[Waiter]) -> str:
    """The caller of these rows; empty if there are several callers."""
    callers = _callers(waiters)
    return callers.pop() if len(callers) == 1 else ""


def turns(rows: int, row_seconds: float) -> list[range]:
    """The rows of each turn at the model, by position: as many as take TURN_SECONDS, within bounds."""
    step = MOST_TURN_ROWS
    if row_seconds * MOST_TURN_ROWS > TURN_SECONDS:
        step = max(FEWEST_TURN_ROWS, int(TURN_SECONDS / row_seconds))
    return [range(at, min(at + step, rows)) for at in range(0, rows, step)]


def _callers(waiters: Sequence[Waiter]) -> set[str]:
    return {waiter.caller for waiter in waiters}
