"""The entry format: prediction ↔ the bytes stored in Redis.

    entry   = "FSE1"                       magic and format version
              key (32)                     the full identity, compared on every hit
              made_at f64, expires_at f64  Unix seconds
              seconds f32                  compute time that the row cost
              u16 length, layout           the outputs' names, datatypes and shapes
              data                         the outputs' bytes, in the layout's order
              tag (16)                     keyed BLAKE3 over all before it, cut to 16 bytes

    layout  = u8 count, count × (u8 length, name, u8 datatype code, u8 rank, rank × u32 dimension, u32 data length)

A last output with an empty name holds what an upstream's reply had beside its tensors (`protocol/members.py`).
All integers and floats are little-endian. The tag's key never reaches Redis, so a process that can write there still
cannot forge an answer. The key in the entry turns the reply to another command (a desynchronised connection) into a
counted miss instead of an answer. Values are untrusted: every length is checked before it is used, nothing is pickled.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from hmac import compare_digest

import numpy as np
from blake3 import blake3
from msgspec import Struct

from foreseen.errors import EntryError
from foreseen.keys.key import keyed_digests
from foreseen.protocol.datatypes import BY_CODE, DATATYPES
from foreseen.types import Array, Key, Output, Prediction

MAGIC = b"FSE1"
TAG_BYTES = 16
_HEAD = struct.Struct("<4s32sddfH")
_HEAD_DTYPE = np.dtype(
    [("magic", "S4"), ("key", "V32"), ("made_at", "<f8"), ("expires_at", "<f8"), ("seconds", "<f4"), ("length", "<u2")]
)
"""The same as a packed record, for many at a time."""
_MAX_LAYOUTS = 1024

MAX_FAR_VALUE_BYTES = 4 * 2**20
"""A larger entry is answered but not stored in the far tier."""

FAR_OVERHEAD_BYTES = 200
"""Bytes that Redis spends on an entry beside its value: key, dictionary slot, expiry, allocator rounding. Measured."""

NEAR_OVERHEAD_BYTES = 520
"""Bytes that a near entry costs beside its data: key 65, prediction 88, tuples and bytes heads 100, slot 72, its share
of the two ordered dicts about 110 and of the ghost about 85. Measured with tracemalloc by
`tests/proxy/cache/test_near.py`."""

Layout = tuple[tuple[Output, ...], tuple[int, ...]]
"""Outputs and the lengths of their data."""


class Table(Struct, frozen=True):
    """Predictions of one layout by the column: `data[i]` is the bytes of `outputs[i]` as `uint8 [rows, length]`."""

    outputs: tuple[Output, ...]
    data: tuple[Array, ...]
    made_at: Array
    expires_at: Array
    seconds: Array


class EntryCodec:
    """Packs and unpacks entries under one tag key. Layouts repeat from row to row, so read ones are kept, bounded."""

    def __init__(self, tag_key: bytes) -> None:
        self._tag_key = tag_key
        self._layouts: dict[bytes, Layout] = {}
        self._last: tuple[tuple[Output, ...] | None, bool, list[int], bytes] = (None, False, [], b"")

    def pack(self, key: Key, prediction: Prediction) -> bytes:
        """The entry of a prediction under its key."""
        return self.pack_all([(key, prediction)])[0]

    def pack_all(self, pairs: Iterable[tuple[Key, Prediction]]) -> list[bytes]:
        """The same of many, by one hasher that is reset."""
        hasher, entries = blake3(key=self._tag_key), []
        update, digest, reset = hasher.update, hasher.digest, hasher.reset
        for key, p in pairs:
            layout = self._layout_of(p)
            head = _HEAD.pack(MAGIC, key, p.made_at, p.expires_at, min(p.seconds, 3.0e38), len(layout))
            body = b"".join((head, layout, *p.data))
            update(body)
            entries.append(body + digest()[:TAG_BYTES])
            reset()
        return entries

    def size(self, prediction: Prediction) -> int:
        """How long the packed entry will be."""
        return _HEAD.size + len(self._layout_of(prediction)) + sum(map(len, prediction.data)) + TAG_BYTES

    def _layout_of(self, prediction: Prediction) -> bytes:
        """The rows of a batch have one layout, mostly: writing it anew costs more than all the rest of an entry."""
        known, fixed, lengths, layout = self._last
        outputs = prediction.outputs
        if outputs is known and fixed:
            return layout
        if outputs == known and lengths == [*map(len, prediction.data)]:
            return layout
        layout = _layout_bytes(prediction)
        fixed = all(DATATYPES[output.datatype].size for output in outputs)
        self._last = outputs, fixed, [*map(len, prediction.data)], layout
        return layout

    def pack_table(self, keys: Sequence[Key], table: Table) -> Array:
        """Many predictions' entries of one layout, `uint8 [rows, length]`: `pack` of each, without its objects."""
        count = len(keys)
        data = b"".join(raw[:1].tobytes() for raw in table.data)
        lengths = [raw.shape[1] for raw in table.data]
        first = [data[sum(lengths[:i]) : sum(lengths[: i + 1])] for i in range(len(lengths))]
        layout = _layout_bytes(Prediction(table.outputs, tuple(first), "", 0.0, 0.0, 0.0))
        heads = np.zeros(count, _HEAD_DTYPE)
        heads["magic"], heads["length"] = MAGIC, len(layout)
        heads["key"] = np.frombuffer(b"".join(keys), "V32")
        heads["made_at"], heads["expires_at"] = table.made_at, table.expires_at
        heads["seconds"] = np.minimum(table.seconds, 3.0e38)
        shared = np.broadcast_to(np.frombuffer(layout, np.uint8), (count, len(layout)))
        body = np.concatenate((heads.view(np.uint8).reshape(count, -1), shared, *table.data), axis=1)
        tags = b"".join(digest[:TAG_BYTES] for digest in keyed_digests(self._tag_key, body))
        return np.concatenate((body, np.frombuffer(tags, np.uint8).reshape(count, TAG_BYTES)), axis=1)

    def unpack(self, key: Key, digest: str, value: bytes) -> Prediction:
        """The prediction of an entry that was asked for by `key` in a space of model `digest`.

        Raises EntryError("length" | "format" | "identity" | "tag") for anything that is not exactly this entry.
        """
        if len(value) < _HEAD.size + TAG_BYTES:
            raise EntryError("length")
        magic, identity, made_at, expires_at, seconds, layout_length = _HEAD.unpack_from(value)
        if magic != MAGIC:
            raise EntryError("format")
        if not compare_digest(identity, key):
            raise EntryError("identity")
        if not compare_digest(self._tag(value[:-TAG_BYTES]), value[-TAG_BYTES:]):
            raise EntryError("tag")
        start = _HEAD.size + layout_length
        outputs, lengths = self._layout(value[_HEAD.size : start])
        if start + sum(lengths) + TAG_BYTES != len(value):
            raise EntryError("length")
        data = []
        for length in lengths:
            data.append(value[start : start + length])
            start += length
        return Prediction(outputs, tuple(data), digest, made_at, expires_at, seconds)

    def _tag(self, body: bytes) -> bytes:
        return blake3(body, key=self._tag_key).digest()[:TAG_BYTES]

    def _layout(self, raw: bytes) -> Layout:
        known = self._layouts.get(raw)
        if known is None:
            known = _read_layout(raw)
            if len(self._layouts) < _MAX_LAYOUTS:
                self._layouts[raw] = known
        return known


