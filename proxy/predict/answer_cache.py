"""Bodies and whole requests that came before → their rows and keys, and their reply as long as it is valid.

One memory, bounded in bytes, and two indexes over the same entries (a third may follow: by a body without its data):

    body      the body under what its head makes of it → `CachedBody`: rows, keys and, if near had all rows, the reply
    request   the bytes of a whole request → the same entry, and the reply of this second

Both are looked up by XXH3 and confirmed by comparing every byte: a hash only says where to look. Something is kept when
it comes for the second time, so that what never comes again costs a hash. The oldest go first.

Clients give each request an `id` of its own, so a body is compared without it (`foreseen/protocol/request_id.py`).

A reply is as good as the near entries behind it. At every hit they are looked up by their full identities and must be
the very predictions that the reply was rendered from, all fresh, in the space in force, of the same served model, which
says the same of itself (`is_valid`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import orjson
from msgspec import Struct, structs
from xxhash import xxh3_64_intdigest

from foreseen.modelspec.prepare import Preparer
from foreseen.protocol.request_id import find_id, is_request_id
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.cache.near import Near
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.dialects.codecs import HAVE_REQUEST_ID
from foreseen.proxy.predict.dialects.decode import DecodedRequest
from foreseen.proxy.predict.facts import hit_lines
from foreseen.proxy.predict.dialects.render import RenderedBody
from foreseen.proxy.predict.response_bytes import fixed_lines, head_parts
from foreseen.types import Key, Prediction, Row, Space

MAX_REQUEST_BYTES = 32 * 1024
"""A longer request is not indexed as a whole: what that saves is small beside what it costs to carry."""
REQUESTS_SHARE = 3
"""Whole requests take one part of so many of the memory at most."""
MAX_HASHES = 32_768
"""Hashes of what came once."""
BODY_OVERHEAD_BYTES, REQUEST_OVERHEAD_BYTES = 1500, 800
ROW_BYTES = 400
"""A row with its key and its place in a reply, beside its tensors."""
BODIES = 2
"""The rendered body, and the predictions that it was made of, which near may have evicted."""
LARGE_BYTES, START_BYTES = 64 * 1024, 1024
"""A body of the first is looked for by its length and so many first bytes, and compared piece by piece as it came: to
join, hash and compare it are three walks through memory, and this is one."""

Meaning = tuple[str, str, int | None, bool]
"""What a head makes of a body: model, protocol, length of the JSON part, whether no id was cut out. Whatever else of a
head decides about an answer (a caller's scope) has to stand here."""
Start = tuple[Meaning, int, int]


class PreparedRows(Struct):
    """The rows that a request's inputs came to under one preparation, and their keys in the space asked last."""

    preparer: Preparer
    rows: Sequence[Row]
    space: Space | None = None
    parameters: bytes = b""
    keys: Sequence[Key] = ()


class CachedBody:
    """What a body came to. `rendered` is the body of its last reply, and `predictions` what that was made of; `until`
    is the end of the reply's validity in Unix seconds, 0 where near did not have all rows."""

    __slots__ = (
        "_head", "_made_for", "decoded", "facts", "generation", "hash", "id", "made_at", "meaning", "pending",
        "predictions", "prepared", "rendered", "requests", "rows", "saved", "served", "size", "text", "until",
    )  # fmt: skip

    def __init__(
        self, meaning: Meaning, text: bytes, hashed: int, served: ServedModel, decoded: DecodedRequest,
        prepared: PreparedRows,
    ) -> None:  # fmt: skip
        self.meaning, self.text, self.hash = meaning, text, hashed
        self.served, self.decoded, self.prepared = served, decoded, prepared
        tensors = sum(tensor.nbytes for row in prepared.rows for tensor in row.tensors)
        self.size = BODY_OVERHEAD_BYTES + ROW_BYTES * len(prepared.rows) + len(text) + tensors
        self.requests: set[int] = set()
        """Hashes of whole requests that carry this body."""
        whole_id = decoded.output_options.id if meaning[3] else None
        self.id = None if whole_id is None else orjson.dumps(whole_id)[1:-1]
        """The id that stands in the body itself, as the inside of a JSON string."""
        self.rendered: RenderedBody | None = None
        self.predictions: Sequence[Prediction] = ()
        self.until = self.made_at = self.saved = 0.0
        self.rows: tuple[tuple[Key, Prediction], ...] = ()
        self.facts = served.facts
        self.generation: int | None = 0
        self._made_for: tuple[int, str | None] = (-1, None)
        self._head = (b"", b"")
        self.pending: Any = None
        """The request of this body that waits for flights, which others may join."""

    def renders(self, predictions: Sequence[Prediction]) -> RenderedBody | None:
        """The rendered body, if these predictions would be rendered to the same bytes."""
        own = self.predictions
        same = len(own) == len(predictions) and all(
            one is other or (one.data == other.data and one.outputs == other.outputs)
            for one, other in zip(own, predictions, strict=True)
        )
        return self.rendered if same else None

    def lines(self, now: float, timing: str | None) -> str:
        """The header lines of its reply that change with time."""
        return hit_lines(int(self.until - now), max(0, int(now - self.made_at)), "near", timing)

    def reply(self, now: float, own: bytes | None, timing: str | None) -> bytes:
        """Its reply, whole; its head is made once a second. `own` is the id that was cut out."""
        rendered, made_for = self.rendered, (int(now), timing)
        assert rendered is not None
        if made_for != self._made_for:
            self._made_for, lines = made_for, self.lines(now, timing)
            self._head = head_parts(fixed_lines(rendered.json_length) + lines)
        own = self.id if own is None else own
        member = b"" if own is None else rendered.id_format % own
        start, end = self._head
        if member and rendered.json_length is not None:
            start, end = head_parts(fixed_lines(rendered.json_length + len(member)) + self.lines(now, timing))
        size = len(rendered.before) + len(member) + len(rendered.after)
        return b"%b%d%b%b%b%b" % (start, size, end, rendered.before, member, rendered.after)


class CachedRequest:
    """A whole request that near answered: its bytes, what its head asks, its body's entry, and its reply."""

    __slots__ = ("_reply", "_second", "entry", "head", "raw", "size")

    def __init__(self, raw: bytes, head: RequestHead, entry: CachedBody) -> None:
        assert entry.rendered is not None
        self.raw, self.head, self.entry = raw, head, entry
        reply = len(entry.rendered.before) + len(entry.rendered.after)
        self.size = REQUEST_OVERHEAD_BYTES + len(raw) + reply
        self._second, self._reply = -1, b""

    def reply(self, now: float, timing: str | None) -> bytes:
        """Its reply; within a second the same bytes."""
        if int(now) != self._second:
            self._second, self._reply = int(now), self.entry.reply(now, None, timing)
        return self._reply


class Lookup(NamedTuple):
    """A body, looked up: the entry if there is one, and the id that was cut out."""

    entry: CachedBody | None
    meaning: Meaning
    text: bytes
    hash: int
    id: bytes | None = None
    """None where nothing was cut out."""
    start: int = 0
    """Where in the body it stood."""


class Purges(Protocol):
    """What the cache needs to know of purges."""

    @property
    def worked_out(self) -> Mapping[tuple[str, str], int]:
        """What `of` would say, where it is at hand."""

    def of(self, model: str, digest: str) -> int | None:
        """The generation of a model's space; None as long as it cannot be known."""


class AnswerCache:
    """The known bodies and requests of one proxy process."""

    def __init__(self, capacity_bytes: int, near: Near, served: Mapping[str, ServedModel], purges: Purges) -> None:
        self.capacity_bytes = capacity_bytes
        self.bytes = 0
        self._longest = capacity_bytes // 4
        self._near = near
        self._served = served
        self._purges = purges
        self._bodies: OrderedDict[int, CachedBody] = OrderedDict()
        self._large: dict[Start, CachedBody] = {}
        self._requests: OrderedDict[int, CachedRequest] = OrderedDict()
        self._request_bytes = 0
        self._hashes: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._bodies)

    def find(self, head: RequestHead, body: bytes) -> Lookup:
        """What is known of a body under a head that asks this. One too long to keep is not hashed."""
        if len(body) > self._longest:
            return Lookup(None, (head.model, head.protocol, head.header_length, True), body, 0)
        start, own = find_id(body, head.header_length) if head.protocol in HAVE_REQUEST_ID else (0, None)
        length = head.header_length
        if own is None:
            text = body
        else:
            text = body[:start] + body[start + len(own) :]
            length = length and length - len(own)
        meaning, hashed = (head.model, head.protocol, length, own is None), xxh3_64_intdigest(text)
        entry = self._bodies.get(hashed)
        if entry is not None and (entry.meaning != meaning or entry.text != text):
            entry = None
        return Lookup(entry, meaning, text, hashed, own, start)

    def find_large(self, head: RequestHead, pieces: Sequence[bytes], length: int) -> Lookup | None:
        """The same of a large body in the pieces that it came in; None where there is none of just these bytes."""
        start = b"".join(piece[:START_BYTES] for piece in pieces[:2])[:START_BYTES]
        if len(start) < START_BYTES:
            return None
        meaning, hashed = (head.model, head.protocol, head.header_length, True), xxh3_64_intdigest(start)
        entry = self._large.get((meaning, length, hashed))
        if entry is None:
            return None
        at, text = 0, entry.text
        for piece in pieces:
            if not text.startswith(piece, at):
                return None
            at += len(piece)
        return Lookup(entry, meaning, text, entry.hash) if at == len(text) else None

    def find_request(self, raw: bytes) -> CachedRequest | None:
        """What is known of a whole request."""
        found = self._requests.get(xxh3_64_intdigest(raw))
        return found if found is not None and found.raw == raw else None

    def is_valid(self, entry: CachedBody, now: float) -> bool:
        """Whether an entry's reply may be sent: see the head of this file. To ask counts as a look at near's entries,
        so that they stay there."""
        if now >= entry.until:
            return False
        served = entry.served
        facts, model = served.facts, entry.meaning[0]
        if facts is not entry.facts:
            if facts is None or facts != entry.facts:
                return False
            entry.facts = facts  # asked anew each second, it says the same
        assert facts is not None
        generation = self._purges.worked_out.get((model, facts.digest))
        if generation is None:
            generation = self._purges.of(model, facts.digest)
        if generation != entry.generation or self._served.get(model) is not served:
            return False
        get = self._near.get
        for key, prediction in entry.rows:  # noqa: SIM110 - a generator costs as much as the look
            if get(key) is not prediction:
                return False
        return True

    def keep(
        self, lookup: Lookup, served: ServedModel, decoded: DecodedRequest, prepared: PreparedRows
    ) -> CachedBody | None:
        """Remember what a body came to when it comes for the second time."""
        if len(lookup.text) > self._longest or not self._came_before(lookup.hash):
            return None
        if lookup.id is not None and not self._is_request_id(lookup, decoded):
            return None
        before = self._bodies.pop(lookup.hash, None)
        if before is not None:
            self._forget(before)
        entry = self._bodies[lookup.hash] = CachedBody(
            lookup.meaning, lookup.text, lookup.hash, served, decoded, prepared
        )
        self.bytes += entry.size
        if lookup.id is None and len(lookup.text) >= LARGE_BYTES:
            self._large[_start_of(entry)] = entry
        self._fit()
        return entry

    def keep_reply(
        self, entry: CachedBody, rendered: RenderedBody, predictions: Sequence[Prediction], space: Space | None
    ) -> None:
        """Remember an entry's reply. `space` is that of its keys where near had every row and the reply may be sent
        again as it is; None where only its rendering is worth keeping."""
        if self._bodies.get(entry.hash) is not entry:  # it had to go meanwhile
            return
        self._forget_requests(entry)
        grown = BODIES * (len(rendered.after) - (0 if entry.rendered is None else len(entry.rendered.after)))
        entry.size += grown
        self.bytes += grown
        entry.rendered, entry.predictions, entry.rows, entry.until = rendered, predictions, (), 0.0
        facts, keys = entry.served.facts, entry.prepared.keys
        now_in_force = facts is not None and space is not None and facts.digest == space.digest
        if now_in_force and space is not None and space == entry.prepared.space and predictions:
            entry.facts, entry.generation = facts, space.generation
            entry.rows = tuple(zip(keys, predictions, strict=True))
            entry.until = min(prediction.expires_at for prediction in predictions)
            entry.made_at = min(prediction.made_at for prediction in predictions)
            entry.saved = sum(prediction.seconds for prediction in predictions)
            entry._made_for = (-1, None)  # noqa: SLF001 - of this file
        self._fit()

    def keep_request(self, raw: bytes, head: RequestHead, entry: CachedBody) -> None:
        """Remember a whole request whose reply is its body's, when it comes for the second time. None of its body was
        cut out: what has an id of its own seldom comes again."""
        hashed = xxh3_64_intdigest(raw)
        if len(raw) > self._longest or not self._came_before(hashed):
            return
        if self._bodies.get(entry.hash) is not entry or not entry.until:
            return
        self._forget_request(hashed)
        request = self._requests[hashed] = CachedRequest(raw, structs.replace(head, caller=None), entry)
        entry.requests.add(hashed)
        self._request_bytes += request.size
        self.bytes += request.size
        self._fit()

    def close(self) -> None:
        """Keep nothing any more: a worker that is about to end has to say so with every answer."""
        self.capacity_bytes = self._longest = 0
        self._fit()

    def _fit(self) -> None:
        while self.bytes > self.capacity_bytes:
            if self._request_bytes * REQUESTS_SHARE > self.capacity_bytes and self._requests:
                self._forget_request(next(iter(self._requests)))
            else:
                self._forget(self._bodies.popitem(last=False)[1])

    def _forget(self, entry: CachedBody) -> None:
        """An entry that is out of the index goes with its requests."""
        self.bytes -= entry.size
        entry.until = 0.0
        self._forget_requests(entry)
        if len(entry.text) >= LARGE_BYTES and self._large.get(_start_of(entry)) is entry:
            del self._large[_start_of(entry)]

    def _forget_requests(self, entry: CachedBody) -> None:
        for hashed in list(entry.requests):
            self._forget_request(hashed)

    def _forget_request(self, hashed: int) -> None:
        request = self._requests.pop(hashed, None)
        if request is not None:
            request.entry.requests.discard(hashed)
            self._request_bytes -= request.size
            self.bytes -= request.size

    @staticmethod
    def _is_request_id(lookup: Lookup, decoded: DecodedRequest) -> bool:
        """Whether what was cut out is the request's own id, not that of something within it."""
        assert lookup.id is not None
        same = decoded.output_options.id == lookup.id.decode()
        return same and is_request_id(lookup.text, lookup.start, lookup.id, lookup.meaning[2])

    def _came_before(self, hashed: int) -> bool:
        """Whether this is at least the second time."""
        if hashed in self._hashes:
            return True
        self._hashes[hashed] = None
        if len(self._hashes) > MAX_HASHES:
            self._hashes.popitem(last=False)
        return False


def _start_of(entry: CachedBody) -> Start:
    return entry.meaning, len(entry.text), xxh3_64_intdigest(entry.text[:START_BYTES])
