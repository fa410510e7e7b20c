"""Texts that came before → their token ids; and texts in batches that a tokenizer takes at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from foreseen.types import Array

ENCODED_BYTES = 256 * 1024
"""Text that is tokenized at a time."""


class TextMemo:
    """Texts of one preparation → their ids, bounded in bytes; the oldest go. The text itself is the proof: it is the
    dictionary's key. Asked by the event loop and by threads."""

    CAPACITY_BYTES = 16 * 2**20
    MAX_TEXT_BYTES = 4096
    OVERHEAD_BYTES = 350

    def __init__(self) -> None:
        self.bytes = 0
        self._ids: dict[tuple[str, bytes], Array] = {}
        self._lock = threading.Lock()

    def get(self, text: tuple[str, bytes]) -> Array | None:
        return self._ids.get(text)

    def put(self, text: tuple[str, bytes], ids: Array) -> None:
        if len(text[1]) > self.MAX_TEXT_BYTES:
            return
        ids.flags.writeable = False  # many requests share it
        with self._lock:
            if text in self._ids:
                return
            self._ids[text] = ids
            self.bytes += self._size(text, ids)
            while self.bytes > self.CAPACITY_BYTES:
                oldest = next(iter(self._ids))
                self.bytes -= self._size(oldest, self._ids.pop(oldest))

    def _size(self, text: tuple[str, bytes], ids: Array) -> int:
        return self.OVERHEAD_BYTES + len(text[1]) + ids.nbytes


def batches(places: Sequence[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Places of texts, so many at a time that their tokens stay small: an encoding takes 50 times its text."""
    batch: list[int] = []
    room = ENCODED_BYTES
    for place, size in zip(places, sizes, strict=True):
        if batch and size + TextMemo.OVERHEAD_BYTES > room:
            yield batch
            batch, room = [], ENCODED_BYTES
        batch.append(place)
        room -= size + TextMemo.OVERHEAD_BYTES
    yield batch
