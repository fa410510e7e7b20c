"""A reply's parts → its bytes on the wire, in the order in which aiohttp writes them."""

from __future__ import annotations

import time
from email.utils import formatdate
from http import HTTPStatus

from foreseen.web.http import BINARY, HEADER_LENGTH, JSON, SERVER

_STATUS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
_JSON_HEAD = f"{_STATUS[200]}Server: {SERVER}\r\nContent-Type: {JSON}\r\n".encode()
_BINARY_HEAD = f"{_STATUS[200]}Server: {SERVER}\r\nContent-Type: {BINARY}\r\n{HEADER_LENGTH}: ".encode() + b"%d\r\n"
_HIT = b"%bCache-Status: foreseen;hit;ttl=%d;detail=%b\r\nAge: %d\r\n%bContent-Length: %d\r\nDate: %b\r\n\r\n%b%b%b"
_dated: tuple[int, bytes] = (-1, b"")


def reply_head(status: int, headers: list[tuple[str, str]], length: int) -> bytes:
    """Status line and headers of any reply; `length` is its body's."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
    return f"{_STATUS[status]}{lines}Content-Length: {length}\r\n".encode() + b"Date: %b\r\n\r\n" % date()


def hit_reply(
    before: bytes,
    after: bytes,
    json_length: int | None,
    own: bytes | None,
    left: int,
    age: int,
    timing: bytes,
    *,
    far: bool,
) -> bytes:
    """A hit, whole: its body in two parts with the request's id between them, seconds left and passed, and the line
    of `Server-Timing`."""
    member = id_member(own)
    return _HIT % (
        hit_start(json_length and json_length + len(member)),
        left,
        b"far" if far else b"near",
        age,
        timing,
        len(before) + len(member) + len(after),
        date(),
        before,
        member,
        after,
    )


def hit_start(json_length: int | None) -> bytes:
    """Status line and the headers of a hit that do not change with time; `json_length` where tensors follow."""
    return _JSON_HEAD if json_length is None else _BINARY_HEAD % json_length


def id_member(own: bytes | None) -> bytes:
    """What a reply says of a plain id, behind the model's version."""
    return b"" if own is None else b',"id":"%b"' % own


def date() -> bytes:
    """`Date` of this second."""
    global _dated  # noqa: PLW0603 - one clock, one text a second
    now = int(time.time())
    if now != _dated[0]:
        _dated = now, formatdate(now, usegmt=True).encode()
    return _dated[1]
