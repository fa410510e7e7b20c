"""Bounds a JSON text before it is parsed: the number of its elements, and the memory of its strings.

An empty object is two characters of text and 64 bytes of memory, so a limit on bytes bounds nothing. Counted are the
characters that separate values (`,` `:` `[` `]` `{` `}`) outside strings, and strings: a list of n numbers counts
n + 1, a member of an object 3, or more where its value holds more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foreseen.errors import TooLarge

MAX_ELEMENTS = 1_000_000
"""They come to 65 MiB at most once parsed (measured over lists, objects, members, strings and nesting)."""
MAX_TEXT_BYTES = 80 * 2**20
"""Most bytes of a text and of the memory of its strings: the parser copies the first and makes the second."""
_WIDEST = 4
"""Bytes of every character of a string that holds one above U+FFFF."""
_MARKS = b',:[]{}"'
_IS_SEPARATOR = np.isin(np.arange(256), list(b",:[]{}"))
_SLICE_BYTES = 64 * 1024
"""Each slice holds the interpreter for 0.1 ms; other threads have their turn between them."""
_SHORT_BYTES = 64
"""Shorter strings are taken for ASCII: what they take is bounded by the number of elements."""
_FEW = 8
"""Escaped quotes of a string that are looked at one by one."""
_UNITS = re.compile(rb'(?:[^"\\]+|\\.){1,8192}', re.DOTALL)
_WIDE = re.compile(rb"[\xf0-\xf4]|\\u[dD]")
_DOUBLE = re.compile(rb"[\xc4-\xef]|\\u")


def check_size(text: bytes) -> None:
    """Raises TooLarge where a text has more than `MAX_ELEMENTS`, or strings that take too much memory.

    Every element takes at least one character, so most texts are small enough to skip the count.
    """
    if len(text) <= MAX_ELEMENTS:
        return
    if _marks(text) > MAX_ELEMENTS and _elements(text) > MAX_ELEMENTS:
        raise TooLarge(
            f"the JSON body has more than {MAX_ELEMENTS} elements; send large tensors in the binary form "
            "(binary_data_size and Inference-Header-Content-Length), or split the request"
        )
    if len(text) * (1 + _WIDEST) > MAX_TEXT_BYTES and _memory(text) > MAX_TEXT_BYTES:
        raise TooLarge("the strings of the JSON body are too large; send them in the binary form, or split the request")


def string_end(text: bytes, start: int) -> int:
    """The index behind the closing quote of the string whose first character is at `start`; the text's length where
    there is none."""
    for _ in range(_FEW):
        quote = text.find(b'"', start)
        if quote < 0:
            return len(text)
        window = text[max(start, quote - _SHORT_BYTES) : quote]
        slashes = len(window) - len(window.rstrip(b"\\"))
        if slashes == _SHORT_BYTES:
            break
        if slashes % 2 == 0:
            return quote + 1
        start = quote + 1
    while (units := _UNITS.match(text, start)) is not None:  # many escapes: a tenth of the time
        start = units.end()
    return min(start + 1, len(text))


class Slice(NamedTuple):
    """Some bytes of a JSON text, from the index `first`."""

    first: int
    bytes: NDArray[np.uint8]
    """Without escaped quotes and backslashes: spaces stand in their place."""
    within: NDArray[np.uint8]
    """1 for each byte of a string, its opening quote included; 0 for the others."""


def slices(text: bytes, size: int) -> Iterator[Slice]:
    """The text in slices of about so many bytes: each holds the interpreter for a short time only. Behind an odd number
    of quotes one is inside a string."""
    inside, held = np.uint8(0), b""
    for start in range(0, len(text), size):
        part, first = held + text[start : start + size], start - len(held)
        held = b""
        if b"\\" in part:
            part = part.replace(b"\\\\", b"  ").replace(b'\\"', b"  ")
            if part.endswith(b"\\"):  # what it escapes is in the next slice
                part, held = part[:-1], b"\\"
        marks = np.frombuffer(part, np.uint8)
        within = (np.add.accumulate(marks == ord('"'), dtype=np.uint8) + inside) & np.uint8(1)
        yield Slice(first, marks, within)
        inside = within[-1] if len(within) else inside


def _elements(text: bytes) -> int:
    """Separators outside strings, and strings; counting ends above the limit."""
    found = 0
    for one in slices(text, _SLICE_BYTES):
        opening = (one.bytes == ord('"')) & one.within
        found += int(np.count_nonzero(opening) + np.count_nonzero(_IS_SEPARATOR[one.bytes] & (one.within == 0)))
        if found > MAX_ELEMENTS:
            break
    return found


def _memory(text: bytes) -> int:
    """The length of a text and the memory of its strings; counting ends above the limit."""
    size, at = len(text), 0
    while size <= MAX_TEXT_BYTES:
        start = text.find(b'"', at)
        if start < 0:
            break
        at = string_end(text, start + 1)
        size += (at - start) * _width(text, start, at)
    return size


def _marks(text: bytes) -> int:
    """How many separators and quotes there are, in strings or not; counting ends above the limit."""
    found = 0
    for at in range(0, len(text), _SLICE_BYTES):
        part = text[at : at + _SLICE_BYTES]
        found += len(part) - len(part.translate(None, _MARKS))
        if found > MAX_ELEMENTS:
            break
    return found


def _width(text: bytes, start: int, end: int) -> int:
    """Bytes of each character once a string is parsed: those of its widest one."""
    widest = 1
    if end - start < _SHORT_BYTES:
        return widest
    for at in range(start, end, _SLICE_BYTES):
        part = text[at : min(at + _SLICE_BYTES, end)]
        if part.isascii() and b"\\u" not in part:
            continue
        if _WIDE.search(part):
            return _WIDEST
        if _DOUBLE.search(part):
            widest = 2
    return widest
