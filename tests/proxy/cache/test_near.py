"""Near: bounded in bytes, never stale, and a good judge of what to keep."""

from __future__ import annotations

import collections
import gc
import random
import tracemalloc

import numpy as np
import pytest

from foreseen.gc_freeze import settle
from foreseen.keys.entry import NEAR_OVERHEAD_BYTES
from foreseen.proxy.cache.near import TEXTS_SHARE, Near, size_of
from foreseen.types import Form, Key, Output, Prediction
from tests.doubles import numbered, predicted, value_of

NOW = 1_000_000.0


def of(value: int, ttl: float = 100.0) -> Prediction:
    return predicted(value, made_at=NOW, ttl=ttl)


def test_what_is_put_is_there_fresh_or_not() -> None:
    """Near keeps; whoever asks decides what an entry of that age is good for."""
    near, (key,) = Near(10_000), numbered(1)
    assert near.get(key) is None
    assert near.put(key, of(7))
    found = near.get(key)
    assert found is not None
    assert value_of(found) == 7


def test_a_value_larger_than_near_is_refused_before_anything_is_evicted() -> None:
    """One huge answer does not empty the cache."""
    near, keys = Near(5000), numbered(3)
    near.put(keys[0], of(1))
    huge = Prediction((Output("y", "INT64", (1000,)),), (bytes(8000),), "d", NOW, NOW + 9, 0.0)
    assert not near.put(keys[1], huge)
    assert near.get(keys[0]) is not None
    assert near.evictions == 0


def test_replacing_a_key_counts_its_bytes_once() -> None:
    """The newer value is the one that is found."""
    near, (key,) = Near(10_000), numbered(1)
    near.put(key, of(1))
    near.put(key, of(2))
    found = near.get(key)
    assert found is not None
    assert (value_of(found), len(near), near.bytes) == (2, 1, size_of(of(2)))


def test_forget_and_clear() -> None:
    """A forgotten key is gone, bytes and all."""
    near, keys = Near(10_000), numbered(3)
    for key in keys:
        near.put(key, of(1))
    assert near.forget(keys[0])
    assert not near.forget(keys[0])
    assert (near.get(keys[0]), len(near)) == (None, 2)
    near.clear()
    assert (len(near), near.bytes) == (0, 0)


def test_bytes_stay_within_the_bound_under_any_traffic() -> None:
    """Random puts, looks and forgets of random sizes: the count is exact and never above the bound."""
    rng, keys = random.Random(1), numbered(300)
    near = Near(40_000)
    alive: dict[Key, Prediction] = {}
    for _ in range(20_000):
        key = rng.choice(keys)
        match rng.randrange(4):
            case 0 | 1:
                value = Prediction((), (bytes(rng.randrange(3000)),), "d", NOW, NOW + 50, 0.0)
                near.put(key, value)
                alive[key] = value
            case 2:
                found = near.get(key)
                assert found is None or found is alive[key]
            case _:
                near.forget(key)
        slots = [*near._small.values(), *near._main.values()]
        assert near.bytes == sum(slot.size for slot in slots) <= 40_000
        assert near._small_bytes == sum(slot.size for slot in near._small.values())
        assert len(near._ghost) <= 40_000 // NEAR_OVERHEAD_BYTES + 1
    assert near.evictions > 100


def test_one_hit_wonders_do_not_push_out_what_is_asked_for_again() -> None:
    """A scan of new keys ten times near's size costs a popular set little; under LRU it would lose all of it."""
    near, keys = Near(100 * size_of(of(1))), numbered(1100)
    popular, scan = keys[:50], keys[100:]
    for _ in range(3):
        for key in popular:
            if near.get(key) is None:
                near.put(key, of(1))
    for key in scan:
        near.put(key, of(2))
    assert sum(near.get(key) is not None for key in popular) >= 45


def test_better_than_lru_on_popularity_with_a_long_tail() -> None:
    """Zipf traffic (s = 0.9) over 20,000 keys, 5 % of them kept: S3-FIFO hits more often than LRU of the same size."""
    draws = np.random.default_rng(5).zipf(1.2, 60_000) % 20_000
    keys = numbered(20_001)
    near, lru = Near(1000 * size_of(of(1))), collections.OrderedDict[int, None]()
    hits = lru_hits = 0
    for draw in draws.tolist():
        if near.get(keys[draw]) is None:
            near.put(keys[draw], of(1))
        else:
            hits += 1
        if draw in lru:
            lru.move_to_end(draw)
            lru_hits += 1
        else:
            lru[draw] = None
            if len(lru) > 1000:
                lru.popitem(last=False)
    assert hits > lru_hits > 10_000


