"""Bodies that differ only in their data → their common template, and the contents of its holes.

A template is a body that was decoded, without the elements of its data lists and the value of `timeout`; its `id` is
cut out before (`foreseen/protocol/request_id.py`). Another body fits where every other byte is the same and each hole
holds one whole JSON value of the kind that stood there. JSON has one way to read a text, so such a body says the same
of other data: that no member is given twice, what is asked for and in which form was decided when the first one was
decoded. Nothing else may differ, and what does not fit is decoded as any other body.

Where the holes are is what a dialect says (`template` of its codec): the functions below find them in a body that
is known to be valid.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET, Raw, Struct, UnsetType

from foreseen.modelspec.manifest import Manifest
from foreseen.proxy.predict.dialects.decode import DecodedRequest
from foreseen.proxy.predict.dialects.reply_skeletons import ReplySkeleton
from foreseen.types import Output, OutputOptions

MAX_TEMPLATE_BYTES = 4096
"""More beside its data is not ordinary."""
_TIMEOUT = re.compile(rb"0|[1-9][0-9]{0,14}")


class Hole(NamedTuple):
    """Where the data of an input stands in a body; `tensor` is its place among the decoded inputs, None for `timeout`.
    `binary`: bytes of the tensor, not JSON. `any_rows`: the body does not say elsewhere how many rows there are."""

    start: int
    end: int
    tensor: int | None
    binary: bool = False
    any_rows: bool = False


class TemplateDialect(NamedTuple):
    """How a dialect's bodies are cut, and what their replies have in common. `start_of`: up to where a body is the key
    of its templates, None where it has none. `holes` and `skeleton` are None for what is not ordinary."""

    start_of: Callable[[bytes, int | None], int | None]
    holes: Callable[[bytes, int | None, DecodedRequest, Manifest], list[Hole] | None]
    skeleton: Callable[[Manifest, tuple[Output, ...], int, OutputOptions], ReplySkeleton | None]


class BodyTemplate:
    """What stands around the holes of a body, byte by byte."""

    __slots__ = ("_before", "_id_at", "_last", "_least", "_middle", "_start", "_tail", "holes", "size")

    def __init__(self, text: bytes, holes: Sequence[Hole], id_start: int | None) -> None:
        """`holes` are in order; `id_start` is where an id was cut out."""
        ends = [0, *(hole.end for hole in holes)]
        starts = [*(hole.start for hole in holes), len(text)]
        pieces = [text[end:start] for end, start in zip(ends, starts, strict=True)]
        self.holes = tuple(holes)
        self._before, self._middle, self._last = pieces[0], pieces[1:-1], pieces[-1]
        self._start, self._tail = len(pieces[0]), len(pieces[-1])
        self._least = sum(map(len, pieces))
        self.size = self._least
        self._id_at = None if id_start is None else _place_of(id_start, ends, starts)

    def slices(self, text: bytes, id_start: int | None) -> list[bytes] | None:
        """What a body has in the holes; None where it is not of this template."""
        length = len(text)
        if length < self._least or not (text.startswith(self._before) and text.endswith(self._last)):
            return None
        at, end = self._start, length - self._tail
        if id_start is None and self._id_at is None and not self._middle:
            return [text[at:end]]
        starts, slices = [0], []
        for piece in self._middle:
            found = text.find(piece, at, end)
            if found < 0:
                return None
            slices.append(text[at:found])
            starts.append(found)
            at = found + len(piece)
        slices.append(text[at:end])
        if self._id_at is not None or id_start is not None:
            starts.append(end)
            if self._id_at is None or id_start != starts[self._id_at[0]] + self._id_at[1]:
                return None
        return slices


def _place_of(id_start: int, ends: Sequence[int], starts: Sequence[int]) -> tuple[int, int] | None:
    """The piece that a position is in, and where in it."""
    for piece, (start, end) in enumerate(zip(ends, starts, strict=True)):
        if start < id_start < end:
            return piece, id_start - start
    return None


def timeout_in(text: bytes) -> float | None:
    """Seconds of a plain `timeout`, None for none. Raises ValueError for one that is not plain."""
    if _TIMEOUT.fullmatch(text) is None:
        raise ValueError("not a plain number")
    return int(text) / 1e6 or None


class _V2Tensor(Struct):
    data: Raw | UnsetType = UNSET


class _V2Parameters(Struct):
    timeout: Raw | UnsetType = UNSET


class _V2Body(Struct):
    inputs: list[_V2Tensor]
    parameters: _V2Parameters | None = None


class _V1Body(Struct):
    instances: Raw | UnsetType = UNSET
    inputs: Raw | UnsetType = UNSET


class _V1Columns(Struct):
    inputs: dict[str, Raw]


class _OpenAIBody(Struct):
    input: Raw


_V2, _V1, _V1_COLUMNS, _OPENAI = map(msgspec.json.Decoder, (_V2Body, _V1Body, _V1Columns, _OpenAIBody))  # made at once:
# see `protocol/wire.py`

_V2_START = re.compile(rb'"(?:data|timeout)"[ \t\r\n]*:[ \t\r\n]*')
_V1_START = re.compile(rb'"(?:instances|inputs)"[ \t\r\n]*:[ \t\r\n]*')
_OPENAI_START = re.compile(rb'"input"[ \t\r\n]*:[ \t\r\n]*')


def v2_start(text: bytes, header_length: int | None) -> int | None:
    """Behind the name of the first member that may be a hole; of a binary body all of its JSON."""
    if header_length is not None:
        return header_length
    found = _V2_START.search(text, 0, MAX_TEMPLATE_BYTES)
    return None if found is None else found.end()


def v1_start(text: bytes, _: int | None) -> int | None:
    found = _V1_START.search(text, 0, MAX_TEMPLATE_BYTES)
    return None if found is None else found.end()


def openai_start(text: bytes, _: int | None) -> int | None:
    found = _OPENAI_START.search(text, 0, MAX_TEMPLATE_BYTES)
    return None if found is None else found.end()


def v2_holes(text: bytes, header_length: int | None, decoded: DecodedRequest, _: Manifest) -> list[Hole] | None:
    """The holes of an `/infer` body; None of one with data in both forms."""
    if header_length == 0:
        return [Hole(0, len(text), 0, binary=True, any_rows=True)]
    body: Any = _V2.decode(text if header_length is None else text[:header_length])
    listed = [(at, one.data) for at, one in enumerate(body.inputs) if one.data is not UNSET]
    holes = [Hole(*span_of(data, text), tensor=at) for at, data in listed]
    if body.parameters is not None and body.parameters.timeout is not UNSET:
        holes.append(Hole(*span_of(body.parameters.timeout, text), tensor=None))
    if header_length is not None:
        if listed:
            return None
        at = header_length
        for index, tensor in enumerate(decoded.inputs):
            holes.append(Hole(at, at + tensor.array.nbytes, index, binary=True))
            at += tensor.array.nbytes
    return sorted(holes)


def v1_holes(text: bytes, _: int | None, decoded: DecodedRequest, manifest: Manifest) -> list[Hole] | None:
    """The holes of a `:predict` body; None where its rows are objects."""
    body: Any = _V1.decode(text)
    if body.inputs is UNSET or not bytes(body.inputs).startswith(b"{"):
        if len(manifest.seen.inputs) != 1:
            return None
        listed = body.instances if body.inputs is UNSET else body.inputs
        return [Hole(*span_of(listed, text), tensor=0, any_rows=True)]
    names = [tensor.name for tensor in decoded.inputs]
    columns = _V1_COLUMNS.decode(text).inputs
    return sorted(
        Hole(*span_of(column, text), tensor=names.index(name), any_rows=True) for name, column in columns.items()
    )


def openai_holes(text: bytes, _: int | None, __: DecodedRequest, ___: Manifest) -> list[Hole]:
    """The hole of a `/v1/embeddings` body."""
    return [Hole(*span_of(_OPENAI.decode(text).input, text), tensor=0, any_rows=True)]


def span_of(value: Raw, text: bytes) -> tuple[int, int]:
    """Where a value stands in the text that it was read of: it is a view of those bytes."""
    place = np.frombuffer(value, np.uint8)
    start = place.__array_interface__["data"][0] - np.frombuffer(text, np.uint8).__array_interface__["data"][0]
    return start, start + len(place)
