"""A body that came before → what it came to: its rows and their keys, without decode, prepare and key.

Found by XXH3, proved by comparing every byte: a hash only says where to look. What the same bytes mean is decided by
the model, the protocol and `Inference-Header-Content-Length` alone, and these are compared, too.

Clients give each request an `id` of its own, so the body is compared without it. It is cut out where it is the first
member of that name, is plain (letters, digits and a few signs, so it is its own JSON) and turned out to be the
request's own: another one in its place was read as the request's id. Then bodies that are equal but for those bytes
ask the same. What was made of one body is kept when it comes for the second time, in bounded memory, the oldest go; it
is good for one preparation of one served model, and keys are good for one space.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

from msgspec import Struct
from xxhash import xxh3_64_intdigest

from foreseen.modelspec.prepare import Preparer
from foreseen.protocol.wire import request_id
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.decode import DecodedRequest
from foreseen.proxy.predict.render import Drawn
from foreseen.proxy.predict.replay import Kept
from foreseen.types import Key, OutputOptions, Row, Space

MAX_HINTS = 16_384
WINDOW_BYTES = 4096
"""How far into a body an `id` is looked for."""
OVERHEAD_BYTES = 1500
ROW_BYTES = 400
"""A row with its key and its place in a kept reply, beside its tensors."""
BODIES = 3
"""The rendered body, the predictions that it was made of, which near may have evicted, and the reply of this second."""
_MEMBER = b'"id":'
_PLAIN = re.compile(rb"[0-9A-Za-z._:/+-]{1,128}")

LARGE_BYTES, START_BYTES = 64 * 1024, 1024
"""A body of the first is looked for by its length and so many first bytes, and compared piece by piece as it came: to
join, hash and compare it are three walks through memory, and this is one."""

Way = tuple[str, str, int | None, bool]
Start = tuple[Way, int, int]


class Known(Struct):
    """The rows that the inputs of a request came to under one preparation, and their keys in the space asked last."""

    preparer: Preparer
    rows: Sequence[Row]
    space: Space | None = None
    parameters: bytes = b""
    keys: Sequence[Key] = ()


class Entry:
    """What a body came to. `drawn` is the body of its last reply, `kept` the whole of it where near had every row."""

    __slots__ = ("asked", "drawn", "hint", "in_flight", "kept", "known", "served", "size", "text", "way")

    def __init__(
        self, way: Way, text: bytes, hint: int, served: ServedModel, asked: DecodedRequest, known: Known
    ) -> None:
        self.way = way
        self.text = text
        self.hint = hint
        self.served = served
        self.asked = asked
        self.known = known
        self.drawn: Drawn | None = None
        self.kept: Kept | None = None
        self.in_flight: Any = None
        """The visit of this body that has not landed yet, which others may join."""
        tensors = sum(tensor.nbytes for row in known.rows for tensor in row.tensors)
        self.size = OVERHEAD_BYTES + ROW_BYTES * len(known.rows) + len(text) + tensors

    def output_options(self, own: bytes | None) -> OutputOptions:
        """The wish of a request whose id was this, None where none was cut out."""
        output_options = self.asked.output_options
        return (
            output_options
            if own is None
            else OutputOptions(output_options.protocol, own.decode(), output_options.outputs, output_options.binary)
        )


class Found(NamedTuple):
    """A body, looked up: the entry if there is one, and the id that was cut out."""

    entry: Entry | None
    way: Way
    text: bytes
    hint: int
    id: bytes | None = None
    """None where nothing was cut out."""
    start: int = 0
    """Where in the body it stood."""


class Shortcuts:
    """The known bodies of one proxy process, bounded in bytes."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.bytes = 0
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._hints: OrderedDict[int, None] = OrderedDict()
        self._large: dict[Start, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, ask: RequestHead, body: bytes) -> Found:
        """What is known of a body under a head that asks this."""
        start, own = _id_of(ask, body)
        length = ask.header_length
        if own is None:
            text = body
        else:
            text = body[:start] + body[start + len(own) :]
            length = length and length - len(own)
        way, hint = (ask.model, ask.protocol, length, own is None), xxh3_64_intdigest(text)
        entry = self._entries.get(hint)
        if entry is not None and (entry.way != way or entry.text != text):
            entry = None
        return Found(entry, way, text, hint, own, start)

    def find_whole(self, ask: RequestHead, pieces: Sequence[bytes], length: int) -> Found | None:
        """The same of a large body in the pieces that it came in; None where there is none of just these bytes."""
        start = b"".join(piece[:START_BYTES] for piece in pieces[:2])[:START_BYTES]
        if len(start) < START_BYTES:
            return None
        way, hint = (ask.model, ask.protocol, ask.header_length, True), xxh3_64_intdigest(start)
        entry = self._large.get((way, length, hint))
        if entry is None:
            return None
        at, text = 0, entry.text
        for piece in pieces:
            if not text.startswith(piece, at):
                return None
            at += len(piece)
        return Found(entry, way, text, entry.hint) if at == len(text) else None

    def keep(self, found: Found, served: ServedModel, asked: DecodedRequest, known: Known) -> Entry | None:
        """Remember what a body came to when it comes for the second time."""
        if len(found.text) > self.capacity_bytes // 4 or not self._seen(found.hint):
            return None
        if found.id is not None and not _is_the_requests(found, asked):
            return None
        before = self._entries.pop(found.hint, None)
        if before is not None:
            self._gone(before)
        entry = self._entries[found.hint] = Entry(found.way, found.text, found.hint, served, asked, known)
        self.bytes += entry.size
        if found.id is None and len(found.text) >= LARGE_BYTES:
            self._large[_start_of(entry)] = entry
        self._fit()
        return entry

    def draw(self, entry: Entry, drawn: Drawn) -> None:
        """Remember the body of an entry's reply."""
        if self._entries.get(entry.hint) is not entry:  # it had to go meanwhile
            return
        before = 0 if entry.drawn is None else len(entry.drawn.after)
        grown = BODIES * (len(drawn.after) - before)
        entry.drawn = drawn
        entry.size += grown
        self.bytes += grown
        self._fit()

    def _fit(self) -> None:
        while self.bytes > self.capacity_bytes:
            _, gone = self._entries.popitem(last=False)
            self._gone(gone)

    def _gone(self, entry: Entry) -> None:
        self.bytes -= entry.size
        if len(entry.text) >= LARGE_BYTES and self._large.get(_start_of(entry)) is entry:
            del self._large[_start_of(entry)]

    def _seen(self, hint: int) -> bool:
        """Whether this is at least the second time."""
        if hint in self._hints:
            return True
        self._hints[hint] = None
        if len(self._hints) > MAX_HINTS:
            self._hints.popitem(last=False)
        return False


def _start_of(entry: Entry) -> Start:
    return entry.way, len(entry.text), xxh3_64_intdigest(entry.text[:START_BYTES])


def plain_id(own: str) -> bytes | None:
    """An id's bytes where they are its own JSON, but for the quotes."""
    return own.encode() if own.isascii() and _PLAIN.fullmatch(own.encode()) else None


def _is_the_requests(found: Found, asked: DecodedRequest) -> bool:
    """Whether what was cut out is the request's own id, not that of something within it: another one in its place, of
    the same length, is then the request's."""
    assert found.id is not None
    other = found.id[:-1] + (b"1" if found.id[-1:] == b"0" else b"0")
    length = found.way[2]
    body = found.text[: found.start] + other + found.text[found.start :]
    read = request_id(body if length is None else body[: length + len(other)])
    return asked.output_options.id == found.id.decode() and read == other.decode()


def _id_of(ask: RequestHead, body: bytes) -> tuple[int, bytes | None]:
    """Where the first member `id` of a V2 body has its characters, and these, where they are plain."""
    if ask.protocol != "v2" or ask.header_length == 0:
        return 0, None
    start = body.find(_MEMBER, 0, WINDOW_BYTES if ask.header_length is None else min(ask.header_length, WINDOW_BYTES))
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
