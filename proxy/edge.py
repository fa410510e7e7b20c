"""(what a head asks, a body) → status, headers and body of its reply, counted and logged: the edge of both roads.

Requests that aiohttp reads and those that are recognised before it (`road.py`) end here, so that what is answered,
counted and logged is the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from foreseen.errors import ForeseenError, UnknownModel
from foreseen.http import BINARY, HEADER_LENGTH, JSON, SERVER, error_body, internal
from foreseen.metrics import ProxyMetrics
from foreseen.nouns import Answer
from foreseen.settings import ProxySettings
from proxy.access import AccessLog
from proxy.ask import Ask
from proxy.freshness import AT_WILL
from proxy.lines import hit_reply
from proxy.replay import MAX_ROWS, REPLAY, SHORTCUT, Kept, Memory
from proxy.serve import Hit, Reply, Server, Visit
from proxy.served import Served
from proxy.tiers import Tiers

Headers = list[tuple[str, str]]


class Told(NamedTuple):
    """A reply, but for the headers that its connection adds. `reply` is what it was made of, None of an error."""

    status: int
    headers: Headers
    body: bytes
    reply: Reply | None = None


class Aboard(NamedTuple):
    """A request that waits for a visit, its own or one that it joined; `own` is its plain id."""

    visit: Visit
    own: bytes | None
    deadline: float
    joined: bool


class Edge:
    """Answers, counts and logs predict requests of one proxy process."""

    def __init__(
        self,
        *,
        served: Mapping[str, Served],
        server: Server,
        metrics: ProxyMetrics,
        settings: ProxySettings,
        tiers: Tiers,
        memory: Memory | None = None,
    ) -> None:
        self._near = tiers.near
        self._clock = tiers.clock
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

    def at_once(
        self, ask: Ask, body: bytes, raw: bytes | None, started: float, deadline: float
    ) -> bytes | Told | Aboard | None:
        """The same as far as it needs no waiting; see `Server.at_once`. Bytes are a whole reply. `raw` are the bytes of
        the request where they may be replayed."""
        try:
            served = self.find(ask.model, ask.version)
            found = self._server.shortcuts.find(ask, body)
            entry = found.entry
            if entry is not None and entry.served is served and ask.control is AT_WILL:
                if entry.kept is not None:
                    now = self._clock()
                    if entry.kept.stands(self._near, now):
                        return self._again(entry.kept, found.id, raw, now, started)
                    entry.kept = None
                if entry.aloft is not None and self._server.may_join(entry.aloft):
                    return Aboard(entry.aloft, found.id, deadline, joined=True)
                if entry.drawn is not None and entry.known.preparer is served.preparer():
                    visit = self._server.again(served, ask, deadline, found, entry)
                    if visit is not None and visit.journey.waits:
                        entry.aloft = visit
                        return Aboard(visit, found.id, visit.journey.question.terms.deadline, joined=False)
            reply = self._server.at_once(served, ask, body, deadline, found)
        except Exception as error:  # noqa: BLE001 - this is the edge
            return self.failed(ask.model, ask.protocol, error, started, ask.traceparent)
        if reply is None:
            return None
        if isinstance(reply, Visit):
            return Aboard(reply, found.id, reply.journey.question.terms.deadline, joined=False)
        self._keep(ask, reply)
        if raw is not None:
            self.remember(ask, raw, reply)
        return self._told(ask, reply, started)

    def _again(self, kept: Kept, own: bytes | None, raw: bytes | None, now: float, started: float) -> bytes:
        """A kept reply to a body that is known."""
        if own is None and raw is not None and self._memory is not None and self._memory.worth_keeping(raw):
            self._memory.keep(raw, kept.as_replay())
        kept.count(time.perf_counter() - started)
        return kept.at(now, own)

    def arrived(self, ask: Ask, aboard: Aboard, started: float) -> bytes | Told | None:
        """The reply of a request that has waited; None where `answer` has to be asked anew."""
        visit, own, deadline, joined = aboard
        try:
            if visit.hit is not None:
                return self._hit(ask, visit, visit.hit, own, started)
            mine = self._server.joined(visit, own, deadline) if joined else visit
            answers = self._server.landed(mine)
            if answers is None:
                return None
            visit.hit = hit_of(visit, answers)
            if visit.hit is not None:
                return self._hit(ask, visit, visit.hit, own, started)
            reply = self._server.replied(mine, answers)
        except Exception as error:  # noqa: BLE001 - this is the edge
            return self.failed(ask.model, ask.protocol, error, started, ask.traceparent)
        self._keep(ask, reply)
        return self._told(ask, reply, started)

    def _hit(self, ask: Ask, visit: Visit, hit: Hit, own: bytes | None, started: float) -> bytes:
        """The reply to a known body where every row is a fresh hit of the bytes that were rendered before: what facts,
        render and headers would make of it, at a tenth of the price."""
        assert visit.entry is not None
        drawn = visit.entry.drawn
        assert drawn is not None
        now, seconds = self._clock(), time.perf_counter() - started
        hits = self._metrics.hits(ask.model, ask.protocol)
        self._server.count_again(visit.served, hits, hit.near, hit.far, hit.saved, seconds)
        self._access.told(ask.model, ask.protocol, 200, "hit", hit.near + hit.far, seconds, traceparent=ask.traceparent)
        timing = self._server_timing and (seconds, hit.trip)
        left, age = math.floor(hit.until - now), max(0, int(now - hit.made_at))
        return hit_reply(drawn.before, drawn.after, drawn.length, own, left, age, timing, far=hit.far > 0)

    def _keep(self, ask: Ask, reply: Reply) -> None:
        """Have the body's next request answered from near as this one was."""
        entry = reply.entry
        if entry is not None and entry.drawn is not None and entry.kept is None:
            drawn = entry.drawn
            entry.kept = self._kept(ask, reply, (drawn.before, drawn.after), drawn.length, SHORTCUT)

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
        if self._memory is None or not _all_near(reply) or not self._memory.worth_keeping(raw):
            return
        kept = self._kept(ask, reply, (reply.body, b""), reply.length, REPLAY)
        if kept is not None:
            self._memory.keep(raw, kept)

    def _kept(self, ask: Ask, reply: Reply, body: tuple[bytes, bytes], length: int | None, timing: str) -> Kept | None:
        """The reply as one that may be sent again as long as near has what it was made of."""
        question = reply.question
        if question is None or not _all_near(reply):
            return None
        predictions = [answer.prediction for answer in reply.answers]
        hits, count_again, access = self._metrics.hits(ask.model, ask.protocol), self._server.count_again, self._access
        saved = sum(prediction.seconds for prediction in predictions)
        served, space, rows = self._served[ask.model], question.space, len(predictions)

        def count(seconds: float) -> None:
            count_again(served, hits, rows, 0, saved, seconds)
            access.told(ask.model, ask.protocol, 200, "hit", rows, seconds)

        return Kept(
            list(zip(reply.keys, predictions, strict=True)),
            body,
            length,
            lambda: self._server.in_force(served, space),
            count,
            timing if self._server_timing else None,
        )


