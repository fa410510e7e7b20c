"""What stands in the holes of a template → the canonical frames of its rows, without arrays or rows in between.

Made of a request that was decoded and prepared: its datatypes, shapes and normalization are those of every request of
its template. Two kinds of models have templates: of numbers in rows of fixed shape, and of one text that is tokenized.
Everything that a slice may be refused for raises one of `REFUSED`; such a request is decoded as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from foreseen.errors import BadInput
from foreseen.keys.key import Framer
from foreseen.modelspec.prepare import Preparer
from foreseen.protocol.datatypes import DATATYPES, Datatype
from foreseen.protocol.typed_lists import Reader, number_reader, read_texts
from foreseen.protocol.wire import InputTensor
from foreseen.proxy.predict.dialects.body_templates import Hole
from foreseen.proxy.predict.dialects.decode import DecodedRequest
from foreseen.types import Array, Columns, Row

Parsed = Any
"""What a request's slices came to, for the methods of the same `TemplateRows`."""


class TemplateRows(Protocol):
    """The rows of requests of one template."""

    def parsed(self, slices: Sequence[bytes]) -> Parsed:
        """What stands in the holes."""

    def frames(self, parsed: Parsed) -> tuple[list[bytes], int | None]:
        """The frames of a request's rows; and how many token ids they have, where these are counted."""

    def decoded(self, parsed: Parsed) -> tuple[tuple[InputTensor, ...], Sequence[Row]]:
        """The request's inputs and rows, as decoding and preparation make them."""


def rows_of(
    decoded: DecodedRequest, holes: Sequence[Hole], preparer: Preparer, framer: Framer, rows: Sequence[Row],
    text: bytes,
) -> TemplateRows | None:  # fmt: skip
    """The rows of requests like this one, whose body is `text`; None where only the general way reads them."""
    places = {hole.tensor: at for at, hole in enumerate(holes) if hole.tensor is not None}
    if len(places) != len(decoded.inputs) or not rows:
        return None
    if preparer.text_only is not None:
        return _text_rows(decoded, holes[places[0]], places[0], preparer, framer, text)
    if isinstance(rows, Columns):
        return _number_rows(decoded, holes, places, preparer, framer, rows)
    return None


class _NumberRows:
    """Numbers of fixed shape: each input's bytes are cut into its rows'."""

    def __init__(
        self, tensors: Sequence[InputTensor], places: Sequence[int], readers: Sequence[Reader],
        changes: Sequence[Callable[[bytes], bytes] | None], parts: Sequence[tuple[int, bytes, int]],
        keyed: Sequence[tuple[int, tuple[int, ...]]],
    ) -> None:  # fmt: skip
        """`places` are the holes of the tensors. `parts` are the tensors that are keyed, in the order of frames: which,
        what stands before the bytes of its row, and their number; `keyed` the same in the order of rows, with the shape
        of a row."""
        self._tensors, self._places, self._readers, self._parts, self._keyed = tensors, places, readers, parts, keyed
        self._changes = None if changes.count(None) == len(changes) else changes
        self._only = parts[0] if len(parts) == 1 else None

    def parsed(self, slices: Sequence[bytes]) -> Parsed:
        """The bytes of each tensor, as they came and normalized."""
        raws = [read(slices[place]) for place, read in zip(self._places, self._readers, strict=True)]
        if self._changes is None:
            return raws, raws
        changed = [
            raw if change is None else change(raw) for raw, change in zip(raws, self._changes, strict=True)
        ]  # fmt: skip
        return raws, changed

    def frames(self, parsed: Parsed) -> tuple[list[bytes], int | None]:
        _, raws = parsed
        if self._only is not None:
            at, start, width = self._only
            raw = raws[at]
            return [start + raw[begin : begin + width] for begin in range(0, len(raw), width)], None
        columns = [
            [start + raws[at][begin : begin + width] for begin in range(0, len(raws[at]), width)]
            for at, start, width in self._parts
        ]
        if len(set(map(len, columns))) != 1:
            raise BadInput("the number of rows differs between inputs")
        return [b"".join(parts) for parts in zip(*columns, strict=True)], None

    def decoded(self, parsed: Parsed) -> tuple[tuple[InputTensor, ...], Sequence[Row]]:
        raws, changed = parsed
        inputs = tuple(
            InputTensor(tensor.name, tensor.datatype, _shaped(raw, tensor, tensor.array.shape[1:]))
            for tensor, raw in zip(self._tensors, raws, strict=True)
        )
        return inputs, Columns([_shaped(changed[at], self._tensors[at], row) for at, row in self._keyed])


