"""A manifest → rows and requests that are made up: valid ones of the declared kinds, the same at every call.

They serve measurements at build time, the self-test and the readiness check. A graph may take
other sizes, numbers or texts than those drawn here; the manifest's `[samples]` says which.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foreseen.errors import SetupError
from foreseen.modelspec.manifest import BATCH, ClientInput, Dim, Manifest, ModelInput
from foreseen.modelspec.manifest.hints import Samples
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.wire_render import render_request
from foreseen.types import Array

TEXT = "A man is eating food."
PICTURE_PIXELS = 64
REQUEST_ROWS = 2  # of a request that cannot be cut into rows: one would hide what rows do to each other


def sizes(shapes: Sequence[tuple[Dim, ...]], samples: Samples, length: int) -> dict[str, int]:
    """A size for every named dimension: the hints' nearest to `length`, or `length` itself."""
    place = samples.place(length)
    named = {dim for shape in shapes for dim in shape if isinstance(dim, str)}
    return {dim: samples.sizes[dim][place] if place is not None and dim in samples.sizes else length for dim in named}


def tensor(spec: ModelInput, shape: Sequence[int], samples: Samples, chance: np.random.Generator) -> Array:
    """One input of that shape within the hints; without any: words, small integers, numbers from 0 to 1."""
    datatype = DATATYPES[spec.datatype]
    if datatype.kind == "s":
        texts = samples.texts.get(spec.name, ("foreseen",))
        drawn: Array = np.empty(shape, object)
        for place in np.ndindex(*shape):
            drawn[place] = texts[int(chance.integers(len(texts)))].encode()
        return drawn
    if datatype.kind == "b":
        return np.ones(shape, datatype.dtype)
    low, high = samples.values.get(spec.name, (1, 8) if datatype.kind == "i" else (0.0, 1.0))
    if datatype.kind == "i":
        return np.asarray(chance.integers(int(low), max(int(high), int(low) + 1), shape)).astype(datatype.dtype)
    return np.asarray(low + (high - low) * chance.random(shape)).astype(datatype.dtype)


def whole_shape(spec: ModelInput, known: Mapping[str, int]) -> list[int]:
    """The shape of an input in a whole request. Rows are REQUEST_ROWS."""
    return [REQUEST_ROWS if dim == BATCH else known[dim] if isinstance(dim, str) else dim for dim in spec.shape]


def row_shape(spec: ModelInput, known: Mapping[str, int]) -> list[int]:
    """The shape of one row of an input."""
    return [known[dim] if isinstance(dim, str) else dim for dim in spec.shape[1:]]


def tensors(manifest: Manifest, length: int, seed: int) -> dict[str, Array]:
    """One row, or a request where it cannot be cut into rows: small numbers, so that they are within every vocabulary.
    Token types of a pair are all 0."""
    signature, chance = manifest.model, np.random.default_rng(seed)
    known = sizes([spec.shape for spec in signature.keyed], manifest.samples, length)
    shape = row_shape if signature.has_rows else whole_shape
    made = {spec.name: tensor(spec, shape(spec, known), manifest.samples, chance) for spec in signature.keyed}
    types = {i.tokenizer.types for i in manifest.seen.inputs if i.tokenizer is not None}
    return {name: np.zeros_like(array) if name in types else array for name, array in made.items()}


def example_request(manifest: Manifest) -> tuple[bytes, int]:
    """A V2 request of the manifest's example: its body and the length of its JSON part. One row.

    What has no example is made up of the declared kind: a picture, a sentence, ones. Named dimensions are as long as
    the example's data or the hints make them. Tensors are binary, since a picture is no JSON string.
    """
    known = sizes([spec.shape for spec in manifest.seen.inputs], manifest.samples, 1) | {BATCH: 1}
    tensors = [(spec.name, spec.datatype, example(spec, manifest, known)) for spec in manifest.seen.inputs]
    return render_request(tensors, {}, "example")


def example(spec: ClientInput, manifest: Manifest, known: Mapping[str, int]) -> Array:
    """One input's example, `known` being the sizes of named dimensions. Raises SetupError where it does not fit."""
    datatype = DATATYPES[spec.datatype]
    data: list[Any] | None = manifest.example.get(spec.name)
    if data is None:
        shape = [known[dim] if isinstance(dim, str) else dim for dim in spec.shape]
        data = [_element(spec, manifest.samples)] * math.prod(shape)
    else:
        shape = _example_shape(spec.shape, len(data))
    if datatype.kind == "s":
        data = [item.encode() if isinstance(item, str) else item for item in data]
    try:
        return np.array(data, datatype.dtype).reshape(shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise SetupError(f"model {manifest.name!r}: example.{spec.name}: {error}") from None


def _example_shape(dims: tuple[Dim, ...], elements: int) -> list[int]:
    """Named dimensions are as long as the data make them; where there are none, the data may be of several rows."""
    size = elements // max(math.prod(dim for dim in dims if isinstance(dim, int)), 1)
    is_open = any(isinstance(dim, str) and dim != BATCH for dim in dims)
    return [dim if isinstance(dim, int) else 1 if dim == BATCH and is_open else size for dim in dims]


def _element(spec: ClientInput, samples: Samples) -> Any:
    if spec.image is not None:
        return picture(PICTURE_PIXELS)
    if spec.datatype == "BYTES":
        return samples.texts.get(spec.name, (TEXT if spec.tokenizer is not None else "1",))[0]
    if spec.datatype == "BOOL":
        return True
    low, high = samples.values.get(spec.name, (1, 2))
    return 1 if low <= 1 < high else math.ceil(low) if DATATYPES[spec.datatype].kind == "i" else low


def picture(pixels: int) -> bytes:
    """A square PNG, a grey gradient."""
    lines = b"".join(b"\0" + bytes((x + y) % 256 for x in range(pixels)) for y in range(pixels))
    head = struct.pack(">IIBBBBB", pixels, pixels, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    packed = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + packed