def _layout_bytes(prediction: Prediction) -> bytes:
    parts = [bytes((len(prediction.outputs),))]
    for output, data in zip(prediction.outputs, prediction.data, strict=True):
        name = output.name.encode()
        code = DATATYPES[output.datatype].code
        dims = b"".join(dim.to_bytes(4, "little") for dim in output.shape)
        parts += (bytes((len(name),)), name, bytes((code, len(output.shape))), dims, len(data).to_bytes(4, "little"))
    return b"".join(parts)


def _read_layout(raw: bytes) -> Layout:
    """Bounds-checked although the tag has proved the writer: a writer's bug must not become a reader's crash."""
    try:
        return _walk_layout(raw)
    except (IndexError, KeyError, UnicodeDecodeError):
        raise EntryError("format") from None


def _walk_layout(raw: bytes) -> Layout:
    at, outputs, lengths = 1, [], []
    for _ in range(raw[0]):
        name = raw[at + 1 : at + 1 + raw[at]].decode()
        at += 1 + raw[at]
        datatype, rank = BY_CODE[raw[at]], raw[at + 1]
        dims = [raw[at + 2 + 4 * i : at + 6 + 4 * i] for i in range(rank)]
        shape = tuple(int.from_bytes(dim, "little") for dim in dims)
        at += 2 + 4 * rank
        length = int.from_bytes(raw[at : at + 4], "little")
        at += 4
        if datatype.size and length != math.prod(shape) * datatype.size:
            raise EntryError("format")
        outputs.append(Output(name, datatype.name, shape))
        lengths.append(length)
    if at != len(raw):
        raise EntryError("format")
    return tuple(outputs), tuple(lengths)
