"""Results of requests → counters, Triton's statistics and the log. Each request is counted here, once.

The log has one line per request: all that were not hits, and a share of the hits. It says who asked (address, path
without its query, request id) and of an error its text. Never an input, nor a name that the client made up. Lines are
bounded in number, so that a flood of wrong requests does not become a flood of lines; the next line says how many were
left out. Every request is counted under its caller, logged or not.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Collection, Container, Mapping
from typing import Any

from foreseen.errors import ForeseenError
from foreseen.logs import write_line
from foreseen.modelspec.manifest import Manifest
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.facts import AnswerFacts
from foreseen.telemetry.callers import CallerCounts
from foreseen.telemetry.meters import Hits
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.telemetry.spans import RequestSpan, is_sampled
from foreseen.tenants.tenant import PUBLIC_TENANT
from foreseen.tenants.usage import UsageCounts
from foreseen.types import Lane
from foreseen.web.caller import Caller

_NONE = "there is no such"
_QUOTED = re.compile(r"'.*'", re.DOTALL)
_FIELD = re.compile(r"(inputs|outputs|parameters)\.(.*)", re.DOTALL)

MAX_ERROR_CHARACTERS = 300
LINES_PER_SECOND = 200
"""More would cost more than the answers: a line takes 15 to 20 µs."""


class RequestCounter:
    """Counts and logs the predict requests of one proxy process. Seconds are from a request's arrival to its reply."""

    def __init__(
        self,
        metrics: ProxyMetrics,
        served: Mapping[str, ServedModel],
        access: AccessLog,
        callers: CallerCounts | None = None,
        usage: UsageCounts | None = None,
    ) -> None:
        self._metrics = metrics
        self.served = served
        self._access = access
        self._callers, self._usage = callers, usage
        self._hits: dict[tuple[str, str], Hits] = {}

    def hit(
        self, head: RequestHead, served: ServedModel, near: int, far: int, saved: float, seconds: float
    ) -> None:  # fmt: skip
        """A request all of whose rows were fresh hits of near or far."""
        hits = self._hits.get((head.model, head.protocol))
        if hits is None:
            hits = self._hits[head.model, head.protocol] = self._metrics.hits(head.model, head.protocol)
        hits.add(near, far, saved, seconds)
        stats, rows = served.stats, near + far
        stats.cache_hit += 1
        stats.cache_hit_seconds += seconds
        stats.rows += rows
        stats.last_seconds = time.time()
        if self._usage is not None:
            counts = self._usage.now.get((head.tenant.name, head.model))  # what `add` does, at half its price
            if counts is None:
                self._usage.add(head.tenant.name, head.model, rows, 0, saved)
            else:
                counts[0] += 1
                counts[2] += rows
                counts[4] += saved
        if head.caller is not None:
            self._count_caller(head.caller, rows, 0)
        if self._access.takes_hit(head.traceparent):
            self._access.add(
                head.model, head.protocol, 200, "hit", rows, seconds,
                traceparent=head.traceparent, caller=head.caller, tenant=head.tenant.name,
            )  # fmt: skip

    def answered(self, head: RequestHead, served: ServedModel, facts: AnswerFacts, lane: Lane, seconds: float) -> None:
        """A request that was answered, from wherever."""
        sources, result = facts.sources, facts.result
        if result == "hit" and lane == "online":
            return self.hit(head, served, sources.get("near", 0), sources.get("far", 0), facts.saved, seconds)
        rows = sum(sources.values())
        for source, count in sources.items():
            self._count_rows(head.model, source, count, lane)
        if facts.saved:
            self._metrics.saved_seconds.labels(head.model).inc(facts.saved)
        self._metrics.requests.labels(head.model, head.protocol, "200").inc()
        self._metrics.request_seconds.of(head.model, result).add(seconds)
        computed = sources.get("model", 0) + sources.get("bypass", 0)
        if self._usage is not None:
            self._usage.add(head.tenant.name, head.model, rows - computed, computed, facts.saved)
        stats = served.stats
        stats.rows += rows
        stats.last_seconds = time.time()
        if result in ("hit", "stale"):
            stats.cache_hit += 1
            stats.cache_hit_seconds += seconds
        elif result == "bypass":
            stats.bypass += 1
            stats.bypass_seconds += seconds
        else:
            stats.cache_miss += 1
            stats.cache_miss_seconds += seconds
        if isinstance(head.traceparent, RequestSpan):
            head.traceparent.rows_hit = sources.get("near", 0) + sources.get("far", 0) + sources.get("stale", 0)
        stats.computed_rows += computed
        stats.computed_requests += computed > 0
        self._write(head, 200, result, rows, seconds, computed, asked=facts.asked)
        return None

    def accepted(self, head: RequestHead, rows: int, seconds: float) -> None:
        """A request that was answered with a ticket."""
        self._metrics.requests.labels(head.model, head.protocol, "202").inc()
        self._metrics.request_seconds.of(head.model, "accepted").add(seconds)
        self._write(head, 202, "accepted", rows, seconds)

    def failed(
        self,
        model: str,
        protocol: str,
        error: ForeseenError,
        seconds: float,
        traceparent: str | None = None,
        caller: Caller | None = None,
    ) -> None:
        """A request that was answered with an error. A label is a served model or `other`: paths are data."""
        served = self.served.get(model)
        name = "other" if served is None else model
        self._metrics.request_seconds.of(name, "error").add(seconds)
        if served is not None:
            served.stats.fail += 1
            served.stats.fail_seconds += seconds
        self._metrics.requests.labels(name, protocol, str(error.status)).inc()
        if caller is not None and self._callers is not None:
            self._callers.add(caller.address, 0, 0)
        self._access.write(
            name,
            protocol,
            error.status,
            "error",
            0,
            seconds,
            code=error.code,
            error=without_names(str(error), () if served is None else names_of(served.manifest)),
            traceparent=traceparent,
            caller=caller,
        )

    def _write(
        self, head: RequestHead, status: int, result: str, rows: int, seconds: float, computed: int = 0, *,
        asked: bool = False,
    ) -> None:  # fmt: skip
        """One request in the table of callers, and perhaps in the log."""
        caller, trace = head.caller, head.traceparent
        if caller is not None:
            self._count_caller(caller, rows, computed)
        self._access.write(
            head.model, head.protocol, status, result, rows, seconds,
            traceparent=trace, caller=caller, tenant=head.tenant.name, asked=asked,
        )  # fmt: skip

    def _count_caller(self, caller: Caller, rows: int, computed: int) -> None:
        if self._callers is None:
            return
        counts = self._callers.now.get(caller.address)  # what `add` does, at half its price
        if counts is None:
            self._callers.add(caller.address, rows, computed)
        else:
            counts[0] += 1
            counts[1] += rows
            counts[2] += computed

    def failed_rows(self, served: ServedModel, rows: int, lane: Lane) -> None:
        """Rows of a request that got an error instead of answers."""
        self._count_rows(served.manifest.name, "error", rows, lane)

    def _count_rows(self, model: str, result: str, rows: int, lane: Lane) -> None:
        self._metrics.rows.labels(model, result).inc(rows)
        if lane == "background":
            self._metrics.background_rows.labels(model, result).inc(rows)


