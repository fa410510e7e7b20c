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

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import orjson
from msgspec import Struct, structs
from xxhash import xxh3_64_intdigest

from foreseen.modelspec.prepare import Preparer
from foreseen.protocol.request_id import find_id, is_request_id
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.cache.near import Near
from foreseen.proxy.predict.answer_memory import AnswerMemory, KeptBody, KeptRequest
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.dialects.codecs import HAVE_REQUEST_ID
from foreseen.proxy.predict.dialects.decode import DecodedRequest
from foreseen.proxy.predict.dialects.render import RenderedBody
from foreseen.proxy.predict.facts import hit_lines
from foreseen.proxy.predict.response_bytes import fixed_lines, head_parts
from foreseen.types import Key, Prediction, Row, Space

MAX_REQUEST_BYTES = 32 * 1024
"""A longer request is not indexed as a whole: what that saves is small beside what it costs to carry."""
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


class PreparedRows(Struct):
    """The rows that a request's inputs came to under one preparation, and their keys in the space asked last."""

    preparer: Preparer
    rows: Sequence[Row]
    space: Space | None = None
    parameters: bytes = b""
    keys: Sequence[Key] = ()


class CachedBody(KeptBody):
    """What a body came to. `rendered` is the body of its last reply, and `predictions` what that was made of; `until`
    is the end of the reply's validity in Unix seconds, 0 where near did not have all rows."""

    __slots__ = (
        "_head", "_made_for", "decoded", "facts", "generation", "id", "made_at", "meaning", "pending", "predictions",
        "prepared", "rendered", "rows", "saved", "served", "text",
    )  # fmt: skip

    def __init__(
        self, meaning: Meaning, text: bytes, hashed: int, served: ServedModel, decoded: DecodedRequest,
        prepared: PreparedRows,
    ) -> None:  # fmt: skip
        tensors = sum(tensor.nbytes for row in prepared.rows for tensor in row.tensors)
        size = BODY_OVERHEAD_BYTES + ROW_BYTES * len(prepared.rows) + len(text) + tensors
        large = meaning[3] and len(text) >= LARGE_BYTES
        super().__init__(hashed, size, (meaning, len(text), xxh3_64_intdigest(text[:START_BYTES])) if large else None)
        self.meaning, self.text = meaning, text
        self.served, self.decoded, self.prepared = served, decoded, prepared
        whole_id = decoded.output_options.id if meaning[3] else None
        self.id = None if whole_id is None else orjson.dumps(whole_id)[1:-1]
        """The id that stands in the body itself, as the inside of a JSON string."""
        self.rendered: RenderedBody | None = None
        self.predictions: Sequence[Prediction] = ()
        self.made_at = self.saved = 0.0
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


class CachedRequest(KeptRequest):
    """A whole request that near answered: its bytes, what its head asks, its body's entry, and its reply."""

    __slots__ = ("_reply", "_second", "head", "raw")
    entry: CachedBody

    def __init__(self, raw: bytes, hashed: int, head: RequestHead, entry: CachedBody) -> None:
        assert entry.rendered is not None
        reply = len(entry.rendered.before) + len(entry.rendered.after)
        super().__init__(hashed, REQUEST_OVERHEAD_BYTES + len(raw) + reply, entry)
        self.raw, self.head = raw, head
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
        self.memory = AnswerMemory[CachedBody, CachedRequest](capacity_bytes)
        self._longest = capacity_bytes // 4
        self._near = near
        self._served = served
        self._purges = purges

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
        entry = self.memory.bodies.get(hashed)
        if entry is not None and (entry.meaning != meaning or entry.text != text):
            entry = None
        return Lookup(entry, meaning, text, hashed, own, start)

    def find_large(self, head: RequestHead, pieces: Sequence[bytes], length: int) -> Lookup | None:
        """The same of a large body in the pieces that it came in; None where there is none of just these bytes."""
        start = b"".join(piece[:START_BYTES] for piece in pieces[:2])[:START_BYTES]
        if len(start) < START_BYTES:
            return None
        meaning, hashed = (head.model, head.protocol, head.header_length, True), xxh3_64_intdigest(start)
        entry = self.memory.large.get((meaning, length, hashed))
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
        found = self.memory.requests.get(xxh3_64_intdigest(raw))
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
        if len(lookup.text) > self._longest or not self.memory.came_before(lookup.hash):
            return None
        if lookup.id is not None and not self._is_request_id(lookup, decoded):
            return None
        entry = CachedBody(lookup.meaning, lookup.text, lookup.hash, served, decoded, prepared)
        self.memory.add(entry)
        return entry

    def keep_reply(
        self, entry: CachedBody, rendered: RenderedBody, predictions: Sequence[Prediction], space: Space | None
    ) -> None:
        """Remember an entry's reply. `space` is that of its keys where near had every row and the reply may be sent
        again as it is; None where only its rendering is worth keeping."""
        if self.memory.bodies.get(entry.hash) is not entry:  # it had to go meanwhile
            return
        self.memory.forget_requests(entry)
        grown = BODIES * (len(rendered.after) - (0 if entry.rendered is None else len(entry.rendered.after)))
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
        self.memory.grow(entry, grown)

    def keep_request(self, raw: bytes, head: RequestHead, entry: CachedBody) -> None:
        """Remember a whole request whose reply is its body's, when it comes for the second time. None of its body was
        cut out: what has an id of its own seldom comes again."""
        hashed = xxh3_64_intdigest(raw)
        if len(raw) > self._longest or not self.memory.came_before(hashed):
            return
        if self.memory.bodies.get(entry.hash) is not entry or not entry.until:
            return
        self.memory.add_request(CachedRequest(raw, hashed, structs.replace(head, caller=None), entry))

    def close(self) -> None:
        """Keep nothing any more: a worker that is about to end has to say so with every answer."""
        self._longest = 0
        self.memory.close()

    @staticmethod
    def _is_request_id(lookup: Lookup, decoded: DecodedRequest) -> bool:
        """Whether what was cut out is the request's own id, not that of something within it."""
        assert lookup.id is not None
        same = decoded.output_options.id == lookup.id.decode()
        return same and is_request_id(lookup.text, lookup.start, lookup.id, lookup.meaning[2])
