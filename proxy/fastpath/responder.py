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
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.cache.freshness import NO_CONTROL
from foreseen.proxy.cache.tiers import Tiers
from foreseen.proxy.predict.access import AccessLog, without_names
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.replay import MAX_ROWS, REPLAY, SHORTCUT, Kept, Memory
from foreseen.proxy.predict.response_bytes import hit_reply
from foreseen.proxy.predict.serve import NOBODY_JOINS, Hit, Reply, Server, Visit
from foreseen.proxy.predict.shortcut import Found
from foreseen.settings import ProxySettings
from foreseen.telemetry.callers import CallerCounts
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.types import Answer, Key, Prediction, Space
from foreseen.web.caller import Caller
from foreseen.web.http import BINARY, HEADER_LENGTH, JSON, SERVER, error_body, internal

Headers = list[tuple[str, str]]


COMPUTED = frozenset(("model", "bypass"))
_TIMING = b"Server-Timing: decode;dur=%.3f, prepare;dur=%.3f, answer;dur=%.3f%b"


class RenderedReply(NamedTuple):
    """A reply, but for the headers that its connection adds. `reply` is what it was made of, None of an error."""

    status: int
    headers: Headers
    body: bytes
    reply: Reply | None = None


class WaitingRequest(NamedTuple):
    """A request that waits for a visit, its own or one that it joined; `own` is its plain id."""

    visit: Visit
    own: bytes | None
    deadline: float
    joined: bool