class AccessLog:
    """Of one worker. `hits` is the share of hits that are logged; 0 logs none and costs nothing. `models` are those
    whose names a path may show."""

    def __init__(self, hits: float, clock: Callable[[], float] = time.monotonic, models: Container[str] = ()) -> None:
        self._models = models
        self._hits = hits
        self._clock = clock
        self._due = 0.0
        self._second = 0
        self._lines = 0
        self._skipped = 0

    def write(
        self, model: str, protocol: str, status: int, result: str, rows: int, seconds: float, *,
        traceparent: str | None = None, **more: Any,
    ) -> None:  # fmt: skip
        """Log a request, or not: `add` it unless it is a hit that `takes_hit` leaves out."""
        if result != "hit" or self.takes_hit(traceparent):
            self.add(model, protocol, status, result, rows, seconds, traceparent=traceparent, **more)

    def takes_hit(self, traceparent: str | None) -> bool:
        """Whether the next hit is logged: one of the share, every hundredth of 0.01, spread evenly. One that carries a
        sampled trace (W3C trace flags) always is, so that a trace ends here as somebody who follows it expects."""
        if self._hits:
            self._due += self._hits
            if self._due >= 1:
                self._due -= 1
                return True
        return traceparent is not None and is_sampled(traceparent)

    def add(
        self,
        model: str,
        protocol: str,
        status: int,
        result: str,
        rows: int,
        seconds: float,
        *,
        code: str | None = None,
        error: str | None = None,
        traceparent: str | None = None,
        caller: Caller | None = None,
        tenant: str = PUBLIC_TENANT.name,
        asked: bool = False,
    ) -> None:
        """Log a request, within the bound on lines. `asked`: the client's `Cache-Control` asked for new answers."""
        if isinstance(traceparent, RequestSpan):
            path = None if caller is None else caller.fields(self._models)["path"]
            traceparent.end_request(model, protocol, status, result, rows, seconds, code, path)
        second = int(self._clock())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines > LINES_PER_SECOND:
            self._skipped += 1
            return
        fields: dict[str, object] = {}
        if code is not None:
            fields["code"] = code
        if error is not None:
            fields["error"] = error[:MAX_ERROR_CHARACTERS]
        if tenant != PUBLIC_TENANT.name:
            fields["tenant"] = tenant
        if asked:
            fields["asked"] = True
        if traceparent is not None:
            fields["traceparent"] = traceparent
        if result == "hit" and self._hits < 1:
            fields["share"] = self._hits
        if self._skipped:
            fields["skipped"], self._skipped = self._skipped, 0
        self._later((model, protocol, status, result, rows, seconds), caller, fields)

    def _later(
        self, request: tuple[str, str, int, str, int, float], caller: Caller | None, fields: dict[str, object]
    ) -> None:
        """Write the line when this turn of the event loop has sent its replies."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._line(request, caller, fields)
        else:
            loop.call_soon(self._line, request, caller, fields)

    def _line(
        self, request: tuple[str, str, int, str, int, float], caller: Caller | None, fields: dict[str, object]
    ) -> None:
        model, protocol, status, result, rows, seconds = request
        whose = {} if caller is None else caller.fields(self._models)
        line = {
            "model": model,
            "protocol": protocol,
            "status": status,
            "result": result,
            "rows": rows,
            "ms": round(seconds * 1000, 3),
        }
        write_line("request", line | whose | fields)


def names_of(manifest: Manifest) -> tuple[str, ...]:
    """What an error may name of a model: inputs and outputs."""
    return (*(one.name for one in manifest.seen.inputs), *(one.name for one in manifest.seen.outputs))


def without_names(text: str, known: Collection[str]) -> str:
    """An error's text without names that the client made up: what is quoted, and a tensor or parameter that the model
    does not have. The caller's own reply has them."""
    text = _QUOTED.sub("'…'", text)
    field = _FIELD.match(text)
    if field is None:
        return text
    if _NONE not in text and any(re.match(rf"{re.escape(name)}[.:\[\s]", field[2]) for name in known):
        return text
    return f"{field[1]}.…: {text.rpartition(': ')[2]}"