def hit_of(visit: Visit, answers: Sequence[Answer]) -> Hit | None:
    """What answers have in common that are all fresh hits of the bytes that were rendered before; else None."""
    drawn = None if visit.entry is None else visit.entry.drawn
    if drawn is None or not answers or len(drawn.predictions) != len(answers):
        return None
    far, saved, until, made_at, trip = 0, 0.0, math.inf, math.inf, 0.0
    for answer, before in zip(answers, drawn.predictions, strict=True):
        prediction = answer.prediction
        if prediction is not before and (prediction.data != before.data or prediction.outputs != before.outputs):
            return None
        if answer.source == "far":
            far += 1
            if answer.trip is not None and answer.trip.far is not None:
                trip = max(trip, answer.trip.far)
        elif answer.source != "near":
            return None
        saved += prediction.seconds
        until, made_at = min(until, prediction.expires_at), min(made_at, prediction.made_at)
    return Hit(len(answers) - far, far, saved, until, made_at, trip if far else None)


def _all_near(reply: Reply) -> bool:
    answers = reply.answers
    return reply.result == "hit" and 0 < len(answers) <= MAX_ROWS and all(answer.source == "near" for answer in answers)


def _fixed(length: int | None) -> Headers:
    """The headers that do not change with time."""
    if length is None:
        return [("Server", SERVER), ("Content-Type", JSON)]
    return [("Server", SERVER), ("Content-Type", BINARY), (HEADER_LENGTH, str(length))]
