"""A responder whose sampled requests get spans. Its class is chosen at start, so that without traces nothing is asked.

A request is sampled by the flag of its `traceparent`. Requests without one are sampled by share, where the operator
wants that (`SamplingResponder`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import structs

from foreseen.proxy.fastpath.responder import Reached, Responder
from foreseen.proxy.predict.answer_cache import Lookup
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.pending_request import PendingRequest
from foreseen.proxy.predict.response_bytes import Reply
from foreseen.telemetry.spans import RequestSpan, is_sampled
from foreseen.web.caller import Caller

if TYPE_CHECKING:
    from foreseen.telemetry.otlp import Traces


def responder_of(traces: Traces | None, **parts: Any) -> Responder:
    """The responder of a process; `parts` are those of every responder."""
    if traces is None:
        return Responder(**parts)
    return (SamplingResponder if traces.share > 0 else TracedResponder)(traces=traces, **parts)


class TracedResponder(Responder):
    """Gives a sampled request its span, as soon as its model is known. Counting the request ends the span."""

    def __init__(self, *, traces: Traces, **parts: Any) -> None:
        super().__init__(**parts)
        self._traces = traces

    def named(self, head: RequestHead, body: bytes) -> RequestHead:
        if not head.model:
            head = super().named(head, body)
        return self._traced(head) if is_sampled(head.traceparent) else head

    def failed(
        self, model: str, protocol: str, error: Exception, started: float, traceparent: str | None = None,
        caller: Caller | None = None,
    ) -> Reply:  # fmt: skip
        """The same; a request that failed before its model was known gets its span now."""
        if is_sampled(traceparent) and not isinstance(traceparent, RequestSpan):
            traceparent = RequestSpan.under(traceparent, self._traces)
        return super().failed(model, protocol, error, started, traceparent, caller)

    def _traced(self, head: RequestHead) -> RequestHead:
        if isinstance(head.traceparent, RequestSpan):
            return head
        span = RequestSpan.under(head.traceparent, self._traces)
        served = self._served.get(head.model)
        if served is not None and served.facts is not None:
            span.digest = served.facts.digest[:8]
        return structs.replace(head, traceparent=span)


class SamplingResponder(TracedResponder):
    """Samples a share of the requests that have no trace context, too."""

    _sampled = _decided = False

    def repeat(self, raw: bytes, caller: Caller | None = None) -> bytes | None:
        """The same; a sampled request is answered by `begin`, which is always called after this."""
        self._sampled = self._traces.samples()
        return None if self._sampled else super().repeat(raw, caller)

    def begin(
        self, head: RequestHead, body: bytes, reached: Reached, raw: bytes | None = None, lookup: Lookup | None = None,
        **more: Any,
    ) -> bytes | Reply | PendingRequest:  # fmt: skip
        if more.get("whole", True):  # else it is `answer` that calls this
            if head.traceparent is None and (self._traces.samples() if raw is None else self._sampled):
                head, raw = self._traced(head), None  # a span is of one request: nothing of it is kept
            self._decided = True
        return super().begin(head, body, reached, raw, lookup, **more)

    async def answer(
        self, head: RequestHead, body: bytes, started: float = 0.0, deadline: float | None = None
    ) -> Reply:  # fmt: skip
        self._decided = deadline is not None  # by `named`, which those that know a deadline have called
        return await super().answer(head, body, started, deadline)

    def named(self, head: RequestHead, body: bytes) -> RequestHead:
        decided, self._decided = self._decided, False
        head = super().named(head, body)
        return self._traced(head) if not decided and head.traceparent is None and self._traces.samples() else head
