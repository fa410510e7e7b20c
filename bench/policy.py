"""Near's policy beside LRU and the offline optimum, on a trace of keys; and what a second worker costs in hits.

The trace is that of a product recommendation service where `../shared/data` is there (a sample by key, which keeps its
repeats), else Zipf, made and seeded. All entries are of one size, so the optimum is Belady's: evict what is needed
again last. Near itself is asked, not a model of it.
"""

from __future__ import annotations

import lzma
import random
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np
import xxhash

from bench.antipattern import SHARED
from foreseen.proxy.cache.near import Near, size_of
from foreseen.types import Key, Output, Prediction

SIZES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Entries that fit, as shares of the distinct keys."""
_ENTRY = Prediction((Output("y", "FP32", (16,)),), (bytes(64),), "d", 0.0, 0.0, 0.0)


class Ratios(NamedTuple):
    """Hit ratios with so many entries. `two` is near in each of two workers, which requests reach at random."""

    share: float
    entries: int
    near: float
    lru: float
    optimum: float
    two: float


def key_trace(requests: int) -> tuple[list[int], str]:
    """Keys in order of asking, as numbers from 0, and where they come from."""
    path = SHARED / "scarab_recs_keys.csv.xz"
    if path.exists():
        with lzma.open(path, "rt") as file:
            whole = [line.strip() for line in file][1:]
        parts = -(-len(whole) // requests)
        keys = [key for key in whole if xxhash.xxh3_64_intdigest(key.encode()) % parts == 0]
        origin = "scarab recommendation keys"
    else:
        keys = [str(key) for key in np.random.default_rng(0).zipf(1.2, requests)]
        origin = "made: Zipf 1.2"
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return [numbers[key] for key in keys], origin


def compare(keys: Sequence[int], sizes: Iterable[float] = SIZES) -> list[Ratios]:
    """The ratios at each size."""
    distinct = max(keys) + 1
    names = [Key(number.to_bytes(32, "big")) for number in range(distinct)]
    following = _next_uses(keys)
    found = []
    for share in sizes:
        entries = max(2, round(share * distinct))
        found.append(
            Ratios(
                share,
                entries,
                _near(keys, names, entries, 1),
                _lru(keys, entries),
                _optimum(keys, following, entries),
                _near(keys, names, entries, 2),
            )
        )
    return found


def _near(keys: Sequence[int], names: Sequence[Key], entries: int, workers: int) -> float:
    nears = [Near(entries * size_of(_ENTRY)) for _ in range(workers)]
    dice = random.Random(0)
    hits = 0
    for key in keys:
        near = nears[0] if workers == 1 else nears[dice.randrange(workers)]
        if near.get(names[key]) is not None:
            hits += 1
        else:
            near.put(names[key], _ENTRY)
    return hits / len(keys)


def _lru(keys: Sequence[int], entries: int) -> float:
    kept: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for key in keys:
        if key in kept:
            hits += 1
            kept.move_to_end(key)
        else:
            kept[key] = None
            if len(kept) > entries:
                kept.popitem(last=False)
    return hits / len(keys)


def _next_uses(keys: Sequence[int]) -> list[int]:
    """When the key of each place is asked for again; the length of the trace for never."""
    following, seen = [len(keys)] * len(keys), dict[int, int]()
    for at in range(len(keys) - 1, -1, -1):
        following[at] = seen.get(keys[at], len(keys))
        seen[keys[at]] = at
    return following


def _optimum(keys: Sequence[int], following: Sequence[int], entries: int) -> float:
    """Belady, who may also refuse to keep what is needed later than all that is there."""
    kept: dict[int, int] = {}
    latest: list[tuple[int, int]] = []
    hits = 0
    for at, key in enumerate(keys):
        hits += key in kept
        kept[key] = following[at]
        heappush(latest, (-following[at], key))
        while len(kept) > entries:
            when, victim = heappop(latest)
            if kept.get(victim) == -when:
                del kept[victim]
    return hits / len(keys)
