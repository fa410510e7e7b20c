"""The answer cache: rows, keys and replies of bodies and whole requests that were answered before.

Two indexes over the same entries, held within a bound in bytes (`answer_memory.py`); a third, by a body without its
data, is read in `template_answers.py`:

    body      the body under what its head makes of it → `CachedBody`: rows, keys and, if near had all rows, the reply
    request   the bytes of a whole request → the same entry, and the reply of this second
    template  the body up to its data, under what its head makes of it → what is known of bodies that begin so

Both are looked up by XXH3 and confirmed by comparing every byte. A body or request is kept when it comes for the second
time, so one that never comes again costs a hash only.

Clients give each request an `id` of its own, so a body is compared without it (`foreseen/protocol/request_id.py`).

A reply is valid as long as the near entries behind it are (`is_valid`). Every hit looks them up by full keys. They
must be the predictions that the reply was rendered from, fresh, in the space in force, of the same served model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from msgspec import structs
from xxhash import xxh3_64_intdigest

from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.cache.near import Near
from foreseen.proxy.predict.answer_memory import (
    START_BYTES,
    AnswerMemory,
    CachedBody,
    CachedRequest,
    Meaning,
    PreparedRows,
)
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.dialects.codecs import CODECS
from foreseen.proxy.predict.dialects.decode import DecodedRequest
from foreseen.proxy.predict.dialects.render import RenderedBody
from foreseen.proxy.predict.facts import hit_lines
from foreseen.proxy.predict.response_bytes import Reply, fixed_lines, head_parts
from foreseen.types import Prediction, Scope, Space

MAX_REQUEST_BYTES = 32 * 1024
"""A longer request is not indexed as a whole: what that saves is small beside what it costs to carry."""
BODIES = 2
"""The rendered body, and the predictions that it was made of, which near may have evicted."""


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
    def worked_out(self) -> Mapping[tuple[Scope, str, str], int]:
        """What `of` returns, for the spaces whose generation is known already."""

    def of(self, scope: Scope, model: str, digest: str) -> int | None:
        """The generation of a scope's space of a model; None as long as it cannot be known."""


