"""The near (in-process) tier: an S3-FIFO cache of predictions by key, bounded in bytes.

It is synchronous: between a look-up here and joining a flight there is no `await`, so there is no race.

Beside a prediction near keeps its outputs as rendered text (`text`). That counts as bytes of near, up to a share of it.

S3-FIFO (Yang et al., SOSP'23): a small queue that most one-hit wonders never leave, a main queue, and a ghost of what
was evicted from the small one. A look costs a dict look-up and a counter; nothing moves on a hit.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from msgspec import Struct

from foreseen.keys.entry import NEAR_OVERHEAD_BYTES
from foreseen.types import Form, Key, Prediction

SMALL_SHARE = 0.1
MAX_FREQUENCY = 3
PROMOTE_AT = 1
"""Hits in the small queue after which an entry moves to main. 1, as in most implementations; the paper has more than 1.
On the product-recommendation trace of the benchmarks 1 is better by a few points at small sizes."""
TEXTS_SHARE = 4
"""Texts take at most this fraction (one n-th) of near."""
TEXT_OVERHEAD_BYTES = 150


class NearEntry(Struct, gc=False):
    """Nothing in it can be part of a cycle, so a full collection does not walk a million of them (250 ms)."""

    prediction: Prediction
    size: int
    frequency: int = 0
    texts: tuple[tuple[Form, bytes], ...] = ()
    """Outputs as rendered in replies."""


class Near:
    """Predictions by key. `bytes` is their memory, `evictions` counts entries evicted to make room."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.bytes = 0
        self.evictions = 0
        self._small: OrderedDict[Key, NearEntry] = OrderedDict()
        self._main: OrderedDict[Key, NearEntry] = OrderedDict()
        self._ghost: OrderedDict[int, None] = OrderedDict()
        self._small_bytes = 0
        self._text_bytes = 0

    def get(self, key: Key) -> Prediction | None:
        """The prediction of a key, fresh or not."""
        slot = self._small.get(key) or self._main.get(key)
        if slot is None:
            return None
        if slot.frequency < MAX_FREQUENCY:
            slot.frequency += 1
        return slot.prediction

    def peek(self, key: Key) -> Prediction | None:
        """The same without counting as a use."""
        slot = self._small.get(key) or self._main.get(key)
        return None if slot is None else slot.prediction

    def uses(self, key: Key) -> int | None:
        """How often a key was used lately, up to `MAX_FREQUENCY`; None where it is not there. Counts as no use."""
        slot = self._small.get(key) or self._main.get(key)
        return None if slot is None else slot.frequency

    def entries(self, keys: Iterable[Key]) -> list[NearEntry] | None:
        """The entries of these keys, fresh or not, without counting as a use; None where one is missing."""
        small, main = self._small.get, self._main.get
        entries = []
        for key in keys:
            entry = small(key) or main(key)
            if entry is None:
                return None
            entries.append(entry)
        return entries

    def used(self, entries: Iterable[NearEntry]) -> None:
        """Count a use of each."""
        for entry in entries:
            if entry.frequency < MAX_FREQUENCY:
                entry.frequency += 1

    def texts(
        self, keys: Sequence[Key], entries: Sequence[NearEntry], form: Form, make: Callable[[Prediction, Form], bytes]
    ) -> list[bytes]:
        """An output of near's entries as rendered in replies: made at its first use, and kept if there is room. Raises
        what `make` raises."""
        found = []
        for at, entry in enumerate(entries):
            for kept, text in entry.texts:
                if kept == form:
                    found.append(text)
                    break
            else:
                found.append(self._written(keys[at], entry, form, make))
        return found

    def _written(self, key: Key, entry: NearEntry, form: Form, make: Callable[[Prediction, Form], bytes]) -> bytes:
        text = make(entry.prediction, form)
        size = TEXT_OVERHEAD_BYTES + len(text)
        text_bytes = self._text_bytes + size
        if text_bytes * TEXTS_SHARE > self.capacity_bytes:
            return text
        if self._small.get(key) is entry:
            self._small_bytes += size
        elif self._main.get(key) is not entry:
            return text
        entry.texts += ((form, text),)
        entry.size += size
        self.bytes += size
        self._text_bytes = text_bytes
        while self.bytes > self.capacity_bytes:
            self._evict()
        return text

    def put(self, key: Key, prediction: Prediction) -> bool:
        """Keep a prediction; False if it is larger than all of near. An existing key is replaced."""
        size = size_of(prediction)
        if size > self.capacity_bytes:
            return False
        frequency = self._drop(key)
        slot = NearEntry(prediction, size)
        if frequency is not None:
            slot.frequency = frequency
            self._main[key] = slot
        elif self._ghost.pop(hash(key), self) is None:
            self._main[key] = slot
        else:
            self._small[key] = slot
            self._small_bytes += size
        self.bytes += size
        while self.bytes > self.capacity_bytes:
            self._evict()
        return key in self._small or key in self._main

    def forget(self, key: Key) -> bool:
        """Drop one key; whether it was there."""
        return self._drop(key) is not None

    def clear(self) -> None:
        self._small.clear()
        self._main.clear()
        self._ghost.clear()
        self.bytes = self._small_bytes = self._text_bytes = 0

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    def __repr__(self) -> str:
        return f"<Near {len(self)} entries, {self.bytes}/{self.capacity_bytes} bytes, {self.evictions} evictions>"

    def _drop(self, key: Key) -> int | None:
        """Remove a key. Returns its frequency, None if it was not stored."""
        slot = self._small.pop(key, None)
        if slot is not None:
            self._small_bytes -= slot.size
        else:
            slot = self._main.pop(key, None)
            if slot is None:
                return None
        self.bytes -= slot.size
        self._text_bytes -= _text_bytes(slot)
        return slot.frequency

    def _evict(self) -> None:
        """Take one step towards fitting: evict one entry, or move one on."""
        if self._small and (self._small_bytes > self.capacity_bytes * SMALL_SHARE or not self._main):
            key, slot = self._small.popitem(last=False)
            self._small_bytes -= slot.size
            if slot.frequency >= PROMOTE_AT:
                slot.frequency = 0
                self._main[key] = slot
                return
            self._remember(key)
        else:
            key, slot = self._main.popitem(last=False)
            if slot.frequency:
                slot.frequency -= 1
                self._main[key] = slot
                return
        self.bytes -= slot.size
        self._text_bytes -= _text_bytes(slot)
        self.evictions += 1

    def _remember(self, key: Key) -> None:
        """A ghost holds hashes, as many as there are entries: a wrong one costs a place in main, never an answer."""
        self._ghost[hash(key)] = None
        while len(self._ghost) > len(self) + 1:
            self._ghost.popitem(last=False)


def _text_bytes(entry: NearEntry) -> int:
    return sum(TEXT_OVERHEAD_BYTES + len(text) for _, text in entry.texts) if entry.texts else 0


def size_of(prediction: Prediction) -> int:
    """The bytes that a kept prediction takes, near enough: data and overhead."""
    return NEAR_OVERHEAD_BYTES + sum(map(sys.getsizeof, prediction.data))
