"""JSON Lines of a batch → what each line asks, or what is wrong with it. Pure.

A line is a V2 request that names its model, or wraps a request as batches of OpenAI's API do:

    {"custom_id": "a", "model": "minilm", "inputs": [...]}
    {"custom_id": "b", "method": "POST", "url": "/v1/models/minilm:predict", "body": {"instances": [...]}}
    {"custom_id": "c", "method": "POST", "url": "/v1/embeddings", "body": {"model": "minilm", "input": "..."}}

`custom_id` is the caller's name for it. The body of a request stays the bytes that it is, so that a line asks exactly
what the same bytes would ask by themselves.
"""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import unquote

import msgspec
from msgspec import Raw, Struct

from foreseen.errors import BadRequest, ForeseenError, TooLarge

MAX_NAME = 256
_URL = re.compile(
    r"/v2/models/(?P<v2>[^/?#]+)(?:/versions/(?P<version>[^/?#]+))?/infer"
    r"|(?P<openai>/v1/embeddings|/openai/v1/embeddings)"
    r"|/v1/models/(?P<v1>[^/:?#]+)(?:/versions/(?P<version1>[^/:?#]+))?:predict"
)


class RequestLine(Struct, frozen=True):
    """What one line asks. The model is empty where the body names it."""

    custom_id: str | None
    model: str
    version: str | None
    protocol: Literal["v2", "v1", "openai"]
    body: bytes


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
    lines = [_line(text, names) for text in map(bytes.strip, body.split(b"\n")) if text]
    if not lines:
        raise BadRequest("body: expected JSON Lines, one request a line")
    if len(lines) > most:
        raise TooLarge(f"the batch has more than {most} lines")
    return lines


def _line(text: bytes, names: set[str]) -> RequestLine | BadLine:
    name = None
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


def _asked(envelope: _Envelope, text: bytes) -> RequestLine:
    if envelope.url is None:
        if envelope.model is None:
            raise BadRequest("model: is missing, or url")
        return RequestLine(envelope.custom_id, envelope.model, envelope.version, "v2", text)
    match = _URL.fullmatch(envelope.url)
    if match is None:
        raise BadRequest("url: must be /v2/models/MODEL/infer, /v1/models/MODEL:predict or /v1/embeddings")
    if envelope.method not in (None, "POST"):
        raise BadRequest("method: must be POST")
    if not bytes(envelope.body):
        raise BadRequest("body: is missing")
    if match["openai"]:
        return RequestLine(envelope.custom_id, "", None, "openai", bytes(envelope.body))
    model, version = match["v2"] or match["v1"], match["version"] or match["version1"]
    protocol: Literal["v2", "v1"] = "v2" if match["v2"] else "v1"
    return RequestLine(envelope.custom_id, unquote(model), version and unquote(version), protocol, bytes(envelope.body))
