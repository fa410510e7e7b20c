"""A reply's body without the data of its rows: what two replies to one template have in common.

It is rendered once, by what renders every reply of its dialect, with `MARK` in place of data, and cut there. A reply of
so many rows is then a join of its pieces with the rows' fragments (`fragments.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import orjson
from msgspec import Struct

from foreseen.modelspec.manifest import Manifest
from foreseen.protocol.datatypes import DATATYPES, elements
from foreseen.protocol.wire_render import OutputTensor, render_response
from foreseen.proxy.predict.dialects import fragments
from foreseen.proxy.predict.dialects.fragments import form
from foreseen.proxy.predict.dialects.render import RenderedBody, arranged_v1, v2_start, wanted_outputs
from foreseen.types import Form, Output, OutputOptions

MARK = b"\0"
"""JSON text holds none."""
MARKED = orjson.Fragment(MARK)


class ReplySkeleton(Struct, frozen=True):
    """A body of rows that have these outputs, in these forms. Between two pieces belongs what all rows have in one
    form, joined by `between`; or, where that is None, what one row has in one. So many times the number of tokens
    follows. `before` and `json_length` are as in `RenderedBody`."""

    heads: tuple[Output, ...]
    forms: tuple[Form, ...]
    before: bytes
    pieces: tuple[bytes, ...]
    between: bytes | None
    tokens: int = 0
    json_length: int | None = None

    def filled(self, columns: Sequence[Sequence[bytes]], tokens: int | None) -> RenderedBody:
        """The body. `columns` is what the rows have in each of the forms."""
        parts = [b""] * (2 * len(self.pieces) - 1)
        parts[::2] = self.pieces
        between, texts = self.between, chain.from_iterable(zip(*columns, strict=True))
        if between is not None:
            parts[1::2] = [between.join(column) for column in columns]
        else:
            parts[1::2] = [*texts, *[b"%d" % (tokens or 0)] * self.tokens]
        joined = b"".join(parts)
        return RenderedBody(self.before, joined, self.json_length) if self.before else RenderedBody(joined, b"", None)

    @property
    def size(self) -> int:
        """Its bytes, near enough."""
        return 500 + sum(map(len, self.pieces)) + 150 * len(self.pieces)


def v2_skeleton(
    manifest: Manifest, heads: tuple[Output, ...], count: int, options: OutputOptions
) -> ReplySkeleton | None:
    """Of an `/infer` reply whose outputs are all JSON or all binary."""
    tensors = []
    forms: list[Form] = []
    for wanted in wanted_outputs(manifest, options):
        place = next((at for at, head in enumerate(heads) if head.name == wanted.name), None)
        if place is None or wanted.classification is not None or not elements(heads[place].shape):
            return None
        head, binary = heads[place], options.binary if wanted.binary is None else wanted.binary
        shape, size = (count, *head.shape), DATATYPES[head.datatype].size
        if binary and not size:
            return None
        raw = bytes(elements(shape) * size) if binary else b""
        tensors.append(OutputTensor(head.name, head.datatype, shape, raw, binary, None if binary else b"[\0]"))
        forms.append(form(place, fragments.RAW if binary else fragments.ELEMENTS))
    if len({one.binary for one in tensors}) != 1:
        return None
    body, length = render_response(manifest.name, manifest.version, None, tensors)
    before = v2_start(manifest)
    after = body[len(before) : length]
    if length is not None:
        return ReplySkeleton(heads, tuple(forms), before, (after, *[b""] * len(forms)), b"", 0, length)
    return ReplySkeleton(heads, tuple(forms), before, tuple(after.split(MARK)), b",")


def v1_skeleton(
    manifest: Manifest, heads: tuple[Output, ...], count: int, options: OutputOptions
) -> ReplySkeleton | None:
    """Of a `:predict` reply of numbers, by row or by column."""
    forms: dict[str, Form] = {}
    for wanted in wanted_outputs(manifest, options):
        place = next((at for at, head in enumerate(heads) if head.name == wanted.name), None)
        if place is None or heads[place].datatype in ("BYTES", "BF16", "FP16") or not elements(heads[place].shape):
            return None
        forms[wanted.name] = form(place, fragments.NESTED)
    by_row = len(forms) > 1 and options.protocol != "v1-columns"  # else the rows of an output stand in one list
    marks = [MARKED] * (count if by_row else 1)
    pieces = orjson.dumps(arranged_v1(dict.fromkeys(forms, marks), options)).split(MARK)
    return ReplySkeleton(heads, tuple(forms.values()), b"", tuple(pieces), None if by_row else b",")


def rows_skeleton(heads: tuple[Output, ...], body: bytes, written: Form, *, tokens: int) -> ReplySkeleton:
    """Of a body that was rendered with a mark for every row in this form, then so many for the tokens."""
    return ReplySkeleton(heads, (written,), b"", tuple(body.split(MARK)), None, tokens)
