"""JSON text → Python values, refusing everything that two readers could understand differently.

orjson already refuses NaN, numbers that overflow a double, lone surrogates, a BOM, bad UTF-8 and nesting above 1,024.
What it lets through is a member given twice in one object (RFC 8259 section 4 leaves it open, I-JSON forbids it), also
when one spelling is escaped. A cache that keys on the last one while another reader takes the first is poisoned.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from foreseen.errors import BadRequest

_SPACE = b" \t\r\n"
_BRACE = re.compile(rb"[{}]")
_AFTER_NAME = re.compile(rb"[ \t\r\n]*:")


def load_plain_json(text: bytes) -> Any:
    """The value of a text that was written by us. Raises BadRequest."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from None


def load_json(text: bytes) -> Any:
    """The value. Raises BadRequest."""
    document = load_plain_json(text)
    twice = member_given_twice(text)
    if twice is not None:
        raise BadRequest(f"the body gives the member {twice[:64]!r} twice")
    return document


def member_given_twice(text: bytes) -> str | None:
    """The first member name that one object of valid JSON gives twice.

    Without a backslash, as nearly always, every second piece between quotes is a string: pieces are cut at the speed of
    memchr, and where all names differ nothing is left to see.
    """
    if b"\\" in text:
        return _walked(text)
    pieces = text.split(b'"')
    names = [name for name, after in zip(pieces[1::2], pieces[2::2], strict=True) if after.lstrip(_SPACE)[:1] == b":"]
    if len(set(names)) == len(names):
        return None
    open_objects: list[set[bytes]] = []
    for at, piece in enumerate(pieces):
        if at % 2 == 0:
            if len(piece) > 64 and b"{" not in piece and b"}" not in piece:
                continue
            for brace in _BRACE.findall(piece):
                if brace == b"{":
                    open_objects.append(set())
                else:
                    open_objects.pop()
        elif pieces[at + 1].lstrip(_SPACE)[:1] == b":":
            if piece in open_objects[-1]:
                return piece.decode()
            open_objects[-1].add(piece)
    return None


def _walked(text: bytes) -> str | None:
    """The same where strings hold escapes.

    Walks from quote to quote with `find`, so that the numbers between, nearly all of a big body, cost a memchr and not
    a loop. Between two strings only braces matter, and the text there is short except for numbers, which hold none.
    """
    open_objects: list[set[str]] = []
    at = 0
    find = text.find
    while True:
        quote = find(b'"', at)
        end = len(text) if quote < 0 else quote
        _braces(text, at, end, open_objects)
        if quote < 0:
            return None
        at = _string_end(text, quote + 1)
        if open_objects and _AFTER_NAME.match(text, at):
            name = orjson.loads(text[quote:at]) if find(b"\\", quote, at) >= 0 else text[quote + 1 : at - 1].decode()
            if name in open_objects[-1]:
                return str(name)
            open_objects[-1].add(name)


def _braces(text: bytes, start: int, end: int, open_objects: list[set[str]]) -> None:
    if end - start > 64 and text.find(b"{", start, end) < 0 and text.find(b"}", start, end) < 0:
        return
    for byte in text[start:end]:
        if byte == 0x7B:
            open_objects.append(set())
        elif byte == 0x7D:
            open_objects.pop()


def _string_end(text: bytes, start: int) -> int:
    """The index behind the closing quote of the string whose first character is at `start`."""
    while True:
        quote = text.index(b'"', start)
        slashes = quote
        while text[slashes - 1] == 0x5C:
            slashes -= 1
        if (quote - slashes) % 2 == 0:
            return quote + 1
        start = quote + 1
