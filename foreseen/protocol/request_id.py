"""Finds the `id` in a V2 body, so that two bodies that differ only in it count as the same.

It is found where it is the first member of that name and plain: letters, digits and a few signs, so it is its own JSON.
That it is the request's own, not that of something within it, is proved: another one in its place is read as the
request's.
"""

from __future__ import annotations

import re

from foreseen.protocol.wire import request_id

WINDOW_BYTES = 4096
"""How far into a body an `id` is looked for."""
_MEMBER = b'"id":'
_PLAIN = re.compile(rb"[0-9A-Za-z._:/+-]{1,128}")


def find_id(body: bytes, header_length: int | None) -> tuple[int, bytes | None]:
    """The position of a body's first member `id`, and its characters, if they are plain. `header_length` is the
    length of the JSON part, None where it is all of the body."""
    if header_length == 0:
        return 0, None
    start = body.find(_MEMBER, 0, WINDOW_BYTES if header_length is None else min(header_length, WINDOW_BYTES))
    if start < 0:
        return 0, None
    start += len(_MEMBER)
    if body[start : start + 1] == b" ":
        start += 1
    start += 1
    plain = _PLAIN.match(body, start)
    if plain is None or body[start - 1] != 0x22 or body[plain.end() : plain.end() + 1] != b'"':
        return 0, None
    return start, plain[0]


def is_request_id(text: bytes, start: int, found: bytes, header_length: int | None) -> bool:
    """Whether `found`, cut out of a well-formed body at `start`, was the request's id: another one of the same length
    in its place is then the request's. `text` and `header_length` are without it."""
    other = found[:-1] + (b"1" if found[-1:] == b"0" else b"0")
    body = text[:start] + other + text[start:]
    return request_id(body if header_length is None else body[: header_length + len(other)]) == other.decode()
