"""Single-row requests of our own proxy → the row and its order; the row's outputs → the reply. No I/O.

A request is recognised by its bytes: its head is the one that `proxy/backend/model_client.py` writes, and its JSON but
for the timeout and the id is that of a request that was parsed and validated against the signature before. So nothing
is left to check but the data. Every other request is read in full (`handlers.py`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import NamedTuple

import numpy as np
import orjson

from foreseen.inference.batching.queued import BatchOrder
from foreseen.modelspec.manifest import Manifest
from foreseen.modelspec.row_outputs import RowOutputs
from foreseen.protocol import wire, wire_render
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.tensors import raw_of
from foreseen.types import Array, Row
from foreseen.web.http import BINARY, HEADER_LENGTH, SERVER

MAX_FORMS = 1024
"""Requests that differ in the lengths of their rows."""
_JSON = re.compile(rb'\{"parameters":\{"timeout":([1-9][0-9]{0,14})(,.*"id":")([0-9a-f-]{1,64})"\}', re.DOTALL)
_SECONDS, _ID = 0.123456789, "the-id-of-a-request"
"""What a form of replies is rendered with, to find its places."""


class _Part(NamedTuple):
    """The bytes of one tensor of a row. `fixed` holds the required bytes of a mask or of zeros."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    size: int
    fixed: bytes | None


class RowAsked(NamedTuple):
    """A recognised request."""

    row: Row
    order: BatchOrder
    id: bytes


class _Form(NamedTuple):
    """Requests that are equal but for timeout, id and data; `order` is that of the first."""

    parts: tuple[_Part, ...]
    order: BatchOrder

    def row(self, body: bytes, at: int) -> Row | None:
        """The row of a body whose data begins at this offset; None if the body has to be parsed in full."""
        tensors: list[Array] = []
        for dtype, shape, size, fixed in self.parts:
            if fixed is None:
                tensors.append(np.frombuffer(body, dtype, size // dtype.itemsize, at).reshape(shape))
            elif body[at : at + size] != fixed:
                return None
            at += size
        return Row(tuple(tensors)) if at == len(body) else None


class RowRequests:
    """Of one model process."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        path = re.escape(f"/v2/models/{manifest.name}/infer".encode())
        self._head = re.compile(
            rb"POST %b HTTP/1\.1\r\nHost: model\r\nContent-Type: application/octet-stream\r\n"
            rb"Content-Length: ([0-9]{1,12})\r\nInference-Header-Content-Length: ([0-9]{1,12})\r\n\r\n" % path
        )
        self._forms: dict[bytes, _Form] = {}
        self._replies: dict[tuple[str, tuple[tuple[int, ...], ...]], tuple[bytes, bytes, bytes]] = {}
        self._dated = -1, b""

    def read(self, data: bytes, now: float) -> RowAsked | None:
        """A request that is whole, and of a form that is known; `now` is on the event loop's clock."""
        head = self._head.match(data)
        if head is None or len(data) - head.end() != int(head[1]):
            return None
        data_at = head.end() + int(head[2])
        found = _JSON.fullmatch(data, head.end(), data_at)
        form = None if found is None else self._forms.get(found[2])
        row = None if form is None else form.row(data, data_at)
        if found is None or form is None or row is None:
            return None
        known = form.order
        return RowAsked(row, BatchOrder(now + int(found[1]) / 1e6, known.lane, known.caller, known.weight), found[3])

    def learn(self, body: bytes, json_length: int | None, asked: wire.Request, order: BatchOrder) -> None:
        """Keep the form of a request that was answered."""
        signature = self._manifest.model
        found = None if json_length is None else _JSON.fullmatch(body, 0, json_length)
        if found is None or found[2] in self._forms or self._manifest.rows != "each" or not signature.has_rows:
            return
        if asked.id != found[3].decode() or asked.parameters.get("timeout") != int(found[1]):
            return
        if asked.outputs is not None or not asked.binary:
            return
        given = {tensor.name: tensor.array for tensor in asked.inputs}
        if [spec.name for spec in signature.inputs] != list(given) or any(len(array) != 1 for array in given.values()):
            return
        if any(DATATYPES[spec.datatype].kind not in "if" for spec in signature.inputs):  # the others are checked
            return
        parts = []
        for spec in signature.inputs:
            array = given[spec.name]
            fixed = (
                None if spec.role is None else (np.ones if spec.role == "mask" else np.zeros)(array.shape, array.dtype)
            )
            parts.append(_Part(array.dtype, array.shape[1:], array.nbytes, None if fixed is None else fixed.tobytes()))
        form = _Form(tuple(parts), order)
        if form.row(body, json_length or 0) is None:
            return
        if len(self._forms) >= MAX_FORMS:
            self._forms.clear()
        self._forms[found[2]] = form

    def reply(self, outputs: RowOutputs, request_id: bytes, digest: str, seconds: float) -> bytes:
        """The reply with all outputs as binary tensors, its head included."""
        known = self._replies.get((digest, tuple([output.shape for output in outputs])))
        before, between, after = known or self._made(outputs, digest)
        specs = self._manifest.model.outputs
        raw = [raw_of(array, DATATYPES[spec.datatype]) for array, spec in zip(outputs, specs, strict=True)]
        header = b"".join((before, request_id, between, orjson.dumps(seconds), after))
        length = len(header) + sum(map(len, raw))
        head = b"%b%d\r\nContent-Length: %d\r\n%b" % (_HEAD, len(header), length, self._date())
        return b"".join((head, header, *raw))

    def _made(self, outputs: RowOutputs, digest: str) -> tuple[bytes, bytes, bytes]:
        """What a reply's JSON consists of: up to the id, from there to the seconds, and behind them."""
        manifest = self._manifest
        tensors = [
            wire_render.OutputTensor(
                spec.name, spec.datatype, (1, *array.shape), raw_of(array, DATATYPES[spec.datatype]), True
            )
            for spec, array in zip(manifest.model.outputs, outputs, strict=True)
        ]
        facts = {"digest": digest, "seconds": _SECONDS}
        rendered, length = wire_render.render_response(manifest.name, manifest.version, _ID, tensors, facts)
        before, rest = rendered[:length].split(_ID.encode(), 1)
        between, after = rest.split(orjson.dumps(_SECONDS), 1)
        made = before, between, after
        if all(DATATYPES[spec.datatype].size for spec in manifest.model.outputs) and len(self._replies) < MAX_FORMS:
            self._replies[digest, tuple([output.shape for output in outputs])] = made
        return made

    def _date(self) -> bytes:
        """The header line of this second, and the end of the head."""
        now = int(time.time())
        if now != self._dated[0]:
            self._dated = now, f"Date: {formatdate(now, usegmt=True)}\r\n\r\n".encode()
        return self._dated[1]


_HEAD = f"HTTP/1.1 200 OK\r\nServer: {SERVER}\r\nContent-Type: {BINARY}\r\n{HEADER_LENGTH}: ".encode()


def plain_reply(status: int, headers: Mapping[str, str], body: bytes) -> bytes:
    """A whole reply with any status."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    date = formatdate(time.time(), usegmt=True)
    start = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{lines}"
    return f"{start}Content-Length: {len(body)}\r\nDate: {date}\r\n\r\n".encode() + body
