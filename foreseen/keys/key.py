"""Space, row → key: the identity of a prediction.

The canonical frame of a row, length-prefixed throughout, all integers little-endian:

    frame      = "fsn1" part*                     one byte string, hashed once
    part       = parameters, then every keyed input of the model signature, sorted by name
    parameters = u32 length, canonical JSON       request parameters that change the answer, sorted; length 0: none;
                                                  in front of an upstream an array, where a request has other members
                                                  or parameters of its tensors, too (`protocol/members.py`)
    input      = u16 length, name (UTF-8)
                 u8 datatype code                 foreseen.datatypes
                 u8 rank, rank × u64 dimension    the row's own shape, without the batch axis
                 u64 length, data                 row-major; BYTES elements behind a u32 length each

    key        = BLAKE3(keyed with space key, frame), 32 bytes
    space key  = BLAKE3 derive_key("foreseen v1 space", root ‖ fields)
    fields     = u32 length + bytes, each of: scope, model, digest; then u64 generation

The model digest is part of the space: weights, precision, preparation and runtime. Left out on purpose: request
id, headers, JSON spelling and order, encoding, wanted outputs, classification, priority, timeout. Derived inputs (the
mask of unpadded ids is all ones) add nothing. A 256-bit keyed cryptographic digest is the identity because XXH3
collisions are constructed in milliseconds, also against a secret seed.

Changing anything here empties every cache; `tests/golden/` holds the bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hmac import compare_digest
from typing import NewType

import numpy as np
from blake3 import blake3

from foreseen.modelspec.manifest import ModelSignature
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.tensors import raw_of
from foreseen.types import Array, Columns, Key, Row, Space

SpaceKey = NewType("SpaceKey", bytes)
MAGIC = b"fsn1"
_SPACE_CONTEXT = "foreseen v1 space"
_TAG_CONTEXT = "foreseen v1 entry tag"
_PURGE_CONTEXT = "foreseen v1 purge mark"
_PASSED_CONTEXT = "foreseen v1 passed credential"
_CHECK_CONTEXT = "foreseen v1 secret check"
_REPLY_CONTEXT = "foreseen v1 reply id"
MIN_SECRET_BYTES = 32


def space_key(root: bytes, space: Space) -> SpaceKey:
    """The key of a space, 32 bytes. Without the root secret its keys can be neither made nor guessed."""
    fields = b"".join(_prefixed(text.encode()) for text in (space.scope, space.model, space.digest))
    material = _prefixed(root) + fields + space.generation.to_bytes(8, "little")
    return SpaceKey(blake3(material, derive_key_context=_SPACE_CONTEXT).digest())


def passed_key(root: bytes) -> bytes:
    """The key under which callers' credentials that are passed on become scopes, 32 bytes."""
    return blake3(root, derive_key_context=_PASSED_CONTEXT).digest()


def tag_key(root: bytes) -> bytes:
    """The key of entries' integrity tags, 32 bytes."""
    return blake3(root, derive_key_context=_TAG_CONTEXT).digest()


def sealed_generation(root: bytes, generation: int) -> bytes:
    """A purge's generation, authenticated with the root secret: 20 digits ‖ MAC 16."""
    digits = b"%020d" % generation
    return digits + blake3(digits, key=blake3(root, derive_key_context=_PURGE_CONTEXT).digest()).digest()[:16]


def opened_generation(root: bytes, value: bytes) -> int | None:
    """The generation that was sealed so; None for any other bytes."""
    digits = value[:20]
    if not digits.isdigit() or not compare_digest(value, sealed_generation(root, int(digits))):
        return None
    return int(digits)


def reply_id_key(root: bytes) -> bytes:
    """What ids of replies are made with, 32 bytes."""
    return blake3(root, derive_key_context=_REPLY_CONTEXT).digest()


def reply_id(key: bytes, fields: Sequence[bytes]) -> str:
    """A reply's id, of what was asked: 32 hex digits. What was asked cannot be found by it without the secret."""
    hasher = blake3(key=key)
    for field in fields:
        hasher.update(_prefixed(field))
    return hasher.hexdigest()[:32]


def secret_check(root: bytes) -> bytes:
    """A value that shows two proxies whether they hold the same secret, 16 bytes, without showing it."""
    return blake3(root, derive_key_context=_CHECK_CONTEXT).digest()[:16]


def key_of(space: SpaceKey, frame: bytes) -> Key:
    """The identity of a frame in a space."""
    return Key(blake3(frame, key=space).digest())


def keys_of(space: SpaceKey, frames: Array) -> list[Key]:
    """The identities of frames of one length, `uint8 [rows, length]`: `key_of` of each, at about 0.7 µs a frame."""
    return [Key(digest) for digest in keyed_digests(space, frames)]


def keys_of_frames(space: SpaceKey, frames: Iterable[bytes]) -> list[Key]:
    """The identities of frames of whatever lengths, by one hasher that is reset."""
    hasher, keys = blake3(key=space), []
    update, digest, reset = hasher.update, hasher.digest, hasher.reset
    for frame in frames:
        update(frame)
        keys.append(Key(digest()))
        reset()
    return keys


