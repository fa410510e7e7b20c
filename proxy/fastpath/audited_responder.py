"""A responder that offers the hits of the fast way to the audit. Its class is chosen at start, as with traces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.fastpath.responder import Responder
from foreseen.proxy.fastpath.traced_responder import SamplingResponder, TracedResponder
from foreseen.proxy.fastpath.traced_responder import responder_of as unaudited_of
from foreseen.proxy.predict.answer_cache import Lookup
from foreseen.proxy.predict.answer_memory import CachedBody
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.audit.auditor import Auditor
from foreseen.proxy.predict.template_answers import TemplateHit, TemplateRequest

if TYPE_CHECKING:
    from foreseen.telemetry.otlp import Traces


def responder_of(traces: Traces | None, auditor: Auditor | None, **parts: Any) -> Responder:
    """The responder of a process; `parts` are those of every responder."""
    if auditor is None:
        return unaudited_of(traces, **parts)
    if traces is None:
        return AuditedResponder(auditor=auditor, **parts)
    return (AuditedSamplingResponder if traces.share > 0 else AuditedTracedResponder)(
        auditor=auditor, traces=traces, **parts
    )


class AuditedResponder(Responder):
    """Counts the rows of each hit of the fast way down to the next that is drawn."""

    def __init__(self, *, auditor: Auditor, **parts: Any) -> None:
        super().__init__(**parts)
        self._auditor, self._draws = auditor, auditor.draws

    def _count(self, head: RequestHead, entry: CachedBody, started: float) -> None:
        super()._count(head, entry, started)
        draws, rows = self._draws, len(entry.rows)
        if draws.left >= rows:
            draws.left -= rows
        else:
            self._auditor.offer_body(entry)

    def _cut(
        self, head: RequestHead, served: ServedModel, lookup: Lookup, now: float
    ) -> TemplateHit | TemplateRequest | None:
        cut = super()._cut(head, served, lookup, now)
        if isinstance(cut, TemplateHit):
            draws, rows = self._draws, cut.rows
            if draws.left >= rows:
                draws.left -= rows
            else:
                self._auditor.offer_template(head, served, lookup, rows)
        return cut


class AuditedTracedResponder(AuditedResponder, TracedResponder):
    """The same with spans of sampled requests."""


class AuditedSamplingResponder(AuditedResponder, SamplingResponder):
    """The same with spans of a share of all requests."""
