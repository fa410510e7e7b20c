"""One row ↔ the bytes of a request to our own model process and of its reply, by templates. Pure.

The first request of rows of a shape is rendered, and its reply read and checked, as of any number of rows
(`wire_render.py`, `model.py`). A template keeps what the two consist of. A later request differs from it in its id, its
timeout and its data. A later reply is read by the template only if every byte equals but the id, the seconds and the
data; the data's length, and that its numbers are finite, are checked each time. Everything else is read in full.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from foreseen.modelspec.manifest import ModelSignature
from foreseen.modelspec.rows import stack
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.wire import Response
from foreseen.protocol.wire_render import render_request
from foreseen.types import Output, Prediction, RequestOptions, Row

MAX_TEMPLATES = 1024
"""Shapes of rows; they differ in the length of a text."""
_TIMEOUT, _ID = 987_654_321_012_345_678, "the id of a request"
"""What a template is rendered with, to find its places."""
_SECONDS = re.compile(rb'"seconds":([^,}]*)')
_NUMBER = re.compile(rb"(?:0|[1-9][0-9]{0,9})(?:\.[0-9]{1,20})?(?:[eE][+-]?[0-9]{1,2})?")
"""JSON's numbers, without signs and without those that are infinite as a float."""


class ReplyForm(NamedTuple):
    """What a reply consists of: its JSON up to the id, from there to the seconds, and behind them. The prediction's
    `heads`, the bytes of each output, and the dtype where numbers may be NaN or infinite."""

    before: bytes
    between: bytes
    after: bytes
    digest: str
    heads: tuple[Output, ...]
    sizes: tuple[int, ...]
    floats: tuple[np.dtype[np.generic] | None, ...]

    def read(self, body: bytes, json_length: int, request_id: bytes) -> Prediction | None:
        """The prediction of a reply of this form, None where it has another."""
        before, between, after = self.before, self.between, self.after
        start = len(before) + len(request_id) + len(between)
        end = json_length - len(after)
        if start >= end or body[:start] != before + request_id + between or body[end:json_length] != after:
            return None
        seconds = body[start:end]
        if _NUMBER.fullmatch(seconds) is None or len(body) != json_length + sum(self.sizes):
            return None
        data, at = [], json_length
        for size, dtype in zip(self.sizes, self.floats, strict=True):
            raw = body[at : at + size]
            if dtype is not None and not np.isfinite(np.frombuffer(raw, dtype)).all():
                return None
            data.append(raw)
            at += size
        now = time.time()
        return Prediction(self.heads, tuple(data), self.digest, now, now, float(seconds))


class RowTemplate:
    """The request of rows of one shape, and the form of its reply once there was one."""

    __slots__ = ("_after", "_before", "_between", "_derived", "reply")

    def __init__(self, header: bytes, derived: Sequence[bytes | None]) -> None:
        """`derived` are the bytes of each input that is derived from others, None for one that the row has.
        Raises ValueError where the places in the header are not plain."""
        self._before, rest = _cut(header, b"%d" % _TIMEOUT)
        self._between, self._after = _cut(rest, _ID.encode())
        self._derived = tuple(derived)
        self.reply: ReplyForm | None = None

    def request(self, row: Row, request_id: bytes, timeout: int) -> tuple[bytes, int]:
        """Body and header length."""
        header = b"%b%d%b%b%b" % (self._before, timeout, self._between, request_id, self._after)
        tensors = iter(row.tensors)
        data = [next(tensors).tobytes() if raw is None else raw for raw in self._derived]
        return b"".join((header, *data)), len(header)

    def learn(self, body: bytes, json_length: int, request_id: bytes, response: Response, made: Prediction) -> None:
        """Keep the form of a reply that was read in full, if it is plain and makes the same prediction of it."""
        self.reply = None
        outputs = [(output.name, output.datatype, output.array.shape) for output in response.outputs]
        if outputs != [(head.name, head.datatype, (1, *head.shape)) for head in made.outputs]:
            return
        try:
            before, rest = _cut(body[:json_length], request_id)
            seconds = _SECONDS.findall(rest)
            if len(seconds) != 1:
                return
            between, after = _cut(rest, b'"seconds":' + seconds[0])
        except ValueError:
            return
        known = [DATATYPES[head.datatype] for head in made.outputs]
        if not all(datatype.kind in "if" for datatype in known):  # a BOOL's bytes are read one by one
            return
        floats = tuple(datatype.dtype if datatype.kind == "f" else None for datatype in known)
        sizes = tuple(map(len, made.data))
        form = ReplyForm(before, between + b'"seconds":', after, made.digest, made.outputs, sizes, floats)
        again = form.read(body, json_length, request_id)
        if again is not None and (again.data, again.seconds) == (made.data, made.seconds):
            self.reply = form


class RowTemplates:
    """The templates of one model process."""

    def __init__(self, signature: ModelSignature) -> None:
        self._signature = signature
        self._plain = not any(DATATYPES[spec.datatype].kind == "s" for spec in signature.inputs)
        self._known: dict[object, RowTemplate | None] = {}

    def of(self, row: Row, options: RequestOptions, parameters: Mapping[str, object]) -> RowTemplate | None:
        """The template of a row; `parameters` are those of its request but the timeout. None where it has none."""
        shape = (tuple([tensor.shape for tensor in row.tensors]), options.lane, options.caller, options.weight)
        try:
            return self._known[shape]
        except KeyError:
            if len(self._known) >= MAX_TEMPLATES:
                self._known.clear()
            made = self._known[shape] = self._made(row, parameters)
            return made

    def _made(self, row: Row, parameters: Mapping[str, object]) -> RowTemplate | None:
        if not self._plain or row.given is not None:
            return None
        batch = stack((row,), self._signature)
        tensors = [(spec.name, spec.datatype, batch[spec.name]) for spec in self._signature.inputs]
        body, length = render_request(tensors, {"timeout": _TIMEOUT, **parameters}, _ID)
        derived = [None if spec.role is None else batch[spec.name].tobytes() for spec in self._signature.inputs]
        try:
            template = RowTemplate(body[:length], derived)
        except ValueError:
            return None
        return template if template.request(row, _ID.encode(), _TIMEOUT) == (body, length) else None


def _cut(text: bytes, part: bytes) -> tuple[bytes, bytes]:
    """What is before and behind a part that is there once. Raises ValueError."""
    before, behind = text.split(part)
    return before, behind
