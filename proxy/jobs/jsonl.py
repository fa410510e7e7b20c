"""Parses the JSON Lines of a batch: a request for each line, or the error of that line. Pure.

A line is a V2 request that names its model, or wraps a request as batches of OpenAI's API do:

    {"custom_id": "a", "model": "minilm", "inputs": [...]}
    {"custom_id": "b", "method": "POST", "url": "/v1/models/minilm:predict", "body": {"instances": [...]}}
    {"custom_id": "c", "method": "POST", "url": "/v1/embeddings", "body": {"model": "minilm", "input": "..."}}

`custom_id` is the caller's name for it. The body of a request is passed on byte by byte, so that a line asks exactly
what the same request would ask over HTTP.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from typing import Literal, cast
from urllib.parse import unquote

import msgspec
from msgspec import Raw, Struct

from foreseen.errors import BadRequest, ForeseenError, TooLarge
from foreseen.proxy.predict.ask import Protocol
from foreseen.proxy.predict.dialects.text_codecs import ROUTES

BY_BODY: Mapping[str, str] = {"/v1/embeddings": "openai", "/openai/v1/embeddings": "openai", **ROUTES}
"""Routes whose bodies name their model, or none, by path."""
MAX_NAME = 256
MAX_LINE_BYTES = 16 * 2**20
_SPACE = b" \t\r\x0b\x0c"
_BLANK = re.compile(rb"[ \t\r\x0b\x0c]*")
_URL = re.compile(
    r"/v2/models/(?P<v2>[^/?#]+)(?:/versions/(?P<version>[^/?#]+))?/infer"
    r"|/v1/models/(?P<v1>[^/:?#]+)(?:/versions/(?P<version1>[^/:?#]+))?:predict"
)


class RequestLine(Struct, frozen=True):
    """The request of one line. `model` is empty where the body names it."""

    custom_id: str | None
    model: str
    version: str | None
    protocol: Protocol
    body: bytes | memoryview
    """A part of the batch's own bytes: a copy of every line would be a second batch."""


class BadLine(Struct, frozen=True):
    """A line that asks nothing, and why."""

    custom_id: str | None
    error: ForeseenError


_NONE = Raw(b"")


class _Envelope(Struct):
    custom_id: str | None = None
    model: str | None = None
    version: str | None = None
    method: str | None = None
    url: str | None = None
    body: Raw = _NONE


_DECODER = msgspec.json.Decoder(_Envelope)


def lines_of(body: bytes, most: int) -> list[RequestLine | BadLine]:
    """The lines in their order, blank ones left out. Raises TooLarge, and BadRequest where there is none."""
    if body.count(b"\n") > most + 1:
        raise TooLarge(f"the batch has more than {most} lines")
    names: set[str] = set()
    lines = [_line(text, names) for text in _texts(body)]
    if not lines:
        raise BadRequest("body: expected JSON Lines, one request a line")
    if len(lines) > most:
        raise TooLarge(f"the batch has more than {most} lines")
    return lines


def _texts(body: bytes) -> Iterator[memoryview]:
    """What stands in each line that is not blank, without the space around it, nor the mark that some editors begin a
    file with."""
    view, at = memoryview(body), len(BOM_UTF8) if body.startswith(BOM_UTF8) else 0
    while at < len(body):
        end = body.find(b"\n", at)
        end = len(body) if end < 0 else end
        start = _space_end(body, at, end)
        if start < end:
            last = end if body[end - 1] not in _SPACE else start + len(body[start:end].rstrip())
            yield view[start:last]
        at = end + 1


def _space_end(body: bytes, start: int, end: int) -> int:
    match = _BLANK.match(body, start, end)
    assert match is not None, "it matches nothing, too"
    return match.end()


def _line(text: memoryview, names: set[str]) -> RequestLine | BadLine:
    name = None
    if len(text) > MAX_LINE_BYTES:
        return BadLine(None, TooLarge(f"the line is longer than {MAX_LINE_BYTES} bytes"))
    try:
        try:
            envelope = _DECODER.decode(text)
        except msgspec.MsgspecError as error:
            raise BadRequest(f"the line cannot be read: {error}") from None
        if (name := envelope.custom_id) is not None:
            _take(name, names)
        return _asked(envelope, text)
    except BadRequest as error:
        return BadLine(name if name is None or len(name) <= MAX_NAME else None, error)


def _take(name: str, names: set[str]) -> None:
    if len(name) > MAX_NAME:
        raise BadRequest(f"custom_id: is longer than {MAX_NAME} characters")
    if name in names:
        raise BadRequest("custom_id: another line has the same")
    names.add(name)


def _asked(envelope: _Envelope, text: memoryview) -> RequestLine:
    if envelope.url is None:
        if envelope.model is None:
            raise BadRequest("model: is missing, or url")
        return RequestLine(envelope.custom_id, envelope.model, envelope.version, "v2", text)
    by_body, match = BY_BODY.get(envelope.url), _URL.fullmatch(envelope.url)
    if match is None and by_body is None:
        others = "/v1/embeddings, /v1/rerank, /v1/score or another route of texts"
        raise BadRequest(f"url: must be /v2/models/MODEL/infer, /v1/models/MODEL:predict, {others}")
    if envelope.method not in (None, "POST"):
        raise BadRequest("method: must be POST")
    if not memoryview(envelope.body):
        raise BadRequest("body: is missing")
    if match is None or by_body is not None:
        return RequestLine(envelope.custom_id, "", None, cast("Protocol", by_body), memoryview(envelope.body))
    model, version = match["v2"] or match["v1"], match["version"] or match["version1"]
    protocol: Literal["v2", "v1"] = "v2" if match["v2"] else "v1"
    asked = memoryview(envelope.body)
    return RequestLine(envelope.custom_id, unquote(model), version and unquote(version), protocol, asked)
