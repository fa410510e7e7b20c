"""What the answer cache holds, within one bound in bytes: known bodies, whole requests and
templates; the oldest go first.

A body goes with the requests that carry it. Nothing is kept that came only once: its hash is remembered instead.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

import orjson
from msgspec import Struct
from xxhash import xxh3_64_intdigest

from foreseen.modelspec.prepare import Preparer
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.dialects.decode import DecodedRequest
from foreseen.proxy.predict.dialects.render import RenderedBody
from foreseen.proxy.predict.response_bytes import Reply
from foreseen.types import Key, Prediction, Row, Scope, Space

BODY_OVERHEAD_BYTES, REQUEST_OVERHEAD_BYTES = 1500, 800
ROW_BYTES = 400
"""A row with its key and its place in a reply, beside its tensors."""
LARGE_BYTES, START_BYTES = 64 * 1024, 1024
"""A body of the first is looked for by its length and so many first bytes, and compared piece by piece as it came: to
join, hash and compare it are three walks through memory, and this is one."""
REQUESTS_SHARE = 3
"""Whole requests take one part of so many of the memory at most."""
TEMPLATES_SHARE = 16
"""Templates take one part of so many of the memory at most."""
MAX_HASHES = 32_768
"""Hashes of what came once."""

Meaning = tuple[str, str, int | None, bool, Scope]
"""What a head makes of a body: model, protocol, length of the JSON part, whether no id was cut out, and the tenant's
scope. Whatever else of a head decides about an answer has to stand here."""
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
    is the end of the reply's validity in Unix seconds, 0 where near did not have all rows or the body is forgotten."""

    __slots__ = (
        "decoded", "facts", "generation", "hash", "head", "head_made_for", "id", "made_at", "meaning", "pending",
        "predictions", "prepared", "rendered", "requests", "rows", "saved", "served", "size", "start", "text", "until",
    )  # fmt: skip

    def __init__(
        self, meaning: Meaning, text: bytes, hashed: int, served: ServedModel, decoded: DecodedRequest,
        prepared: PreparedRows,
    ) -> None:  # fmt: skip
        self.meaning, self.text, self.hash = meaning, text, hashed
        self.served, self.decoded, self.prepared = served, decoded, prepared
        tensors = sum(tensor.nbytes for row in prepared.rows for tensor in row.tensors)
        self.size = BODY_OVERHEAD_BYTES + ROW_BYTES * len(prepared.rows) + len(text) + tensors
        self.start: Start | None = None
        """Its place among large bodies."""
        if meaning[3] and len(text) >= LARGE_BYTES:
            self.start = meaning, len(text), xxh3_64_intdigest(text[:START_BYTES])
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
        self.head = b"", b""
        self.head_made_for: tuple[int, str | None] = (-1, None)
        """The head of the reply around its length, and the second and `Server-Timing` that it was made for."""
        self.pending: Any = None
        """The request of this body that waits for flights, which others may join."""


class CachedRequest:
    """A whole request that near answered: its bytes, what its head asks, its body's entry, the reply of this second."""

    __slots__ = ("entry", "has_rates", "hash", "head", "raw", "reply", "second", "size")

    def __init__(self, raw: bytes, hashed: int, head: RequestHead, entry: CachedBody) -> None:
        assert entry.rendered is not None
        self.raw, self.hash, self.head, self.entry = raw, hashed, head, entry
        reply = len(entry.rendered.before) + len(entry.rendered.after)
        self.size = REQUEST_OVERHEAD_BYTES + len(raw) + reply
        self.has_rates = head.tenant.limits.has_rates
        self.second = -1
        self.reply: bytes | Reply = b""


class KeptTemplates:
    """Templates of one beginning, and their size in bytes; the last ones first."""

    __slots__ = ("listed", "size")

    def __init__(self) -> None:
        self.listed: list[Any] = []
        self.size = 0


class AnswerMemory:
    """The indexes, which the answer cache reads; it alone confirms what they find."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.bytes = 0
        self.bodies: OrderedDict[int, CachedBody] = OrderedDict()
        self.large: dict[Start, CachedBody] = {}
        self.requests: OrderedDict[int, CachedRequest] = OrderedDict()
        self.templates: OrderedDict[Hashable, KeptTemplates] = OrderedDict()
        self._request_bytes = self._template_bytes = 0
        self._hashes: OrderedDict[int, None] = OrderedDict()

    def came_before(self, hashed: int) -> bool:
        """Whether this is at least the second time."""
        if hashed in self._hashes:
            return True
        self._hashes[hashed] = None
        if len(self._hashes) > MAX_HASHES:
            self._hashes.popitem(last=False)
        return False

    def add(self, entry: CachedBody) -> None:
        """Keep a body in the place of the one of its hash."""
        before = self.bodies.pop(entry.hash, None)
        if before is not None:
            self._forget(before)
        self.bodies[entry.hash] = entry
        if entry.start is not None:
            self.large[entry.start] = entry
        self.bytes += entry.size
        self._fit()

    def grow(self, entry: CachedBody, more: int) -> None:
        """A kept body takes so many bytes more, or less."""
        entry.size += more
        self.bytes += more
        self._fit()

    def add_request(self, request: CachedRequest) -> None:
        """Keep a request whose body is kept."""
        self._forget_request(request.hash)
        self.requests[request.hash] = request
        request.entry.requests.add(request.hash)
        self._request_bytes += request.size
        self.bytes += request.size
        self._fit()

    def add_template(self, start: Hashable, template: Any, size: int) -> None:
        """Keep a template in front of those of its beginning."""
        kept = self.templates.get(start)
        if kept is None:
            kept = self.templates[start] = KeptTemplates()
        kept.listed.insert(0, template)
        self.grow_template(start, size)

    def grow_template(self, start: Hashable, more: int) -> None:
        """The templates of a beginning take so many bytes more; the oldest beginnings go."""
        kept = self.templates.get(start)
        if kept is None:
            return
        kept.size += more
        self._template_bytes += more
        self.bytes += more
        while self._template_bytes * TEMPLATES_SHARE > self.capacity_bytes:
            self.forget_templates(next(iter(self.templates)))
        self._fit()

    def forget_templates(self, start: Hashable) -> None:
        kept = self.templates.pop(start, None)
        if kept is not None:
            self._template_bytes -= kept.size
            self.bytes -= kept.size

    def forget_requests(self, entry: CachedBody) -> None:
        for hashed in list(entry.requests):
            self._forget_request(hashed)

    def close(self) -> None:
        """Keep nothing any more."""
        self.capacity_bytes = 0
        for start in list(self.templates):
            self.forget_templates(start)
        self._fit()

    def _fit(self) -> None:
        while self.bytes > self.capacity_bytes:
            if self._request_bytes * REQUESTS_SHARE > self.capacity_bytes and self.requests:
                self._forget_request(next(iter(self.requests)))
            else:
                self._forget(self.bodies.popitem(last=False)[1])

    def _forget(self, entry: CachedBody) -> None:
        """An entry that is out of the index goes with its requests."""
        self.bytes -= entry.size
        entry.until = 0.0
        self.forget_requests(entry)
        if entry.start is not None and self.large.get(entry.start) is entry:
            del self.large[entry.start]

    def _forget_request(self, hashed: int) -> None:
        request = self.requests.pop(hashed, None)
        if request is not None:
            request.entry.requests.discard(hashed)
            self._request_bytes -= request.size
            self.bytes -= request.size
