"""A responder that passes the requests of chosen callers to the candidate's own responder.

The two share near and far, but no pipeline and no answer cache. The digest of the model that answers decides about the
key space, as always: no answer of one is ever the other's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import structlog
from msgspec import structs

from foreseen.errors import ForeseenError
from foreseen.proxy.canary.canary_share import CanaryShare
from foreseen.proxy.fastpath.responder import Reached, Responder
from foreseen.proxy.predict.answer_cache import Lookup
from foreseen.proxy.predict.ask import RequestHead, charged_to
from foreseen.proxy.predict.pending_request import PendingRequest
from foreseen.proxy.predict.response_bytes import Reply
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.web.caller import Caller

log = structlog.get_logger()


class CanaryResponder(Responder):
    """Answers by the model in force, or by its candidate."""

    def __init__(self, candidate: Responder, canary: CanaryShare, metrics: ProxyMetrics, **parts: Any) -> None:
        """`candidate` answers with the candidate in the place of its model."""
        super().__init__(**parts)
        self._candidate = candidate
        self._share, self._metrics = canary, metrics
        self._same = False

    def repeat(self, raw: bytes, caller: Caller | None = None) -> bytes | Reply | None:
        """The same bytes may come from callers of both sides: each side is asked for its own."""
        started = time.perf_counter()
        for side, cache in (("live", self.cache), ("candidate", self._candidate.cache)):
            request = cache.find_request(raw)
            if request is None or self._side_of(head := structs.replace(request.head, caller=caller)) != side:
                continue
            reply = super().repeat(raw, caller) if side == "live" else self._candidate.repeat(raw, caller)
            if reply is not None and head.model == self._share.model:
                self._answered(side, head.model, started, reply)
            return reply
        return None

    def find_large(self, head: RequestHead, pieces: Sequence[bytes], length: int) -> Lookup | None:
        """What is known of a large body by the model that answers this caller."""
        if head.model and self._side_of(head) == "candidate":
            return self._candidate.find_large(head, pieces, length)
        return super().find_large(head, pieces, length)

    def begin(
        self, head: RequestHead, body: bytes, reached: Reached, raw: bytes | None = None, lookup: Lookup | None = None,
        *, started: float = 0.0, **more: Any,
    ) -> bytes | Reply | PendingRequest:  # fmt: skip
        """The same, by the model that answers this caller."""
        if not head.model:
            try:
                head, lookup = self.named(head, body), None
            except ForeseenError:  # the error becomes a reply below
                return super().begin(head, body, reached, raw, lookup, started=started, **more)
        if head.model != self._share.model:
            return super().begin(head, body, reached, raw, lookup, started=started, **more)
        started = started or time.perf_counter()
        side = self._side_of(head)
        begin = self._candidate.begin if side == "candidate" else super().begin
        then = partial(self._reached, side, head.model, started, reached)
        reply = begin(head, body, then, raw, lookup, started=started, **more)
        if not isinstance(reply, PendingRequest):
            self._answered(side, head.model, started, reply)
        return reply

    def _side_of(self, head: RequestHead) -> str:
        """`candidate`, or `live`: also of callers of a candidate that is not ready, or that is the model in force."""
        if head.model != self._share.model or not self._share.chosen(charged_to(head)):
            return "live"
        candidate, live = self._candidate.served.get(head.model), self.served.get(head.model)
        if candidate is None or live is None or candidate is live or not candidate.ready:
            return "live"
        same = live.facts is not None and candidate.facts is not None and live.facts.digest == candidate.facts.digest
        if same and not self._same:
            log.warning("canary: the candidate has the digest of the model in force", model=head.model)
        self._same = same
        return "live" if same else "candidate"

    def _reached(self, side: str, model: str, started: float, reached: Reached, reply: Reply) -> None:
        self._answered(side, model, started, reply)
        reached(reply)

    def _answered(self, side: str, model: str, started: float, reply: bytes | Reply) -> None:
        """Count a reply by which of the two gave it."""
        status = str(reply.status) if isinstance(reply, Reply) else "200"
        self._metrics.canary_requests.labels(model, side, status).inc()
        self._metrics.canary_seconds.of(model, side).add(time.perf_counter() - started)
