"""Answers predict requests: each gets a reply, is counted and logged. Errors become replies here.

Requests that aiohttp reads and those whose head a connection knows (`fast_connection.py`) are answered alike: the fast
way where the answer cache has a valid reply, else the normal one (`PendingRequest`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from msgspec import structs

from foreseen.errors import BadRequest, ForeseenError, ModelNotAllowed, ModelUnavailable, UnknownModel
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.cache.freshness import NO_CONTROL
from foreseen.proxy.cache.waits import Deadlines
from foreseen.proxy.predict.answer_cache import AnswerCache, Lookup
from foreseen.proxy.predict.answer_memory import CachedBody
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.dialects.codecs import CODECS
from foreseen.proxy.predict.pending_request import PendingRequest
from foreseen.proxy.predict.response_bytes import Reply, lines_of
from foreseen.proxy.predict.sampling.row_sampler import HitSamplers, RowSampler
from foreseen.proxy.predict.serve import Server
from foreseen.proxy.predict.template_answers import TemplateHit
from foreseen.telemetry.spans import RequestSpan, is_sampled
from foreseen.tenants.keyring import Keyring
from foreseen.tenants.tenant import Tenant
from foreseen.web.caller import Caller
from foreseen.web.http import internal

if TYPE_CHECKING:
    from foreseen.telemetry.otlp import Traces

REPEAT, KNOWN_BODY, KNOWN_TEMPLATE = "replay", "shortcut", "template"
"""What `Server-Timing` says of a cached reply to a whole request, to a body, and of known rows in a known template."""

Reached = Callable[[Reply], None]


class Responder:
    """Answers, counts and logs predict requests of one proxy process."""

    def __init__(
        self,
        *,
        served: Mapping[str, ServedModel],
        server: Server,
        cache: AnswerCache,
        clock: Callable[[], float],
        keyring: Keyring | None = None,
        refusal: Callable[[str], Exception | None] = lambda _: None,
        traces: Traces | None = None,
    ) -> None:
        self.deadlines = Deadlines()
        self.keyring = keyring or Keyring()
        self.served, self._refusal = served, refusal
        self.cache, self._server = cache, server
        self._counter, self._quotas = server.counter, server.pipeline.tenants.quotas
        self._clock, self._traces = clock, traces
        self.sampled: HitSamplers | RowSampler | None = None
        self._repeat_timing = REPEAT if server.server_timing else None
        self._body_timing = KNOWN_BODY if server.server_timing else None
        self._template_timing = KNOWN_TEMPLATE if server.server_timing else None

    def find(self, name: str, version: str | None, tenant: Tenant) -> ServedModel:
        """A served model, for a tenant. Raises UnknownModel, ModelNotAllowed, or ModelUnavailable for one of an
        upstream that cannot be served."""
        if tenant.models is not None and not tenant.may_use(name):
            raise ModelNotAllowed(f"the tenant is not allowed to use model {name[:128]!r}")
        served = self.served.get(name)
        if served is None:
            if (why := self._refusal(name)) is not None:
                raise ModelUnavailable(f"model {name[:128]!r} is not ready: {why}")
            raise UnknownModel(name[:128])
        if version is not None and version != served.manifest.version:
            raise UnknownModel(name, version[:32])
        return served

    def named(self, head: RequestHead, body: bytes) -> RequestHead:
        """A head with its model, where only the body names it, or the model is the only one of its kind. Raises
        BadRequest, UnknownModel."""
        if head.model:
            return head
        name, version = CODECS[head.protocol].model_in(head, body)
        if name is None:
            return structs.replace(head, model=self._only(head), implied=True)
        find = self.find if head.protocol == "grpc" else self.find_named
        return structs.replace(head, model=find(name, version, head.tenant).manifest.name, version=version)

    def traced(self, head: RequestHead) -> RequestHead:
        """A head whose model is known, with a span if its request is sampled: by the flag of its `traceparent`, or by
        share where it has none. Called once for each request; counting the request ends the span."""
        traces, parent = self._traces, head.traceparent
        if traces is None or not (traces.samples() if parent is None else is_sampled(parent)):
            return head
        span, served = RequestSpan.under(parent, traces), self.served.get(head.model)
        if served is not None and served.facts is not None:
            span.digest = served.facts.digest[:8]
        return structs.replace(head, traceparent=span)

    def find_named(self, name: str, version: str | None, tenant: Tenant) -> ServedModel:
        """A served model by its name or an alias of it. Raises as `find` does."""
        if name not in self.served:
            aliased = (one.manifest.name for one in self.served.values() if name in one.manifest.openai.aliases)
            name = next(aliased, name)
        return self.find(name, version, tenant)

    def _only(self, head: RequestHead) -> str:
        """The name of the tenant's only model of the kind that a dialect asks. Raises BadRequest."""
        mine = {name: one.manifest for name, one in self.served.items() if head.tenant.may_use(name)}
        names = [name for name, manifest in mine.items() if CODECS[head.protocol].answers(manifest)]
        if len(names) != 1:
            listed = ", ".join(sorted(names)) or "none"
            raise BadRequest(f"model: is missing; models for this route: {listed}", param="model")
        return names[0]

    def repeat(self, raw: bytes, caller: Caller | None = None) -> bytes | Reply | None:
        """The fast path of a whole request that came before, byte by byte: its reply as `begin` gave it then."""
        request = self.cache.find_request(raw)
        if request is None or request.head.tenant.generation != self.keyring.generation:
            return None
        started, now = time.perf_counter(), self._clock()
        if not self.cache.is_valid(request.entry, now):
            return None
        if request.has_rates and self._quotas and not self._quotas.may(request.head.tenant, len(request.entry.rows)):
            return None
        self._count(self.traced(structs.replace(request.head, caller=caller)), request.entry, started)
        return self.cache.repeated(request, now, self._repeat_timing)

    def begin(
        self, head: RequestHead, body: bytes, reached: Reached, raw: bytes | None = None, lookup: Lookup | None = None,
        *, started: float = 0.0, deadline: float | None = None, whole: bool = True,
    ) -> bytes | Reply | PendingRequest:  # fmt: skip
        """The reply, or the request that waits for it and then calls `reached` with it. `whole`: a cached reply is
        returned as all its bytes. `raw` are the bytes of the request where they may be kept; `lookup` is what is known
        of the body, if it was looked up; `started` is on the clock that measures durations."""
        started = started or time.perf_counter()
        try:
            head = head if head.model else self.named(head, body)
            if whole and self._traces is not None:  # else it is traced already
                head = self.traced(head)
            if head.implied:  # another model of the kind may come, so a repeat is not answered by its bytes alone
                raw = None
            lookup = lookup or self.cache.find(head, body)
            served, now = self.find(head.model, head.version, head.tenant), self._clock()
            entry = self._admitted(head, lookup.entry, now)
            if entry is not None:
                self._count(head, entry, started)
                if raw is not None and lookup.id is None:
                    self.cache.keep_request(raw, head, entry)
                answer = self.cache.reply if whole else self.cache.reply_apart
                return answer(entry, now, lookup.id, self._body_timing)
            cut = None
            if lookup.entry is None and head.control is NO_CONTROL:
                cut = self._server.templates.answer(served, lookup, now)
            if isinstance(cut, TemplateHit):
                if raw is not None and lookup.id is None and cut.entry is not None:
                    self.cache.keep_request(raw, head, cut.entry)
                return self._template_reply(head, served, cut, lookup, now, started)
            if deadline is None:
                deadline = asyncio.get_running_loop().time() + head.seconds
            request = PendingRequest(self._server, served, head, body, lookup, started, deadline, raw, cut)
            reply = request.begin()
        except Exception as error:  # noqa: BLE001 - every error becomes a reply
            return self._failed(head, error, started)
        if reply is None:
            self._wait(request, reached)
        return request if reply is None else reply

    async def answer(
        self, head: RequestHead, body: bytes, started: float = 0.0, deadline: float | None = None,
        raw: bytes | None = None,
    ) -> Reply:  # fmt: skip
        """The same for a request that aiohttp, gRPC or Kafka has read, and whose head has been `traced`. Cancelling it
        cancels no flight, since other requests may wait for the same rows."""
        waiting: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def reached(reply: Reply) -> None:
            if not waiting.done():
                waiting.set_result(reply)

        reply = self.begin(head, body, reached, raw, started=started, deadline=deadline, whole=False)
        return reply if isinstance(reply, Reply) else await waiting

    def find_large(self, head: RequestHead, pieces: Sequence[bytes], length: int) -> Lookup | None:
        """What is known of a large body in the pieces that it came in; None where it is not known."""
        return self.cache.find_large(head, pieces, length)

    def failed(
        self, model: str, protocol: str, error: Exception, started: float, traceparent: str | None = None,
        caller: Caller | None = None,
    ) -> Reply:  # fmt: skip
        """The reply that an error becomes. A sampled request that failed before it was `traced` gets its span now."""
        if self._traces is not None and is_sampled(traceparent) and not isinstance(traceparent, RequestSpan):
            traceparent = RequestSpan.under(traceparent, self._traces)
        known = error if isinstance(error, ForeseenError) else internal(error, f"/{protocol}/models/{{model}}", caller)
        self._counter.failed(model, protocol, known, time.perf_counter() - started, traceparent, caller)
        headers, body = CODECS[protocol].error_body(known)
        return Reply(known.status, lines_of(headers.items()), body)

    def accepted(self, head: RequestHead, rows: int, started: float) -> None:
        """Count a request that was answered with a ticket."""
        self._counter.accepted(head, rows, time.perf_counter() - started)

    def _admitted(self, head: RequestHead, entry: CachedBody | None, now: float) -> CachedBody | None:
        """Charge a request to its tenant. The entry of its body, if its reply may be sent. Raises QuotaExceeded."""
        if entry is not None and (head.control is not NO_CONTROL or not self.cache.is_valid(entry, now)):
            entry = None
        if self._quotas is None or (entry is not None and not head.tenant.limits.has_rates):
            return entry
        rows = 0 if entry is None else len(entry.rows)
        if not self._quotas.may(head.tenant, rows):
            self._quotas.admit(head.tenant, 1, rows)
        return entry

    def _template_reply(
        self, head: RequestHead, served: ServedModel, hit: TemplateHit, lookup: Lookup, now: float, started: float
    ) -> Reply:
        if self._quotas is not None:
            self._quotas.admit(head.tenant, 0, hit.rows)
        reply = hit.reply(now, self._template_timing)
        self._counter.hit(head, served, hit.rows, 0, hit.saved, time.perf_counter() - started)
        if self.sampled is not None:
            self.sampled.offer_template(head, served, lookup, hit.rows)
        return reply

    def _count(self, head: RequestHead, entry: CachedBody, started: float) -> None:
        self._counter.hit(head, entry.served, len(entry.rows), 0, entry.saved, time.perf_counter() - started)
        if self.sampled is not None:
            self.sampled.offer_body(entry)

    def _wait(self, request: PendingRequest, reached: Reached) -> None:
        """For its flights, without a task of its own; what waits for more gets one."""
        if request.waits:
            self.deadlines.add(request)
            request.call_when_resolved(partial(self._finish, request, reached))
        else:
            self._await(request, reached)

    def _finish(self, request: PendingRequest, reached: Reached) -> None:
        self.deadlines.discard(request)
        try:
            reply = request.finish()
        except Exception as error:  # noqa: BLE001 - every error becomes a reply
            reply = self._failed(request.head, error, request.started)
        if reply is None:
            self._await(request, reached)
        else:
            reached(reply)

    def _await(self, request: PendingRequest, reached: Reached) -> None:
        async def answered() -> None:
            try:
                reply = await request.answer()
            except Exception as error:  # noqa: BLE001 - every error becomes a reply
                reply = self._failed(request.head, error, request.started)
            reached(reply)

        request.task = asyncio.get_running_loop().create_task(answered())  # the loop holds tasks only weakly

    def _failed(self, head: RequestHead, error: Exception, started: float) -> Reply:
        return self.failed(head.model, head.protocol, error, started, head.traceparent, head.caller)
