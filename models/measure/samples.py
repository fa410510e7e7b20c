"""A manifest and its assets → rows to measure candidates on, made by the build itself and the same on every machine."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Picture

from foreseen.errors import SetupError
from foreseen.models.measure.texts import texts
from foreseen.modelspec import made_up
from foreseen.modelspec.images import pixels
from foreseen.modelspec.manifest import BATCH, ClientInput, Manifest, ModelInput, Tokenizer, seconds
from foreseen.modelspec.prepare import Preparer, tokenizer_of
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.wire import InputTensor
from foreseen.types import Array, Row

PICTURE_PIXELS = 300
TEXTS = 1024  # different ones, for inputs of strings
QUERY_WORDS = 3  # queries are not cut, so they must leave room in the shortest rows
NAMED_SIZES = (1, 24)
"""Least and largest size of a named dimension that nothing else decides."""


def samples(manifest: Manifest, folder: Path, count: int, seed: int = 1) -> list[Row]:
    """`count` rows, or requests where rows have no axis. Texts go through the model's own tokenizer in `folder`; other
    inputs are drawn at random, one size per named dimension and row, within the manifest's `[samples]`."""
    if seconds(manifest.seen):
        return _pairs(manifest, folder, count)
    chance = np.random.default_rng(seed)
    columns = {}
    for spec in manifest.model.keyed:
        made = _prepared(spec, manifest, folder, count, chance)
        if made is not None:
            columns[spec.name] = made
    known = [_sizes(manifest, {name: column[at] for name, column in columns.items()}, chance) for at in range(count)]
    for spec in manifest.model.keyed:
        if spec.name not in columns:
            columns[spec.name] = [drawn(spec, manifest, sizes, at, chance) for at, sizes in enumerate(known)]
    return [Row(parts) for parts in zip(*(columns[spec.name] for spec in manifest.model.keyed), strict=True)]


def equal_samples(manifest: Manifest, count: int, seed: int, scale: float = 1.0, like: Row | None = None) -> list[Row]:
    """`count` rows of one size: that of `like`, or drawn. Numbers are times `scale` where no hint bounds them."""
    chance = np.random.default_rng(seed)
    keyed = manifest.model.keyed
    made = {} if like is None else {spec.name: t for spec, t in zip(keyed, like.tensors, strict=True)}
    sizes = _sizes(manifest, made, chance)
    rows = []
    for at in range(count):
        parts = [_scaled(spec, drawn(spec, manifest, sizes, at, chance), scale, manifest) for spec in keyed]
        rows.append(Row(tuple(parts)))
    return rows


def _scaled(spec: ModelInput, tensor: Array, scale: float, manifest: Manifest) -> Array:
    is_free = DATATYPES[spec.datatype].kind == "f" and spec.name not in manifest.samples.values
    return (tensor * tensor.dtype.type(scale)).astype(tensor.dtype) if is_free and scale != 1.0 else tensor


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


def _prepared(
    spec: ModelInput, manifest: Manifest, folder: Path, count: int, chance: np.random.Generator
) -> list[Array] | None:
    """What the preparation makes of texts and pictures; None for an input that clients send as it is."""
    datatype = DATATYPES[spec.datatype]
    tokenizer = _tokenizer(manifest, spec)
    if tokenizer is not None:
        return [ids.astype(datatype.dtype) for ids in _ids(tokenizer, folder, texts(count))]
    picture = next((i.image for i in manifest.seen.inputs if i.image is not None and i.image.to == spec.name), None)
    if picture is not None:
        return [pixels(_picture(chance), picture, spec.datatype, spec.name) for _ in range(count)]
    return None


def _sizes(manifest: Manifest, made: Mapping[str, Array], chance: np.random.Generator) -> dict[str, int]:
    """One size per named dimension: from a given tensor, from the hints, or arbitrary."""
    keyed = manifest.model.keyed
    named = sorted({dim for spec in keyed for dim in spec.shape if isinstance(dim, str) and dim != BATCH})
    lists = manifest.samples.sizes
    place = int(chance.integers(len(next(iter(lists.values()))))) if lists else 0
    sizes = {dim: lists[dim][place] if dim in lists else int(chance.integers(*NAMED_SIZES)) for dim in named}
    for spec in keyed:
        if spec.name in made:
            sizes |= {d: n for d, n in zip(spec.shape[1:], made[spec.name].shape, strict=True) if isinstance(d, str)}
    return sizes


def drawn(
    spec: ModelInput, manifest: Manifest, sizes: Mapping[str, int], at: int, chance: np.random.Generator
) -> Array:
    """One row's tensor of an input that clients send as it is, of the sizes and within the hints."""
    datatype, hints = DATATYPES[spec.datatype], manifest.samples
    shape = made_up.row_shape(spec, sizes) if manifest.model.has_rows else made_up.whole_shape(spec, sizes)
    if datatype.kind == "s":
        return _strings(shape, hints.texts.get(spec.name, ()), at, chance)
    if spec.name in hints.values:
        return made_up.tensor(spec, shape, hints, chance)
    if datatype.kind == "f":
        return np.asarray(chance.standard_normal(shape)).astype(datatype.dtype)
    top = 2 if datatype.kind == "b" else 100
    return np.asarray(chance.integers(0, top, shape)).astype(datatype.dtype)


def _strings(shape: Sequence[int], known: Sequence[str], at: int, chance: np.random.Generator) -> Array:
    """Texts, the `at`-th first; or some of those that the hints know."""
    made: Array = np.empty(shape, object)
    written = known or _pool()
    for number, place in enumerate(np.ndindex(*shape)):
        choice = int(chance.integers(len(known))) if known else (at * made.size + number) % len(written)
        made[place] = written[choice].encode()
    return made


@functools.cache
def _pool() -> list[str]:
    return texts(TEXTS)


def _picture(chance: np.random.Generator) -> bytes:
    """A PNG of coloured blobs on a gradient: smooth like photographs, which noise is not."""
    size = PICTURE_PIXELS
    coarse = chance.integers(0, 256, (int(chance.integers(2, 9)), int(chance.integers(2, 9)), 3), np.uint8)
    picture = Picture.fromarray(coarse).resize((size, size), Picture.Resampling.BICUBIC)
    written = io.BytesIO()
    picture.save(written, "PNG")
    return written.getvalue()


def _tokenizer(manifest: Manifest, spec: ModelInput) -> Tokenizer | None:
    clients: tuple[ClientInput, ...] = manifest.seen.inputs
    return next((i.tokenizer for i in clients if i.tokenizer is not None and i.tokenizer.ids == spec.name), None)


def _ids(step: Tokenizer, folder: Path, written: list[str]) -> list[Array]:
    """Token ids as `prepare` makes them: no padding, cut to `max_tokens`."""
    loaded = tokenizer_of({step.file: (folder / step.file).read_bytes()}, step)
    prompted = [(step.prompt or "") + text for text in written]
    return [np.array(encoding.ids, np.int64) for encoding in loaded.encode_batch(prompted)]
