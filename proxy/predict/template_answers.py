"""Answers bodies that match a known template (`body_templates.py`) from near, if near has every row.

It takes the steps of the normal path without the objects in between: slices of the body become frames and keys, near is
looked up, entries are judged as `Tiers.look_near` judges them, and their rendered fragments are joined to the reply
that `render` would make. A template is made from a request on the normal path, and kept only if it yields the same keys
and the same bytes for that request. Otherwise the request takes the normal path: if the preparation changed, a purge is
not yet known, a row is missing or stale, or an output has another shape.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol

import orjson
from msgspec import structs

from foreseen.errors import ForeseenError
from foreseen.protocol.typed_lists import REFUSED
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.cache.freshness import fresh
from foreseen.proxy.cache.near import NearEntry
from foreseen.proxy.cache.tiers import Tiers
from foreseen.proxy.predict.answer_cache import AnswerCache, Lookup
from foreseen.proxy.predict.answer_memory import CachedBody, Meaning, PreparedRows
from foreseen.proxy.predict.dialects.body_templates import MAX_TEMPLATE_BYTES, BodyTemplate, timeout_in
from foreseen.proxy.predict.dialects.codecs import CODECS
from foreseen.proxy.predict.dialects.decode import DecodedRequest
from foreseen.proxy.predict.dialects.fragments import fragment
from foreseen.proxy.predict.dialects.render import RenderedBody
from foreseen.proxy.predict.dialects.reply_skeletons import ReplySkeleton
from foreseen.proxy.predict.facts import hit_lines
from foreseen.proxy.predict.response_bytes import Reply, fixed_lines
from foreseen.proxy.predict.template_rows import Parsed, TemplateRows, rows_of
from foreseen.types import Key, Prediction, Scope, Space
from foreseen.web.heavy import on_loop_bytes

MAX_ROWS = 256
"""More are looked up in slices, on the normal path."""
MAX_ALIKE = 16
"""Templates of one beginning: they are tried one after the other."""
MAX_STARTS = 256
"""Last beginnings that are remembered, by meaning: 1 MiB at most."""
MAX_SKELETONS = 8
"""Of one template whose bodies have any number of rows."""
TEMPLATE_BYTES = 6000
"""What one takes beside its text."""
CREDIT, LATER = 32, 64
"""So many templates may be made at once; each that is used for the first time, and each so many requests that had
none, allow another: bodies that all differ in something else cost no more than they did."""
Start = tuple[Meaning, bytes]
_REFUSED = (*REFUSED, ForeseenError, ValueError)


class TemplateHit(NamedTuple):
    """The answer to a request whose rows near has: its reply's body, the id that belongs into it as the inside of a
    JSON string, and what is to be said of it. `entry` is its body's where that came before and is kept."""

    rendered: RenderedBody
    own: bytes | None
    until: float
    made_at: float
    saved: float
    rows: int
    entry: CachedBody | None = None

    def reply(self, now: float, timing: str | None) -> Reply:
        """The reply. `timing` is what `Server-Timing` says."""
        rendered = self.rendered
        before, after, length = rendered.before, rendered.after, rendered.json_length
        member = b"" if self.own is None else rendered.id_format % self.own
        lines = hit_lines(int(self.until - now), max(0, int(now - self.made_at)), "near", timing)
        return Reply(200, fixed_lines(length and length + len(member)) + lines, b"".join((before, member, after)))


class TemplateRequest(NamedTuple):
    """A request that near cannot answer by itself: what decoding and preparation would have made of it."""

    template: _Template
    decoded: DecodedRequest
    prepared: PreparedRows


class InForce(Protocol):
    """What has to be known of spaces."""

    def space(self, served: ServedModel, scope: Scope) -> Space: ...
    def in_force(self, served: ServedModel, space: Space) -> bool: ...


class _Template:
    """A template, and the way that its requests' rows take. `start` is its key in the memory."""

    __slots__ = (
        "body", "decoded", "kept", "longest", "preparer", "rows", "served", "skeletons", "space", "start", "timeouts",
        "used",
    )  # fmt: skip

    def __init__(
        self, body: BodyTemplate, rows: TemplateRows, start: Hashable, served: ServedModel, decoded: DecodedRequest,
        prepared: PreparedRows, space: Space,
    ) -> None:  # fmt: skip
        self.body, self.rows, self.start, self.served, self.decoded = body, rows, start, served, decoded
        self.preparer, self.space, self.kept, self.used = prepared.preparer, space, False, False
        self.skeletons: dict[int, ReplySkeleton | None] = {}
        self.timeouts = [at for at, hole in enumerate(body.holes) if hole.tensor is None]
        self.longest = on_loop_bytes(prepared.preparer.heavy)
        """Longer bodies are decoded off the event loop."""

    @property
    def protocol(self) -> str:
        return "v1" if self.decoded.output_options.protocol == "v1-columns" else self.decoded.output_options.protocol

    def decode(self, slices: Sequence[bytes], parsed: Parsed, lookup: Lookup, tokens: int | None) -> TemplateRequest:
        """What decoding and preparation would have made of a request of this template."""
        inputs, rows = self.rows.decoded(parsed)
        options, seconds = self.decoded.output_options, self.decoded.timeout_seconds
        if lookup.id is not None:
            options = structs.replace(options, id=lookup.id.decode())
        if options.embedding is not None:
            options = structs.replace(options, embedding=structs.replace(options.embedding, tokens=tokens))
        for at in self.timeouts:
            seconds = timeout_in(slices[at])
        decoded = structs.replace(self.decoded, inputs=inputs, output_options=options, timeout_seconds=seconds)
        return TemplateRequest(self, decoded, PreparedRows(self.preparer, rows))


