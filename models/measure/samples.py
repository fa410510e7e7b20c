"""A manifest and its assets → rows to measure candidates on, made by the build itself and the same on every machine."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image as Picture

from foreseen.errors import SetupError
from foreseen.models.measure.texts import texts
from foreseen.modelspec.images import pixels
from foreseen.modelspec.manifest import ClientInput, Manifest, ModelInput, Tokenizer, seconds
from foreseen.modelspec.prepare import Preparer, tokenizer_of
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.wire import InputTensor
from foreseen.types import Array, Row

PICTURE_PIXELS = 300
QUERY_WORDS = 3  # queries are not cut, so they must leave room in the shortest rows
NAMED_SIZES = (1, 24)
"""Least and largest size of a named dimension that nothing else decides."""


def samples(manifest: Manifest, folder: Path, count: int, seed: int = 1) -> list[Row]:
    """`count` rows. Texts go through the model's own tokenizer in `folder`; other inputs are drawn at random."""
    if seconds(manifest.seen):
        return _pairs(manifest, folder, count)
    chance = np.random.default_rng(seed)
    columns = [_column(spec, manifest, folder, count, chance) for spec in manifest.model.keyed]
    return [Row(parts) for parts in zip(*columns, strict=True)]


def _pairs(manifest: Manifest, folder: Path, count: int) -> list[Row]:
    """Rows of two texts each, made by the model's own preparation."""
    names = {i.tokenizer.file for i in manifest.seen.inputs if i.tokenizer is not None}
    preparer = Preparer(manifest, {name: (folder / name).read_bytes() for name in names})
    written, second = texts(2 * count), seconds(manifest.seen)
    asked = [" ".join(text.split()[:QUERY_WORDS]) for text in written[count:]]
    given = [(spec, written[:count] if spec.name in second else asked) for spec in manifest.seen.inputs]
    columns = [(spec, np.array([text.encode() for text in column], object)) for spec, column in given]
    return list(preparer.rows([InputTensor(spec.name, spec.datatype, column) for spec, column in columns]))


def tokenized(manifest: Manifest, folder: Path, written: list[str]) -> list[Row]:
    """Texts → rows of a model whose only keyed input is token ids."""
    if len(manifest.model.keyed) != 1 or (step := _tokenizer(manifest, manifest.model.keyed[0])) is None:
        raise SetupError(f"model {manifest.name!r} does not take one text")
    dtype = DATATYPES[manifest.model.keyed[0].datatype].dtype
    return [Row((ids.astype(dtype),)) for ids in _ids(step, folder, written)]


def _column(spec: ModelInput, manifest: Manifest, folder: Path, count: int, chance: np.random.Generator) -> list[Array]:
    datatype = DATATYPES[spec.datatype]
    tokenizer = _tokenizer(manifest, spec)
    if tokenizer is not None:
        return [ids.astype(datatype.dtype) for ids in _ids(tokenizer, folder, texts(count))]
    picture = next((i.image for i in manifest.seen.inputs if i.image is not None and i.image.to == spec.name), None)
    if picture is not None:
        return [pixels(_picture(chance), picture, spec.datatype, spec.name) for _ in range(count)]
    if datatype.kind == "s":
        return [np.array(text.encode(), object) for text in texts(count)]
    return [_drawn(spec, chance) for _ in range(count)]


def _picture(chance: np.random.Generator) -> bytes:
    """A PNG of coloured blobs on a gradient: smooth like photographs, which noise is not."""
    size = PICTURE_PIXELS
    coarse = chance.integers(0, 256, (int(chance.integers(2, 9)), int(chance.integers(2, 9)), 3), np.uint8)
    picture = Picture.fromarray(coarse).resize((size, size), Picture.Resampling.BICUBIC)
    written = io.BytesIO()
    picture.save(written, "PNG")
    return written.getvalue()


def _drawn(spec: ModelInput, chance: np.random.Generator) -> Array:
    datatype = DATATYPES[spec.datatype]
    low, high = NAMED_SIZES
    shape = [int(chance.integers(low, high)) if isinstance(dim, str) else dim for dim in spec.shape[1:]]
    if datatype.kind == "f":
        return np.asarray(chance.standard_normal(shape)).astype(datatype.dtype)
    top = 2 if datatype.kind == "b" else 100
    return np.asarray(chance.integers(0, top, shape)).astype(datatype.dtype)


def _tokenizer(manifest: Manifest, spec: ModelInput) -> Tokenizer | None:
    clients: tuple[ClientInput, ...] = manifest.seen.inputs
    return next((i.tokenizer for i in clients if i.tokenizer is not None and i.tokenizer.ids == spec.name), None)


def _ids(step: Tokenizer, folder: Path, written: list[str]) -> list[Array]:
    """Token ids as `prepare` makes them: no padding, cut to `max_tokens`."""
    loaded = tokenizer_of({step.file: (folder / step.file).read_bytes()}, step)
    prompted = [(step.prompt or "") + text for text in written]
    return [np.array(encoding.ids, np.int64) for encoding in loaded.encode_batch(prompted)]
