"""A reply's body without the data of its rows: what two replies to one template have in common.

It is rendered once, by what renders every reply of its dialect, with `MARK` in place of data, and cut there. A reply of
so many rows is then a join of its pieces with the rows' fragments (`fragments.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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


class Slot(NamedTuple):
    """Where data belongs: of one row, or of all (`row` is None), with `between` between two, in the form of this place
    of the skeleton's; without one the number of tokens."""

    form: int | None
    row: int | None = None
    between: bytes = b","


class ReplySkeleton(Struct, frozen=True):
    """A body of rows that have these outputs, in these forms. One piece more than slots; `before` and `json_length` as
    in `RenderedBody`."""

    heads: tuple[Output, ...]
    forms: tuple[Form, ...]
    before: bytes
    pieces: tuple[bytes, ...]
    slots: tuple[Slot, ...]
    json_length: int | None = None

    def filled(self, columns: Sequence[Sequence[bytes]], tokens: int | None) -> RenderedBody:
        """The body. `columns` is what the rows have in each of the forms."""
        pieces, parts = iter(self.pieces), []
        for wanted, row, between in self.slots:
            parts.append(next(pieces))
            if wanted is None:
                parts.append(b"%d" % (tokens or 0))
            elif row is None:
                parts.append(between.join(columns[wanted]))
            else:
                parts.append(columns[wanted][row])
        parts.append(next(pieces))
        joined = b"".join(parts)
        return RenderedBody(self.before, joined, self.json_length) if self.before else RenderedBody(joined, b"", None)

    @property
    def size(self) -> int:
        """Its bytes, near enough."""
        return 500 + sum(map(len, self.pieces)) + 150 * len(self.slots)


def v2_skeleton(
    manifest: Manifest, heads: tuple[Output, ...], count: int, options: OutputOptions
) -> ReplySkeleton | None:
    """Of an `/infer` reply whose outputs are all JSON or all binary."""
    tensors, slots = [], []
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
        slots.append(Slot(len(forms), None, b"" if binary else b","))
        forms.append(form(place, fragments.RAW if binary else fragments.ELEMENTS))
    if len({one.binary for one in tensors}) != 1:
        return None
    body, length = render_response(manifest.name, manifest.version, None, tensors)
    before = v2_start(manifest)
    after = body[len(before) : length]
    pieces = after.split(MARK) if length is None else [after, *[b""] * len(slots)]
    return ReplySkeleton(heads, tuple(forms), before, tuple(pieces), tuple(slots), length)


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
    if len(forms) > 1 and options.protocol != "v1-columns":
        slots, marks = [Slot(at, row) for row in range(count) for at in range(len(forms))], [MARKED] * count
    else:  # the rows of an output stand in one list
        slots, marks = [Slot(at) for at in range(len(forms))], [MARKED]
    pieces = orjson.dumps(arranged_v1(dict.fromkeys(forms, marks), options)).split(MARK)
    return ReplySkeleton(heads, tuple(forms.values()), b"", tuple(pieces), tuple(slots))


def rows_skeleton(heads: tuple[Output, ...], count: int, body: bytes, written: Form, *, tokens: int) -> ReplySkeleton:
    """Of a body that was rendered with a mark for every row in this form, then so many for the tokens."""
    slots = [Slot(0, row) for row in range(count)]
    return ReplySkeleton(heads, (written,), b"", tuple(body.split(MARK)), (*slots, *[Slot(None)] * tokens))