class Responder:
    """Answers, counts and logs predict requests of one proxy process."""

    def __init__(
        self,
        *,
        served: Mapping[str, ServedModel],
        server: Server,
        metrics: ProxyMetrics,
        settings: ProxySettings,
        tiers: Tiers,
        memory: Memory | None = None,
        callers: CallerCounts | None = None,
    ) -> None:
        self._near = tiers.near
        self._clock = tiers.clock
        self._memory = memory
        self._served = served
        self._server = server
        self._metrics = metrics
        self._server_timing = settings.server_timing
        self._access = AccessLog(settings.access_log_hits, callers=callers, models=served)

    def find(self, name: str, version: str | None) -> ServedModel:
        """A served model. Raises UnknownModel."""
        served = self._served.get(name)
        if served is None:
            raise UnknownModel(name[:128])
        if version is not None and version != served.manifest.version:
            raise UnknownModel(name, version[:32])
        return served

    async def answer(self, ask: RequestHead, body: bytes, started: float, deadline: float) -> RenderedReply:
        """The reply to a request, whatever becomes of it. `started` is on the clock that measures durations."""
        try:
            served = self.find(ask.model, ask.version)
            return self._told(ask, await self._server.answer(served, ask, body, deadline), started)
        except Exception as error:  # noqa: BLE001 - this is the edge
            return self.failed(ask.model, ask.protocol, error, started, ask.traceparent, ask.caller)

    def at_once(
        self,
        ask: RequestHead,
        body: bytes,
        raw: bytes | None,
        started: float,
        deadline: float,
        found: Found | None = None,
    ) -> bytes | RenderedReply | WaitingRequest | None:
        """The same as far as it needs no waiting; see `Server.at_once`. Bytes are a whole reply. `raw` are the bytes of
        the request where they may be replayed; `found` is what is known of the body, where it was looked up."""
        try:
            served = self.find(ask.model, ask.version)
            found = found or self._server.shortcuts.find(ask, body)
            entry, visit = found.entry, None
            if entry is not None and entry.served is served and ask.control is NO_CONTROL:
                if entry.kept is not None:
                    now = self._clock()
                    if entry.kept.stands(self._near, now):
                        return self._again(entry.kept, ask, found.id, raw, now, started)
                    entry.kept = None
                if entry.in_flight is not None and self._server.may_join(entry.in_flight):
                    return WaitingRequest(entry.in_flight, found.id, deadline, joined=True)
                if entry.drawn is not None and entry.known.preparer is served.preparer():
                    visit = self._server.again(served, ask, deadline, found, entry)
            if visit is None:
                visit = self._server.at_once(served, ask, body, deadline, found)
        except Exception as error:  # noqa: BLE001 - this is the edge
            return self.failed(ask.model, ask.protocol, error, started, ask.traceparent, ask.caller)
        if visit is None:
            return None
        aboard = WaitingRequest(visit, visit.own, visit.journey.question.options.deadline, joined=False)
        if not visit.journey.waits:
            return self.arrived(ask, aboard, started, raw)
        if visit.entry is not None and visit.forgotten != NOBODY_JOINS:
            visit.entry.in_flight = visit
        return aboard

    def find_whole(self, ask: RequestHead, pieces: Sequence[bytes], length: int) -> Found | None:
        """What is known of a large body in the pieces that it came in; None where it is not known."""
        return self._server.shortcuts.find_whole(ask, pieces, length)

    def _again(
        self, kept: Kept, ask: RequestHead, own: bytes | None, raw: bytes | None, now: float, started: float
    ) -> bytes:
        """A kept reply to a body that is known."""
        if own is None and raw is not None and self._memory is not None and self._memory.worth_keeping(raw):
            self._memory.keep(raw, kept.as_replay())
        self._access.asking = ask.caller
        kept.count(time.perf_counter() - started, ask.traceparent)
        return kept.at(now, own)

    def arrived(
        self, ask: RequestHead, aboard: WaitingRequest, started: float, raw: bytes | None = None
    ) -> bytes | RenderedReply | None:
        """The reply of a request all of whose rows are there; None where `answer` has to be asked anew. `raw` are its
        bytes, where they may be replayed."""
        visit, own, deadline, joined = aboard
        try:
            if visit.hit is None:
                mine = self._server.joined(visit, own, deadline) if joined else visit
                answers = self._server.landed(mine)
                if answers is None:
                    return None
                visit.hit = self._hit_of(ask, mine, answers, raw)
                if visit.hit is None:
                    return self._told(ask, self._server.replied(mine, answers), started)
            return self._hit(ask, visit, visit.hit, own, started)
        except Exception as error:  # noqa: BLE001 - this is the edge
            return self.failed(ask.model, ask.protocol, error, started, ask.traceparent, ask.caller)

    def _hit_of(self, ask: RequestHead, visit: Visit, answers: Sequence[Answer], raw: bytes | None) -> Hit | None:
        """What answers have in common that are all fresh hits; else None. What near has is kept for the next time."""
        far, saved, until, made_at, trip = 0, 0.0, math.inf, math.inf, 0.0
        for answer in answers:
            if answer.source == "far":
                far += 1
                if answer.trip is not None and answer.trip.far is not None:
                    trip = max(trip, answer.trip.far)
            elif answer.source != "near":
                return None
            prediction = answer.prediction
            saved += prediction.seconds
            until, made_at = min(until, prediction.expires_at), min(made_at, prediction.made_at)
        predictions = [answer.prediction for answer in answers]
        drawn = self._server.drawn(visit, predictions)
        if drawn is None:
            return None
        space, keys = visit.journey.question.space, visit.journey.keys
        if not far and visit.entry is not None:
            parts = drawn.before, drawn.after
            visit.entry.kept = self._kept(ask, space, keys, predictions, parts, drawn.length, SHORTCUT)
        if not far and raw is not None and self._memory is not None and self._memory.worth_keeping(raw):
            body, length = drawn.reply(visit.own)
            replay = self._kept(ask, space, keys, predictions, (body, b""), length, REPLAY)
            self._memory.keep(raw, replay)
        return Hit(drawn, len(answers) - far, far, saved, until, made_at, trip if far else None)

    def _hit(self, ask: RequestHead, visit: Visit, hit: Hit, own: bytes | None, started: float) -> bytes:
        """The reply where every row is a fresh hit: what facts and headers would make of it, much cheaper."""
        done, times, drawn = time.perf_counter(), visit.times, hit.drawn
        seconds, timing = done - started, b""
        if self._server_timing:
            far = b"\r\n" if hit.trip is None else b", far;dur=%.3f\r\n" % (hit.trip * 1000)
            if times.decoded <= times.started:
                timing = b"Server-Timing: shortcut, answer;dur=%.3f%b" % (seconds * 1000, far)
            else:
                spent = (times.decoded - times.started, times.prepared - times.decoded, done - times.prepared)
                timing = _TIMING % (*[1000 * one for one in spent], far)
        if times.decoded > times.started:
            self._metrics.stages.add("decode", times.decoded - times.started)
            self._metrics.stages.add("prepare", times.prepared - times.decoded)
        hits = self._metrics.hits(ask.model, ask.protocol)
        self._server.count_again(visit.served, hits, hit.near, hit.far, hit.saved, seconds)
        rows, trace = hit.near + hit.far, ask.traceparent
        self._access.told(ask.model, ask.protocol, 200, "hit", rows, seconds, traceparent=trace, caller=ask.caller)
        now = self._clock()
        left, age = math.floor(hit.until - now), max(0, int(now - hit.made_at))
        return hit_reply(drawn.before, drawn.after, drawn.length, own, left, age, timing, far=hit.far > 0)

    def failed(
        self,
        model: str,
        protocol: str,
        error: Exception,
        started: float,
        traceparent: str | None = None,
        caller: Caller | None = None,
    ) -> RenderedReply:
        """The reply that an error becomes."""
        known = error if isinstance(error, ForeseenError) else internal(error, f"/{protocol}/models/{{model}}", caller)
        name = model if model in self._served else "other"  # a label is a served model or this: paths are data
        seconds = time.perf_counter() - started
        self._metrics.request_seconds.of(name, "error").add(seconds)
        if name in self._served:
            stats = self._served[name].stats
            stats.fail += 1
            stats.fail_ns += int(seconds * 1e9)
        self._metrics.requests.labels(name, protocol, str(known.status)).inc()
        self._access.told(
            name,
            protocol,
            known.status,
            "error",
            0,
            seconds,
            code=known.code,
            error=without_names(str(known), self._names(name)),
            traceparent=traceparent,
            caller=caller,
        )
        headers, body = error_body(known)
        return RenderedReply(known.status, list(headers.items()), body)

    def _names(self, model: str) -> tuple[str, ...]:
        """What an error may name of a model."""
        if model not in self._served:
            return ()
        seen = self._served[model].manifest.seen
        return (*(one.name for one in seen.inputs), *(one.name for one in seen.outputs))

    def accepted(self, ask: RequestHead, rows: int, started: float) -> None:
        """A request that was answered with a ticket."""
        seconds = time.perf_counter() - started
        self._metrics.requests.labels(ask.model, ask.protocol, "202").inc()
        self._metrics.request_seconds.of(ask.model, "accepted").add(seconds)
        trace, caller = ask.traceparent, ask.caller
        self._access.told(ask.model, ask.protocol, 202, "accepted", rows, seconds, traceparent=trace, caller=caller)

    def _told(self, ask: RequestHead, reply: Reply, started: float) -> RenderedReply:
        self._metrics.requests.labels(ask.model, ask.protocol, "200").inc()
        self._access.told(
            ask.model,
            ask.protocol,
            200,
            reply.result,
            len(reply.answers),
            time.perf_counter() - started,
            traceparent=ask.traceparent,
            caller=ask.caller,
            computed=sum(answer.source in COMPUTED for answer in reply.answers),
        )
        return RenderedReply(200, [*_fixed(reply.length), *reply.headers.items()], reply.body, reply)

    def replayed(self, request: bytes, caller: Caller | None = None) -> bytes | None:
        """The kept reply to these very bytes, counted and logged."""
        if self._memory is None:
            return None
        self._access.asking = caller
        return self._memory.reply(request)

    def remember(self, ask: RequestHead, raw: bytes, reply: Reply) -> None:
        """Keep the reply to a request that aiohttp read and near answered, for when its very bytes come again."""
        answers, question = reply.answers, reply.question
        if self._memory is None or question is None or reply.result != "hit" or len(answers) > MAX_ROWS:
            return
        if question.options.lane == "background":  # what is replayed counts as an online hit
            return
        if any(answer.source != "near" for answer in answers) or not self._memory.worth_keeping(raw):
            return
        predictions = [answer.prediction for answer in answers]
        body = reply.body, b""
        self._memory.keep(raw, self._kept(ask, question.space, reply.keys, predictions, body, reply.length, REPLAY))

    def _kept(
        self,
        ask: RequestHead,
        space: Space,
        keys: Sequence[Key],
        predictions: Sequence[Prediction],
        body: tuple[bytes, bytes],
        length: int | None,
        timing: str,
    ) -> Kept:
        """The reply as one that may be sent again as long as near has what it was made of."""
        hits, count_again, access = self._metrics.hits(ask.model, ask.protocol), self._server.count_again, self._access
        saved = sum(prediction.seconds for prediction in predictions)
        served, rows = self._served[ask.model], len(predictions)
        model, protocol = ask.model, ask.protocol  # not `ask`, which holds its own caller

        def count(seconds: float, traceparent: str | None) -> None:
            count_again(served, hits, rows, 0, saved, seconds)
            caller, access.asking = access.asking, None
            access.told(model, protocol, 200, "hit", rows, seconds, traceparent=traceparent, caller=caller)

        return Kept(
            list(zip(keys, predictions, strict=True)),
            body,
            length,
            lambda: self._server.in_force(served, space),
            count,
            timing if self._server_timing else None,
        )


def _fixed(length: int | None) -> Headers:
    """The headers that do not change with time."""
    if length is None:
        return [("Server", SERVER), ("Content-Type", JSON)]
    return [("Server", SERVER), ("Content-Type", BINARY), (HEADER_LENGTH, str(length))]