class TemplateAnswers:
    """Answers requests by the templates that the answer cache holds, and makes these."""

    def __init__(self, cache: AnswerCache, tiers: Tiers, server: InForce) -> None:
        self._cache, self._memory = cache, cache.memory
        self._tiers, self._near, self._server = tiers, tiers.near, server
        self._credit, self._without = CREDIT, 0
        self._starts: dict[Meaning, Start] = {}
        """How the last body of each meaning began."""

    def answer(self, served: ServedModel, lookup: Lookup, now: float) -> TemplateHit | TemplateRequest | None:
        """The answer to a request whose body is not known and that asks for nothing but its rows; None where the body
        has to be decoded."""
        start, text = self._starts.get(lookup.meaning), lookup.text
        if start is None or not text.startswith(start[1]) or text[len(start[1]) : len(start[1]) + 1].isspace():
            start = self._start_of(lookup)
        kept = None if start is None else self._memory.templates.get(start)
        if kept is None:
            return None
        id_start = None if lookup.id is None else lookup.start
        for template in kept.listed:
            slices = template.body.slices(text, id_start)
            if slices is not None:
                break
        else:
            return None
        if template is not kept.listed[0]:
            kept.listed.remove(template)
            kept.listed.insert(0, template)
        if template.served is not served or served.preparer() is not template.preparer:
            self._memory.forget_templates(template.start)
            return None
        try:
            return self._answered(template, slices, lookup, now)
        except _REFUSED:
            return None

    def _answered(
        self, template: _Template, slices: Sequence[bytes], lookup: Lookup, now: float
    ) -> TemplateHit | TemplateRequest | None:
        """Raises one of `_REFUSED` where a slice is not what the template takes there."""
        served, rows = template.served, template.rows
        if len(lookup.text) > template.longest or "near" not in served.steps:
            return None
        for at in template.timeouts:
            timeout_in(slices[at])
        if not self._server.in_force(served, template.space):
            template.space = self._server.space(served, template.space.scope)
            if not self._server.in_force(served, template.space):  # what was purged is not known
                return None
        parsed = rows.parsed(slices)
        frames, tokens = rows.frames(parsed)
        if not 0 < len(frames) <= MAX_ROWS:
            return None
        keys = self._tiers.keys_of(template.space, frames)
        entries = self._near.entries(keys)
        hit = None if entries is None else self._hit(template, keys, entries, lookup, tokens, now)
        if hit is not None and not self._memory.came_before(lookup.hash):
            return hit
        request = template.decode(slices, parsed, lookup, tokens)
        request.prepared.space, request.prepared.keys = template.space, keys
        request.prepared.parameters = request.decoded.parameters
        if hit is None or entries is None:
            return request
        predictions = [entry.prediction for entry in entries]
        return hit._replace(entry=self._keep(template, lookup, request, hit, predictions))

    def _hit(
        self, template: _Template, keys: Sequence[Key], entries: Sequence[NearEntry], lookup: Lookup,
        tokens: int | None, now: float,
    ) -> TemplateHit | None:  # fmt: skip
        """The reply, where all entries are fresh and have the same outputs."""
        heads = entries[0].prediction.outputs
        until = made_at = math.inf
        saved = 0.0
        for entry in entries:
            one = entry.prediction
            if one.outputs is not heads and one.outputs != heads:
                return None
            if one.expires_at < until:
                until = one.expires_at
            if one.made_at < made_at:
                made_at = one.made_at
            saved += one.seconds
        skeleton = self._skeleton(template, entries[0].prediction, len(entries)) if fresh(until, now) else None
        if skeleton is None:
            return None
        self._near.used(entries)
        if skeleton.json_length is None:
            columns = [self._near.texts(keys, entries, form, fragment) for form in skeleton.forms]
        else:  # bytes, which near has anyhow
            columns = [[fragment(entry.prediction, form) for entry in entries] for form in skeleton.forms]
        rendered = skeleton.filled(columns, tokens)
        if not template.used:
            template.used, self._credit = True, min(CREDIT, self._credit + 1)
        own = lookup.id
        if own is None and template.decoded.output_options.id is not None:
            own = orjson.dumps(template.decoded.output_options.id)[1:-1]
        return TemplateHit(rendered, own, until, made_at, saved, len(entries))

    def _skeleton(self, template: _Template, prediction: Prediction, count: int) -> ReplySkeleton | None:
        known = template.skeletons.get(count)
        if known is not None and (known.heads is prediction.outputs or known.heads == prediction.outputs):
            return known
        if known is None and count in template.skeletons:
            return None
        if len(template.skeletons) >= MAX_SKELETONS:
            template.skeletons.clear()
        options = template.decoded.output_options
        dialect, manifest = CODECS[template.protocol].template, template.served.manifest
        assert dialect is not None
        made = template.skeletons[count] = dialect.skeleton(manifest, prediction.outputs, count, options)
        if made is not None and template.kept:
            self._memory.grow_template(template.start, made.size)
        return made

    def _keep(
        self, template: _Template, lookup: Lookup, request: TemplateRequest, hit: TemplateHit,
        predictions: Sequence[Prediction],
    ) -> CachedBody | None:  # fmt: skip
        """A body that comes for the second time is kept with its reply, as on the normal path."""
        entry = self._cache.keep(lookup, template.served, request.decoded, request.prepared)
        if entry is not None:
            self._cache.keep_reply(entry, hit.rendered, predictions, template.space)
        return entry

    def render(self, request: TemplateRequest, predictions: Sequence[Prediction]) -> RenderedBody | None:
        """What the predictions of a request that was cut are rendered to; None where the general way renders them."""
        heads = predictions[0].outputs if predictions else ()
        if not heads or any(one.outputs != heads for one in predictions):
            return None
        skeleton = self._skeleton(request.template, predictions[0], len(predictions))
        if skeleton is None:
            return None
        embedding = request.decoded.output_options.embedding
        columns = [[fragment(one, form) for one in predictions] for form in skeleton.forms]
        return skeleton.filled(columns, None if embedding is None else embedding.tokens)

    def learn(
        self, served: ServedModel, lookup: Lookup, decoded: DecodedRequest, prepared: PreparedRows,
        predictions: Sequence[Prediction], rendered: RenderedBody,
    ) -> None:  # fmt: skip
        """Make a template of a request that was answered on the normal path, where it is ordinary."""
        self._without += 1
        if self._without % LATER == 0:
            self._credit = min(CREDIT, self._credit + 1)
        start, manifest = self._start_of(lookup), served.manifest
        plain = decoded.lane == "online" and not decoded.sequence and decoded.ids is None and manifest.upstream is None
        if self._credit <= 0 or start is None or not plain or manifest.rows != "each" or prepared.space is None:
            return
        try:
            template = self._made(start, served, lookup, decoded, prepared)
            if template is None or not self._brings(template, lookup, prepared, predictions, rendered):
                return
        except _REFUSED:
            return
        self._credit -= 1
        kept = self._memory.templates.get(start)
        if kept is not None and len(kept.listed) >= MAX_ALIKE:
            kept.listed.pop()
        sizes = [one.size for one in template.skeletons.values() if one is not None]
        template.kept = True
        self._memory.add_template(start, template, TEMPLATE_BYTES + template.body.size + sum(sizes))

    def _made(
        self, start: Hashable, served: ServedModel, lookup: Lookup, decoded: DecodedRequest, prepared: PreparedRows
    ) -> _Template | None:
        protocol, length = lookup.meaning[1:3]
        dialect = CODECS[protocol].template
        holes = None if dialect is None else dialect.holes(lookup.text, length, decoded, served.manifest)
        if holes is None or prepared.space is None:
            return None
        if lookup.id is not None and not self._cache.is_request_id(lookup, decoded):
            return None
        body = BodyTemplate(lookup.text, holes, None if lookup.id is None else lookup.start)
        rows = rows_of(decoded, holes, prepared.preparer, served.framer, prepared.rows, lookup.text)
        if rows is None or body.size > MAX_TEMPLATE_BYTES:
            return None
        return _Template(body, rows, start, served, decoded, prepared, prepared.space)

    def _brings(
        self, template: _Template, lookup: Lookup, prepared: PreparedRows, predictions: Sequence[Prediction],
        rendered: RenderedBody,
    ) -> bool:  # fmt: skip
        """Whether the template makes of its own request what the normal path made of it."""
        slices = template.body.slices(lookup.text, None if lookup.id is None else lookup.start)
        if slices is None or prepared.space is None:
            return False
        frames, tokens = template.rows.frames(template.rows.parsed(slices))
        if self._tiers.keys_of(prepared.space, frames) != list(prepared.keys):
            return False
        if any(one.outputs != predictions[0].outputs for one in predictions):
            return True
        skeleton = self._skeleton(template, predictions[0], len(predictions))
        if skeleton is None:
            return True
        columns = [[fragment(one, form) for one in predictions] for form in skeleton.forms]
        return skeleton.filled(columns, tokens) == rendered

    def _start_of(self, lookup: Lookup) -> Start | None:
        """The key of the templates that a body may be of."""
        protocol, length = lookup.meaning[1:3]
        dialect = CODECS[protocol].template
        end = None if dialect is None else dialect.start_of(lookup.text, length)
        if end is None or end > MAX_TEMPLATE_BYTES:
            return None
        if len(self._starts) >= MAX_STARTS:
            self._starts.clear()
        made = self._starts[lookup.meaning] = lookup.meaning, lookup.text[:end]
        return made
