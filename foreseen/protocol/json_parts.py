"""Parses a long JSON text part by part, so that no call holds the interpreter for more than about a millisecond.

A parser in C keeps the interpreter until it is done: a body of 2 MB delayed every hit of its process by 20 ms. The
text is cut at commas, each part is closed and opened again by the brackets that are open there, and the values are
joined. A text that cannot be cut so is parsed whole, which also says what is wrong with it.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from msgspec import Struct

from foreseen.protocol.json_size import slices

T = TypeVar("T")

LONG_BYTES = 128 * 1024
"""Shorter texts are parsed whole."""
PART_BYTES = 32 * 1024
PART_ELEMENTS = 8192
"""Elements of a list that one call reads, copies or frees."""
_IS_BRACKET = np.isin(np.arange(256), list(b"[]{}"))
_MOST_DEPTH = 64
"""Deeper nested texts are parsed whole; they come to the limit on elements soon."""
_GOES_ON = f"goes on {secrets.token_hex(16)}"
"""Name of the member that the last one of the part before goes on in; no client can know it."""
_OPENING = {ord("["): b"[", ord("{"): b'{"%s":' % _GOES_ON.encode()}
_CLOSING = {ord("["): b"]", ord("{"): b"}"}
_PAIR = {ord("]"): ord("["), ord("}"): ord("{")}
_ENDS_NO_VALUE = b"[{,:"
_BEGINS_NO_VALUE = b"]},:"
_SPACE = b" \t\r\n"


class _Cut(Struct, frozen=True):
    """A comma outside strings, and the brackets that are open there."""

    at: int
    opened: bytes


class _Uncut(Exception):
    """The text is not valid, or not such that it can be cut."""


def load_in_parts(
    text: bytes, loads: Callable[[bytes], Any], *, long_bytes: int = LONG_BYTES, part_bytes: int = PART_BYTES
) -> Any:
    """What `loads` makes of the text; raises what it raises. Where a member is given twice in one object the value may
    be another one than that of `loads`: `strict_json` refuses such texts."""
    if len(text) <= long_bytes:
        return loads(text)
    try:
        return _joined(text, loads, part_bytes)
    except (_Uncut, ValueError, TypeError, IndexError, KeyError, AttributeError, StopIteration, RecursionError):
        return loads(text)


def in_parts(data: Sequence[T], most: int = PART_ELEMENTS) -> Iterator[Sequence[T]]:
    """The elements, `most` at a time."""
    if len(data) <= most:
        yield data
        return
    for at in range(0, len(data), most):
        yield data[at : at + most]


def types_of(data: Sequence[Any], most: int = PART_ELEMENTS) -> set[type]:
    """The types of the elements."""
    return set().union(*(set(map(type, part)) for part in in_parts(data, most)))


def flattened(data: Sequence[Any], most: int = PART_ELEMENTS) -> list[Any]:
    """The elements of the elements."""
    flat: list[Any] = []
    for part in in_parts(data, most):
        flat.extend(itertools.chain.from_iterable(part))
    return flat


def free(value: Any, most: int = PART_ELEMENTS) -> None:
    """Empty the long lists of a value that nothing needs any longer, at any depth that is reached through few."""
    if type(value) is dict:
        for member in value.values():
            free(member, most)
    elif type(value) is list and len(value) > most:
        while value:
            del value[-most:]
    elif type(value) is list:
        for element in value:
            if type(element) not in (list, dict):
                break
            free(element, most)


def _joined(text: bytes, loads: Callable[[bytes], Any], part_bytes: int) -> Any:
    whole, at, opened = None, 0, b""
    for cut in itertools.chain(_cuts(text, part_bytes), [_Cut(len(text), b"")]):
        part = text[at : cut.at]
        if opened:
            if part.lstrip(_SPACE)[:1] in _BEGINS_NO_VALUE:  # also an empty one
                raise _Uncut
            part = b"".join(_OPENING[kind] for kind in opened[:-1]) + (b"[" if opened[-1] == ord("[") else b"{") + part
        if cut.opened:
            if part.rstrip(_SPACE)[-1:] in _ENDS_NO_VALUE:
                raise _Uncut
            part += b"".join(_CLOSING[kind] for kind in reversed(cut.opened))
        value = loads(part)
        if opened:
            _join(whole, value, opened)
        else:
            whole = value
        at, opened = cut.at + 1, cut.opened
    return whole


def _join(whole: Any, more: Any, opened: bytes) -> None:
    """Add the value of the part behind a cut to that of the parts before."""
    for kind in opened[:-1]:
        if kind == ord("["):
            last, first = whole[-1], more[0]
            whole.extend(more[1:])
        else:
            name = next(reversed(whole))
            last, first = whole[name], more.pop(_GOES_ON)
            whole.update(more)
        whole, more = last, first
    if opened[-1] == ord("["):
        whole.extend(more)
    else:
        whole.update(more)


def _cuts(text: bytes, part_bytes: int) -> Iterator[_Cut]:
    """The last comma of every slice, as far as there is one. Raises _Uncut where brackets do not match."""
    opened = bytearray()
    for one in slices(text, part_bytes):
        outside = one.within == 0
        commas = np.flatnonzero(outside & (one.bytes == ord(",")))
        last = int(commas[-1]) if len(commas) else -1
        places = np.flatnonzero(outside & _IS_BRACKET[one.bytes])
        before = int(np.searchsorted(places, last))
        kinds = one.bytes[places].tolist()
        _follow(opened, kinds[:before])
        if last >= 0 and opened:
            yield _Cut(one.first + last, bytes(opened))
        _follow(opened, kinds[before:])


def _follow(opened: bytearray, kinds: list[int]) -> None:
    """Open and close what the brackets say."""
    for kind in kinds:
        pair = _PAIR.get(kind)
        if pair is None:
            opened.append(kind)
        elif not opened or opened.pop() != pair:
            raise _Uncut
    if len(opened) > _MOST_DEPTH:
        raise _Uncut