@pytest.mark.parametrize("length", [8, 1536])
def test_the_overhead_is_what_memory_says(length: int) -> None:
    """The bytes that near counts are at least what tracemalloc sees, and not more than a third above it."""
    count = 20_000
    keys = numbered(count)
    outputs = (Output("embedding", "FP32", (length // 4,)),)
    near = Near(10**9)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for key in keys:
        # made as `EntryCodec.unpack` makes them: the key is the entry's own copy
        own = Key(bytes(bytearray(key)))
        near.put(own, Prediction(outputs, (bytes(length),), "d", NOW + 0.5, NOW + 99.5, 0.001))
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    ghost = 130 * count  # its share once near is full
    assert used <= near.bytes
    assert near.bytes <= (used + ghost) * 1.34
    assert NEAR_OVERHEAD_BYTES + length <= 2200


def test_a_full_collection_walks_no_entry() -> None:
    """The garbage collector does not know the slots of near, nor what was there when the process was ready."""
    near = Near(10**6)
    key = Key(bytes(32))
    near.put(key, predicted(1))
    assert not gc.is_tracked(near._small[key])
    before = gc.get_freeze_count()
    try:
        settle()
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()


FORM, OTHER_FORM = Form(0), Form(1)


def written(prediction: Prediction, form: Form) -> bytes:
    return b"%d" % value_of(prediction) * (40 if form == FORM else 80)


def test_the_text_of_an_entry_is_made_once_and_goes_with_it() -> None:
    """Two forms of one entry are kept beside each other; a new prediction has no text of the old one."""
    near, (key,), made = Near(100_000), numbered(1), []

    def make(prediction: Prediction, form: Form) -> bytes:
        made.append(form)
        return written(prediction, form)

    for value in (3, 4):
        near.put(key, of(value))
        (entry,) = near.entries([key]) or ()
        for form in (FORM, OTHER_FORM, FORM, OTHER_FORM):
            assert near.texts([key], [entry], form, make) == [written(entry.prediction, form)]
    assert made == [FORM, OTHER_FORM] * 2
    near.forget(key)
    assert (near.bytes, near._text_bytes, near._small_bytes) == (0, 0, 0)


def test_entries_are_all_there_or_none_is_used() -> None:
    """A look leaves no trace; a use is counted by itself."""
    near, keys = Near(100_000), numbered(3)
    for key in keys[:2]:
        near.put(key, of(1))
    assert near.entries(keys) is None
    entries = near.entries(keys[:2])
    assert entries is not None
    assert [entry.prediction for entry in entries] == [near.peek(key) for key in keys[:2]]
    assert [slot.frequency for slot in near._small.values()] == [0, 0]
    near.used(entries)
    assert [slot.frequency for slot in near._small.values()] == [1, 1]


def test_text_is_counted_and_takes_a_share_at_most() -> None:
    """Under any traffic: bytes are those of entries and texts, within the bound; what is left of the text's share is
    made each time and kept nowhere."""
    dice, near, keys = random.Random(3), Near(30_000), numbered(200)
    for _ in range(4000):
        key = dice.choice(keys)
        match dice.randrange(8):
            case 0 | 1 | 2:
                near.put(key, of(dice.randrange(100)))
            case 3:
                near.forget(key)
            case _:
                entries = near.entries([key])
                if entries is not None:
                    form = dice.choice([FORM, OTHER_FORM])
                    assert near.texts([key], entries, form, written) == [written(entries[0].prediction, form)]
        slots = [*near._small.values(), *near._main.values()]
        assert near.bytes == sum(slot.size for slot in slots) <= 30_000
        assert near._small_bytes == sum(slot.size for slot in near._small.values())
        texts = sum(slot.size - size_of(slot.prediction) for slot in slots)
        assert near._text_bytes == texts <= 30_000 / TEXTS_SHARE
    assert near._text_bytes > 1000