def _shaped(raw: bytes, tensor: InputTensor, row: tuple[int, ...]) -> Array:
    return np.frombuffer(raw, tensor.array.dtype).reshape(-1, *row)


def _number_rows(
    decoded: DecodedRequest, holes: Sequence[Hole], places: dict[int, int], preparer: Preparer, framer: Framer,
    rows: Columns,
) -> TemplateRows | None:  # fmt: skip
    readers, changes = [], []
    for at, tensor in enumerate(decoded.inputs):
        hole, datatype, shape = holes[places[at]], DATATYPES[tensor.datatype], tensor.array.shape
        if not preparer.takes(tensor.name, tensor.datatype):
            return None
        count = None if hole.any_rows else shape[0]
        read = _raw_reader(datatype, shape, count) if hole.binary else number_reader(datatype, shape[1:], count)
        if read is None:
            return None
        readers.append(read)
        changes.append(preparer.normalization(tensor.name, shape[1:], finite=not hole.binary))
    names = [tensor.name for tensor in decoded.inputs]
    starts = framer.starts(rows[0], decoded.parameters)
    parts = [
        (names.index(preparer.keyed[index]), start, rows.arrays[index][0].nbytes) for index, start in starts
    ]  # fmt: skip
    keyed = [(names.index(name), array.shape[1:]) for name, array in zip(preparer.keyed, rows.arrays, strict=True)]
    return _NumberRows(decoded.inputs, [places[at] for at in range(len(names))], readers, changes, parts, keyed)


def _raw_reader(datatype: Datatype, shape: tuple[int, ...], count: int | None) -> Reader | None:
    """Checks the bytes of a binary tensor: `count` whole rows of numbers, any where it is None."""
    width = int(np.prod(shape[1:], dtype=np.int64)) * datatype.size
    if not width or not shape[0]:
        return None

    def read(raw: bytes) -> bytes:
        whole = len(raw) % width == 0 if count is None else len(raw) == count * width
        if not raw or not whole or (datatype.kind == "b" and max(raw) > 1):
            raise BadInput("not the bytes of rows")
        return raw

    return read


class _TextRows:
    """One text a row, which is tokenized. `prompt` is put before each."""

    def __init__(
        self, tensor: InputTensor, preparer: Preparer, framer: Framer, parameters: bytes, prompt: bytes,
        rows: int | None, place: int, *, binary: bool,
    ) -> None:  # fmt: skip
        """`place` is its hole; `rows` their number, None where the body does not say it elsewhere."""
        self._place = place
        self._tensor, self._preparer, self._framer, self._parameters = tensor, preparer, framer, parameters
        self._prompt, self._rows, self._binary = prompt, rows, binary
        self._starts: dict[int, bytes] = {}

    def parsed(self, slices: Sequence[bytes]) -> Parsed:
        """The texts, and the ids of each."""
        text = slices[self._place]
        texts = [text] if self._binary else read_texts(text)
        if self._rows is not None and len(texts) != self._rows:
            raise BadInput("another number of texts")
        if self._prompt:
            texts = [self._prompt + one for one in texts]
        return texts, self._preparer.text_ids(texts)

    def frames(self, parsed: Parsed) -> tuple[list[bytes], int | None]:
        frames, tokens, starts = [], 0, self._starts
        for ids in parsed[1]:
            size = len(ids)
            start = starts.get(size)
            if start is None:
                ((_, start),) = self._framer.starts(Row((ids,)), self._parameters)
                starts[size] = start
            frames.append(start + ids.tobytes())
            tokens += size
        return frames, tokens

    def decoded(self, parsed: Parsed) -> tuple[tuple[InputTensor, ...], Sequence[Row]]:
        texts, ids = parsed
        array = np.empty(len(texts), object)
        array[:] = texts
        shaped = array.reshape(-1, *self._tensor.array.shape[1:])
        return (InputTensor(self._tensor.name, self._tensor.datatype, shaped),), [Row((one,)) for one in ids]


def _text_rows(
    decoded: DecodedRequest, hole: Hole, place: int, preparer: Preparer, framer: Framer, text: bytes
) -> TemplateRows | None:
    tensor = decoded.inputs[0]
    if tensor.datatype != "BYTES" or (hole.binary and not hole.any_rows):
        return None
    made = tensor.array.ravel()[0]
    given = text[hole.start : hole.end] if hole.binary else read_texts(text[hole.start : hole.end])[0]
    if not made.endswith(given):
        return None
    rows = None if hole.any_rows else tensor.array.size
    prompt = made[: len(made) - len(given)]
    return _TextRows(tensor, preparer, framer, decoded.parameters, prompt, rows, place, binary=hole.binary)
