"""Parses JSON strictly: refuses everything that two readers could understand differently.

orjson already refuses NaN, numbers that overflow a double, lone surrogates, a BOM, bad UTF-8 and nesting above 1,024.
What it lets through is a member given twice in one object (RFC 8259 section 4 leaves it open, I-JSON forbids it), also
when one spelling is escaped. A cache that keys on the last one while another reader takes the first is poisoned.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

import orjson

from foreseen.errors import BadRequest
from foreseen.protocol.json_parts import load_in_parts
from foreseen.protocol.json_size import check_size, string_end

_SPLIT_BYTES = 2**20
"""A longer text is walked through: its pieces would take more memory than its values."""
_SPACE = b" \t\r\n"
NOT_WHOLE = 0.5
MAX_FLOAT_INT = 2**53
"""The largest integer that may be spelled as a float: behind it there are some that no double is equal to."""
_DOUBTFUL = r"[0-9.]{16}|[eE]-[0-9]{3}"
_WINDOW, _LONGEST = 64 * 1024, 16
"""How much is searched in one call, and how long a match is."""
_LONG, _LONG_TEXT = re.compile(_DOUBTFUL.encode()), re.compile(_DOUBTFUL)
_BRACE = re.compile(rb"[{}]")
_AFTER_NAME = re.compile(rb"[ \t\r\n]*:")


def load_plain_json(text: bytes) -> Any:
    """The value of a text that was written by us. Raises BadRequest."""
    try:
        return load_in_parts(text, orjson.loads)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from None


def load_json(text: bytes, *, bounded: bool = True) -> Any:
    """The value. Raises BadRequest; if `bounded`, also TooLarge where the value would take too much memory. Replies of
    servers that the operator has chosen are not bounded."""
    if bounded:
        check_size(text)
    document = load_plain_json(text)
    twice = member_given_twice(text)
    if twice is not None:
        raise BadRequest(f"the body gives the member {twice[:64]!r} twice")
    return document


def load_whole(text: bytes | str) -> Any:
    """The value of valid JSON for a reader of integers: `1.0` or `1e0` becomes the integer that its digits spell;
    `NOT_WHOLE` stands for a number that is none, or one above `MAX_FLOAT_INT`.

    A double has 53 bits: `9007199254740993.0` becomes another number, and `1.0000000000000001` becomes 1.
    Raises BadRequest where the text is nested too deep for this.
    """
    written = text.encode() if isinstance(text, str) else text
    try:
        return load_in_parts(written, lambda part: json.loads(part, parse_float=_whole))
    except RecursionError:
        raise BadRequest("the body is nested too deep") from None


def doubles_may_differ(text: bytes | str) -> bool:
    """Whether a text may hold a number that is another one as a double. Up to 15 digits decide which double is meant,
    and whether it is an integer, unless it is so small that it becomes 0."""
    digits: Any = _LONG if isinstance(text, bytes) else _LONG_TEXT
    windows = range(0, max(len(text), 1), _WINDOW)
    return any(digits.search(text, at, at + _WINDOW + _LONGEST) is not None for at in windows)


def _whole(digits: str) -> int | float:
    exact = Decimal(digits)
    if abs(exact) > MAX_FLOAT_INT:
        return NOT_WHOLE
    made = int(exact)
    return made if made == exact else NOT_WHOLE


def member_given_twice(text: bytes) -> str | None:
    """The first member name that one object of valid JSON gives twice.

    Without a backslash, as nearly always, every second piece between quotes is a string: pieces are cut at the speed of
    memchr, and where all names differ nothing is left to see.
    """
    if len(text) > _SPLIT_BYTES or b"\\" in text:
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
        at = string_end(text, quote + 1)
        if open_objects and _AFTER_NAME.match(text, at):
            name = orjson.loads(text[quote:at]) if find(b"\\", quote, at) >= 0 else text[quote + 1 : at - 1].decode()
            if name in open_objects[-1]:
                return str(name)
            open_objects[-1].add(name)


def _braces(text: bytes, start: int, end: int, open_objects: list[set[str]]) -> None:
    """Objects that open and close between two strings. Two walks of `find`, so that numbers cost a memchr."""
    find = text.find
    opening, closing = find(b"{", start, end), find(b"}", start, end)
    while opening >= 0 or closing >= 0:
        if closing < 0 or 0 <= opening < closing:
            open_objects.append(set())
            opening = find(b"{", opening + 1, end)
        else:
            open_objects.pop()
            closing = find(b"}", closing + 1, end)