def keyed_digests(key: bytes, lines: Array) -> list[bytes]:
    """Keyed BLAKE3, 32 bytes, of every line of `uint8 [rows, length]`.

    One hasher that is reset costs 0.69 µs for 290 bytes, a new one each 0.90 µs.
    """
    hasher, digests = blake3(key=key), []
    update, digest, reset = hasher.update, hasher.digest, hasher.reset
    raw, length = lines.tobytes(), lines.shape[1]
    for at in range(0, len(raw), length):
        update(raw[at : at + length])
        digests.append(digest())
        reset()
    return digests


class Framer:
    """Rows of one model signature → canonical frames.

    The part that is equal for every row of a shape (names, datatypes, dimensions) is cached; the number of cached
    shapes is bounded, since clients choose them.
    """

    MAX_HEADS = 1024

    def __init__(self, signature: ModelSignature) -> None:
        listed = sorted(enumerate(signature.keyed), key=lambda pair: pair[1].name)
        self._signature = signature
        self._partial: dict[tuple[int, ...], Framer] = {}
        self._inputs = tuple((index, spec.name.encode(), DATATYPES[spec.datatype]) for index, spec in listed)
        self._heads: dict[tuple[int, tuple[int, ...]], bytes] = {}

    def frame(self, row: Row, parameters: bytes = b"") -> bytes:
        """The canonical frame of one row. `parameters` is canonical JSON, empty for none."""
        if row.given is not None:
            return self._of(row.given).frame(Row(row.tensors), parameters)
        parts = [MAGIC, len(parameters).to_bytes(4, "little"), parameters]
        for index, name, datatype in self._inputs:
            tensor = row.tensors[index]
            raw = raw_of(tensor, datatype)
            parts += (self._head(index, name, datatype.code, tensor), len(raw).to_bytes(8, "little"), raw)
        return b"".join(parts)

    def starts(self, row: Row, parameters: bytes) -> list[tuple[int, bytes]]:
        """What stands before the data of each keyed input in the frame of a row of this shape: the input's place among
        the keyed ones and these bytes, in the order of the frame."""
        start, starts = MAGIC + len(parameters).to_bytes(4, "little") + parameters, []
        for index, name, datatype in self._inputs:
            tensor = row.tensors[index]
            size = len(raw_of(tensor, datatype)).to_bytes(8, "little")
            starts.append((index, start + self._head(index, name, datatype.code, tensor) + size))
            start = b""
        return starts

    def frames(self, rows: Sequence[Row], parameters: bytes = b"") -> list[bytes]:
        """The canonical frames of a request's rows."""
        if isinstance(rows, Columns):
            return self.column_frames(rows.arrays, parameters)
        return [self.frame(row, parameters) for row in rows]

    def column_frames(self, columns: Sequence[Array], parameters: bytes = b"") -> list[bytes]:
        """The canonical frames of rows that stand in one array per keyed input, of numbers of fixed shape: `frame` of
        each, without its row. For a request's rows; `table` is for a million."""
        count, parts = len(columns[0]), []
        start = MAGIC + len(parameters).to_bytes(4, "little") + parameters
        if not count:
            return []
        for index, name, datatype in self._inputs:
            raw = np.ascontiguousarray(columns[index], datatype.dtype).tobytes()
            width = len(raw) // count
            start += self._head(index, name, datatype.code, columns[index][0]) + width.to_bytes(8, "little")
            parts.append(
                [start + raw[at : at + width] for at in range(0, count * width, width or 1)] or [start] * count
            )
            start = b""
        return parts[0] if len(parts) == 1 else [b"".join(one) for one in zip(*parts, strict=True)]

    def table(self, columns: Sequence[Array], parameters: bytes = b"") -> Array:
        """The canonical frames of rows that stand in one array per keyed input, as `uint8 [rows, length]`.

        For numbers of fixed shape only: their frames differ in nothing but the data.
        """
        count = len(columns[0])
        fixed = [np.frombuffer(MAGIC + len(parameters).to_bytes(4, "little") + parameters, np.uint8)]
        parts: list[Array] = [np.broadcast_to(fixed[0], (count, len(fixed[0])))]
        for index, name, datatype in self._inputs:
            array = np.ascontiguousarray(columns[index], datatype.dtype)
            raw = array.reshape(count, -1).view(np.uint8) if array[:1].size else np.empty((count, 0), np.uint8)
            head = self._head(index, name, datatype.code, array[0]) + raw.shape[1].to_bytes(8, "little")
            parts += (np.broadcast_to(np.frombuffer(head, np.uint8), (count, len(head))), raw)
        return np.concatenate(parts, axis=1)

    def _of(self, given: tuple[int, ...]) -> Framer:
        """For rows with these inputs only: what was left out stands in no frame."""
        known = self._partial.get(given)
        if known is None:
            known = Framer(self._signature.of(given))
            if len(self._partial) < self.MAX_HEADS:
                self._partial[given] = known
        return known

    def _head(self, index: int, name: bytes, code: int, tensor: Array) -> bytes:
        known = self._heads.get((index, tensor.shape))
        if known is not None:
            return known
        dims = b"".join(dim.to_bytes(8, "little") for dim in tensor.shape)
        head = len(name).to_bytes(2, "little") + name + bytes((code, tensor.ndim)) + dims
        if len(self._heads) < self.MAX_HEADS:
            self._heads[index, tensor.shape] = head
        return head


def _prefixed(field: bytes) -> bytes:
    return len(field).to_bytes(4, "little") + field
