"""Writes a reply's status line and headers as bytes, in the order in which aiohttp writes them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import NamedTuple

from foreseen.web.http import BINARY, HEADER_LENGTH, JSON, SERVER

_STATUS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
_JSON_LINES = f"Server: {SERVER}\r\nContent-Type: {JSON}\r\n"
_BINARY_LINES = f"Server: {SERVER}\r\nContent-Type: {BINARY}\r\n{HEADER_LENGTH}: "
_dated: tuple[int, str] = (-1, "")


class Reply(NamedTuple):
    """A reply, but for the headers that its connection adds. `lines` are header lines, each with its line end."""

    status: int
    lines: str
    body: bytes

    def headers(self) -> list[tuple[str, str]]:
        return headers_of(self.lines)


def headers_of(lines: str) -> list[tuple[str, str]]:
    """The names and values of header lines."""
    return [(name, value) for name, _, value in (line.partition(": ") for line in lines.split("\r\n")[:-1])]


def lines_of(headers: Iterable[tuple[str, str]]) -> str:
    return "".join([f"{name}: {value}\r\n" for name, value in headers])


def fixed_lines(json_length: int | None) -> str:
    """The headers of an answer that do not change with time; `json_length` where binary tensors follow."""
    return _JSON_LINES if json_length is None else f"{_BINARY_LINES}{json_length}\r\n"


def reply_head(status: int, lines: str, length: int) -> bytes:
    """Status line and headers of any reply; `length` is its body's."""
    return f"{_STATUS[status]}{lines}Content-Length: {length}\r\nDate: {date()}\r\n\r\n".encode()


def head_parts(lines: str) -> tuple[bytes, bytes]:
    """The head of an answer up to the digits of its `Content-Length`, and what follows them."""
    return f"{_STATUS[200]}{lines}Content-Length: ".encode(), f"\r\nDate: {date()}\r\n\r\n".encode()


def date() -> str:
    """`Date` of this second."""
    global _dated  # noqa: PLW0603 - one clock, one text a second
    now = int(time.time())
    if now != _dated[0]:
        _dated = now, formatdate(now, usegmt=True)
    return _dated[1]
