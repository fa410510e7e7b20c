"""(what a head asks, a body) → status, headers and body of its reply, counted and logged: the edge of both roads.

Requests that aiohttp reads and those that are recognised before it (`road.py`) end here, so that what is answered,
counted and logged is the same.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

from foreseen.errors import ForeseenError, UnknownModel
from foreseen.http import BINARY, HEADER_LENGTH, JSON, SERVER, error_body, internal
from foreseen.metrics import ProxyMetrics
from foreseen.settings import ProxySettings
from proxy.access import AccessLog
from proxy.ask import Ask
from proxy.replay import MAX_ROWS, Kept, Memory
from proxy.serve import Reply, Server, Visit
from proxy.served import Served

Headers = list[tuple[str, str]]


class Told(NamedTuple):
    """A reply, but for the headers that its connection adds. `reply` is what it was made of, None of an error."""

    status: int
    headers: Headers
    body: bytes
    reply: Reply | None = None


class Edge:
    """Answers, counts and logs predict requests of one proxy process."""

    def __init__(
        self,
        *,
        served: Mapping[str, Served],
        server: Server,
        metrics: ProxyMetrics,
        settings: ProxySettings,
        memory: Memory | None = None,
    ) -> None:
        self._memory = memory
        self._served = served
        self._server = server
        self._metrics = metrics
        self._server_timing = settings.server_timing
        self._access = AccessLog(settings.access_log_hits)

    def find(self, name: str, version: str | None) -> Served:
        """A served model. Raises UnknownModel."""
        served = self._served.get(name)
        if served is None:
            raise UnknownModel(name[:128])
        if version is not None and version != served.manifest.version:
            raise UnknownModel(name, version[:32])
        return served

    async def answer(self, ask: Ask, body: bytes, started: float, deadline: float) -> Told:
        """The reply to a request, whatever becomes of it. `started` is on the clock that measures durations."""
        try:
            served = self.find(ask.model, ask.version)
            return self._told(ask, await self._server.answer(served, ask, body, deadline), started)
        except Exception as error:  # noqa: BLE001 - this is the edge
            return self.failed(ask.model, ask.protocol, error, started, ask.traceparent)

    def at_once(self, ask: Ask, body: bytes, started: float, deadline: float) -> Told | Visit | None:
        """The same as far as it needs no waiting; see `Server.at_once`."""
        try:
            served = self.find(ask.model, ask.version)
            reply = self._server.at_once(served, ask, body, deadline)
        except Exception as error:  # noqa: BLE001 - this is the edge
            return self.failed(ask.model, ask.protocol, error, started, ask.traceparent)
        return self._told(ask, reply, started) if isinstance(reply, Reply) else reply

    def arrived(self, ask: Ask, visit: Visit, started: float) -> Told | None:
        """The reply of a visit that has waited; None where `answer` has to be asked anew."""
        try:
            reply = self._server.arrived(visit)
        except Exception as error:  # noqa: BLE001 - this is the edge
            return self.failed(ask.model, ask.protocol, error, started, ask.traceparent)
        return None if reply is None else self._told(ask, reply, started)

    def failed(
        self, model: str, protocol: str, error: Exception, started: float, traceparent: str | None = None
    ) -> Told:
        """The reply that an error becomes."""
        known = error if isinstance(error, ForeseenError) else internal(error, f"/{protocol}/models/{{model}}")
        name = model if model in self._served else "other"  # a label is a served model or this: paths are data
        seconds = time.perf_counter() - started
        self._metrics.request_seconds.labels(name, "error").observe(seconds)
        if name in self._served:
            stats = self._served[name].stats
            stats.fail += 1
            stats.fail_ns += int(seconds * 1e9)
        self._metrics.requests.labels(name, protocol, str(known.status)).inc()
        self._access.told(name, protocol, known.status, "error", 0, seconds, code=known.code, traceparent=traceparent)
        headers, body = error_body(known)
        return Told(known.status, list(headers.items()), body)

    def accepted(self, ask: Ask, rows: int, started: float) -> None:
        """A request that was answered with a ticket."""
        seconds = time.perf_counter() - started
        self._metrics.requests.labels(ask.model, ask.protocol, "202").inc()
        self._metrics.request_seconds.labels(ask.model, "accepted").observe(seconds)
        self._access.told(ask.model, ask.protocol, 202, "accepted", rows, seconds, traceparent=ask.traceparent)

    def _told(self, ask: Ask, reply: Reply, started: float) -> Told:
        self._metrics.requests.labels(ask.model, ask.protocol, "200").inc()
        seconds, rows = time.perf_counter() - started, len(reply.answers)
        self._access.told(ask.model, ask.protocol, 200, reply.result, rows, seconds, traceparent=ask.traceparent)
        return Told(200, [*_fixed(reply.length), *reply.headers.items()], reply.body, reply)

    def replayed(self, request: bytes) -> bytes | None:
        """The kept reply to these very bytes, counted and logged."""
        return None if self._memory is None else self._memory.reply(request)

    def remember(self, ask: Ask, raw: bytes, reply: Reply) -> None:
        """Keep the reply to a request that was answered from near, for when its very bytes come again."""
        question, memory = reply.question, self._memory
        if memory is None or question is None or reply.result != "hit" or len(reply.answers) > MAX_ROWS:
            return
        if any(answer.source != "near" for answer in reply.answers) or not memory.worth_keeping(raw):
            return
        predictions = [answer.prediction for answer in reply.answers]
        requests = self._metrics.requests.labels(ask.model, ask.protocol, "200")
        saved = sum(prediction.seconds for prediction in predictions)
        served, space, rows = self._served[ask.model], question.space, len(predictions)

        def count(seconds: float) -> None:
            requests.inc()
            self._server.count_replay(served, rows, saved, seconds)
            self._access.told(ask.model, ask.protocol, 200, "hit", rows, seconds)

        kept = Kept(
            list(zip(reply.keys, predictions, strict=True)),
            min(prediction.expires_at for prediction in predictions),
            _fixed(reply.length),
            reply.body,
            lambda: served.facts is not None and self._server.space(served) == space,
            count,
            timing=self._server_timing,
        )
        memory.keep(raw, kept)


def _fixed(length: int | None) -> Headers:
    """The headers that do not change with time."""
    if length is None:
        return [("Server", SERVER), ("Content-Type", JSON)]
    return [("Server", SERVER), ("Content-Type", BINARY), (HEADER_LENGTH, str(length))]