class AnswerCache:
    """The known bodies and requests of one proxy process."""

    def __init__(self, capacity_bytes: int, near: Near, served: Mapping[str, ServedModel], purges: Purges) -> None:
        self.memory = AnswerMemory(capacity_bytes)
        self._bodies, self._requests = self.memory.bodies, self.memory.requests  # looked into by every hit
        self._longest = capacity_bytes // 4
        self._near = near
        self._served = served
        self._purges = purges

    def find(self, head: RequestHead, body: bytes) -> Lookup:
        """What is known of a body under a head that asks this. One too long to keep is not hashed."""
        if len(body) > self._longest:
            return Lookup(None, (head.model, head.protocol, head.header_length, True, head.tenant.scope), body, 0)
        length = head.header_length
        start, own = CODECS[head.protocol].find_id(body, length)
        if own is None:
            text = body
        else:
            text = body[:start] + body[start + len(own) :]
            length = length and length - len(own)
        tenant = head.tenant
        meaning = head.model, head.protocol, length, own is None, tenant.scope
        hashed = xxh3_64_intdigest(text, tenant.seed)
        entry = self._bodies.get(hashed)
        if entry is not None and (entry.meaning != meaning or entry.text != text):
            entry = None
        return Lookup(entry, meaning, text, hashed, own, start)

    def find_large(self, head: RequestHead, pieces: Sequence[bytes], length: int) -> Lookup | None:
        """The same of a large body in the pieces that it came in; None where there is none of just these bytes."""
        start = b"".join(piece[:START_BYTES] for piece in pieces[:2])[:START_BYTES]
        if len(start) < START_BYTES:
            return None
        meaning = head.model, head.protocol, head.header_length, True, head.tenant.scope
        entry = self.memory.large.get((meaning, length, xxh3_64_intdigest(start)))
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
            entry.facts = facts  # read again each second, they are equal
        assert facts is not None
        generation = self._purges.worked_out.get((entry.meaning[4], model, facts.digest))
        if generation is None:
            generation = self._purges.of(entry.meaning[4], model, facts.digest)
        if generation != entry.generation or self._served.get(model) is not served:
            return False
        get = self._near.get
        for key, prediction in entry.rows:  # noqa: SIM110 - a generator costs as much as the look
            if get(key) is not prediction:
                return False
        return True

    def repeated(self, request: CachedRequest, now: float, timing: str | None) -> bytes | Reply:
        """The reply to a whole request, within a second the same: all its bytes, or apart where it is no HTTP."""
        if int(now) != request.second:
            answer = self.reply if CODECS[request.head.protocol].is_http else self.reply_apart
            request.second, request.reply = int(now), answer(request.entry, now, None, timing)
        return request.reply

    def reply(self, entry: CachedBody, now: float, own: bytes | None, timing: str | None) -> bytes:
        """The reply to a body, all its bytes; its head is made once a second. `own` is the id that was cut out."""
        rendered, made_for = entry.rendered, (int(now), timing)
        assert rendered is not None
        if made_for != entry.head_made_for:
            entry.head_made_for = made_for
            entry.head = head_parts(fixed_lines(rendered.json_length) + self.lines(entry, now, timing))
        own = entry.id if own is None else own
        member = b"" if own is None else rendered.id_format % own
        start, end = entry.head
        if member and rendered.json_length is not None:
            start, end = head_parts(fixed_lines(rendered.json_length + len(member)) + self.lines(entry, now, timing))
        size = len(rendered.before) + len(member) + len(rendered.after)
        return b"%b%d%b%b%b%b" % (start, size, end, rendered.before, member, rendered.after)  # type: ignore[str-format] # any buffer

    def reply_apart(self, entry: CachedBody, now: float, own: bytes | None, timing: str | None) -> Reply:
        """The same as status, header lines and body, for who writes them in another form."""
        assert entry.rendered is not None
        body, length = entry.rendered.with_id(entry.decoded.output_options.id if own is None else own.decode())
        return Reply(200, fixed_lines(length) + self.lines(entry, now, timing), body)

    def lines(self, entry: CachedBody, now: float, timing: str | None) -> str:
        """The header lines of an entry's reply that change with time."""
        return hit_lines(int(entry.until - now), max(0, int(now - entry.made_at)), "near", timing)

    def keep(
        self, lookup: Lookup, served: ServedModel, decoded: DecodedRequest, prepared: PreparedRows
    ) -> CachedBody | None:
        """Remember what a body came to when it comes for the second time."""
        if len(lookup.text) > self._longest or not self.memory.came_before(lookup.hash):
            return None
        if lookup.id is not None and not self.is_request_id(lookup, decoded):
            return None
        entry = CachedBody(lookup.meaning, lookup.text, lookup.hash, served, decoded, prepared)
        self.memory.add(entry)
        return entry

    def keep_reply(
        self, entry: CachedBody, rendered: RenderedBody, predictions: Sequence[Prediction], space: Space | None
    ) -> None:
        """Remember an entry's reply. `space` is that of its keys where near had every row and the reply may be sent
        again as it is; None where only its rendering is worth keeping."""
        if self._bodies.get(entry.hash) is not entry:  # it had to go meanwhile
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
            entry.head_made_for = (-1, None)
        self.memory.grow(entry, grown)

    def keep_request(self, raw: bytes, head: RequestHead, entry: CachedBody) -> None:
        """Remember a whole request whose reply is its body's, when it comes for the second time. None of its body was
        cut out: what has an id of its own seldom comes again."""
        hashed = xxh3_64_intdigest(raw)
        if len(raw) > self._longest or not self.memory.came_before(hashed):
            return
        if self._bodies.get(entry.hash) is not entry or not entry.until:
            return
        self.memory.add_request(CachedRequest(raw, hashed, structs.replace(head, caller=None, traceparent=None), entry))

    def close(self) -> None:
        """Keep nothing any more: replies of a worker that ends carry `Connection: close`, and cached ones do not."""
        self._longest = 0
        self.memory.close()

    @staticmethod
    def is_request_id(lookup: Lookup, decoded: DecodedRequest) -> bool:
        """Whether what was cut out is the request's own id, not that of something within it."""
        assert lookup.id is not None
        same = decoded.output_options.id == lookup.id.decode()
        return same and CODECS[lookup.meaning[1]].is_request_id(lookup.text, lookup.start, lookup.id, lookup.meaning[2])


def rendered_before(entry: CachedBody, predictions: Sequence[Prediction]) -> RenderedBody | None:
    """The body that an entry's last reply had, where these predictions would be rendered to the same bytes."""
    own = entry.predictions
    same = len(own) == len(predictions) and all(
        one is other or (one.data == other.data and one.outputs == other.outputs)
        for one, other in zip(own, predictions, strict=True)
    )
    return entry.rendered if same else None
