"""What becomes of requests → counters, Triton's statistics and the log: each request is counted here, once."""

from __future__ import annotations

import time
from collections.abc import Mapping

from foreseen.errors import ForeseenError
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.predict.access import AccessLog
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.facts import AnswerFacts
from foreseen.telemetry.meters import Hits
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.types import Lane


class RequestCounter:
    """Counts and logs the predict requests of one proxy process. Seconds are from a request's arrival to its reply."""

    def __init__(self, metrics: ProxyMetrics, served: Mapping[str, ServedModel], access: AccessLog) -> None:
        self._metrics = metrics
        self._served = served
        self._access = access
        self._hits: dict[tuple[str, str], Hits] = {}

    def hit(
        self, head: RequestHead, served: ServedModel, near: int, far: int, saved: float, seconds: float
    ) -> None:  # fmt: skip
        """A request all of whose rows were fresh hits of near or far."""
        hits = self._hits.get((head.model, head.protocol))
        if hits is None:
            hits = self._hits[head.model, head.protocol] = self._metrics.hits(head.model, head.protocol)
        hits.add(near, far, saved, seconds)
        stats, took = served.stats, int(seconds * 1e9)
        stats.success += 1
        stats.success_ns += took
        stats.rows += near + far
        stats.last_ms = int(time.time() * 1000)
        stats.cache_hit += 1
        stats.cache_hit_ns += took
        self._access.write(
            head.model, head.protocol, 200, "hit", near + far, seconds, traceparent=head.traceparent
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
        stats, took = served.stats, int(seconds * 1e9)
        stats.success += 1
        stats.success_ns += took
        stats.rows += rows
        stats.last_ms = int(time.time() * 1000)
        if result in ("hit", "stale"):
            stats.cache_hit += 1
            stats.cache_hit_ns += took
        elif result != "bypass":
            stats.cache_miss += 1
            stats.cache_miss_ns += took
        stats.computed_rows += computed
        stats.computed_requests += computed > 0
        self._access.write(head.model, head.protocol, 200, result, rows, seconds, traceparent=head.traceparent)
        return None

    def accepted(self, head: RequestHead, rows: int, seconds: float) -> None:
        """A request that was answered with a ticket."""
        self._metrics.requests.labels(head.model, head.protocol, "202").inc()
        self._metrics.request_seconds.of(head.model, "accepted").add(seconds)
        self._access.write(head.model, head.protocol, 202, "accepted", rows, seconds, traceparent=head.traceparent)

    def failed(
        self, model: str, protocol: str, error: ForeseenError, seconds: float, traceparent: str | None = None
    ) -> None:
        """A request that was answered with an error. A label is a served model or `other`: paths are data."""
        served = self._served.get(model)
        name = "other" if served is None else model
        self._metrics.request_seconds.of(name, "error").add(seconds)
        if served is not None:
            served.stats.fail += 1
            served.stats.fail_ns += int(seconds * 1e9)
        self._metrics.requests.labels(name, protocol, str(error.status)).inc()
        self._access.write(name, protocol, error.status, "error", 0, seconds, code=error.code, traceparent=traceparent)

    def failed_rows(self, served: ServedModel, rows: int, lane: Lane) -> None:
        """Rows of a request that got an error instead of answers."""
        self._count_rows(served.manifest.name, "error", rows, lane)

    def _count_rows(self, model: str, result: str, rows: int, lane: Lane) -> None:
        self._metrics.rows.labels(model, result).inc(rows)
        if lane == "background":
            self._metrics.background_rows.labels(model, result).inc(rows)
