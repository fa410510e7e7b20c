"""Spans of sampled requests, of jobs, and of the calls that they cause: made when they have ended.

A request is traced if its `traceparent` is sampled. Then its trace context is replaced by a `RequestSpan`: a string
that goes wherever the context goes, and that takes notes for the span. All other requests carry a plain string or None,
and for them nothing is made.

A batch of rows belongs to the first traced request that waits for it: far and model calls are children of that
request's span. Every other traced request that waits for the batch has a link to the calls.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Literal, Protocol

from msgspec import Struct, structs

from foreseen.errors import ForeseenError
from foreseen.queue.records import Head
from foreseen.types import RequestOptions

Kind = Literal["SERVER", "CLIENT", "PRODUCER", "CONSUMER"]
Attributes = Mapping[str, str | int | float]

_ODD = frozenset("13579bdf")
MAX_LINKS = 128
"""OpenTelemetry's own limit on the links of a span."""


class EndedSpan(Struct, frozen=True):
    """A span as it is exported. `context` and `parent` are W3C trace contexts; times are Unix nanoseconds. `error` is
    the code of what it failed with."""

    name: str
    kind: Kind
    context: str
    parent: str | None
    began_ns: int
    ended_ns: int
    attributes: Attributes
    links: Sequence[str] = ()
    error: str | None = None


class SpanSink(Protocol):
    """Takes spans that have ended. Never waits and never raises."""

    def add(self, span: EndedSpan) -> None: ...


def is_sampled(traceparent: str | None) -> bool:
    """Whether a well-formed W3C trace context has the sampled flag: its last digit is odd. 0.1 µs, on every hit."""
    return traceparent is not None and traceparent[-1:] in _ODD


def child_context(traceparent: str) -> str:
    """The context of a new span in the same trace, sampled."""
    return f"{traceparent[:36]}{secrets.token_hex(8)}-01"


def new_context(*, sampled: bool) -> str:
    """The context of the first span of a new trace."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-{'01' if sampled else '00'}"


class RequestSpan(str):
    """The trace context of one traced request, or of one traced job that a worker computes."""

    __slots__ = ("_began_ns", "_parent", "digest", "rows_hit", "sink", "waited_for")

    _parent: str | None
    _began_ns: int
    sink: SpanSink
    digest: str | None
    rows_hit: int | None
    waited_for: list[Computation]
    """Computations of other requests."""

    @classmethod
    def under(cls, parent: str | None, sink: SpanSink) -> RequestSpan:
        """A span under a caller's, or the first one of a trace."""
        made = cls(new_context(sampled=True) if parent is None else child_context(parent))
        made._parent, made._began_ns, made.sink = parent, time.time_ns(), sink
        made.digest = made.rows_hit = None
        made.waited_for = []
        return made

    def end_request(
        self, model: str, protocol: str, status: int, result: str, rows: int, seconds: float, code: str | None,
        path: object,
    ) -> None:  # fmt: skip
        """The request was answered; `seconds` are from its arrival."""
        attributes: dict[str, str | int | float] = {
            "foreseen.model": model,
            "foreseen.protocol": protocol,
            "foreseen.cache.result": result,
            "foreseen.rows": rows,
            "http.response.status_code": status,
        }
        if path:
            attributes["url.path"] = str(path)
        if code is None:
            hit = rows if result in ("hit", "stale") else 0
            attributes["foreseen.rows_hit"] = hit if self.rows_hit is None else self.rows_hit
        if protocol == "openai":
            attributes |= {"gen_ai.operation.name": "embeddings", "gen_ai.request.model": model}
        now = time.time_ns()
        self._end(
            f"infer {model}", "SERVER", attributes, now - int(seconds * 1e9), now, code if status >= 500 else None
        )

    def end_job(self, job: Head, error: str | None) -> None:
        """A worker has computed the job; `error` is the code of what it failed with."""
        attributes = {**_messaging(job), "messaging.operation.type": "process"}
        self._end(f"process {job.model}", "CONSUMER", attributes, self._began_ns, time.time_ns(), error)

    def _end(
        self, name: str, kind: Kind, attributes: dict[str, str | int | float], began: int, ended: int, error: str | None
    ) -> None:
        if self.digest is not None:
            attributes["foreseen.digest"] = self.digest
        links = [call for computation in self.waited_for for call in computation.calls][:MAX_LINKS]
        self.sink.add(EndedSpan(name, kind, str(self), self._parent, began, ended, attributes, links, error))


class Computation(str):
    """The trace context of a batch of rows that are computed together: the context of the request that owns it."""

    __slots__ = ("_far", "_models", "owner")

    _far: list[str]
    _models: list[str]
    owner: RequestSpan

    @classmethod
    def of(cls, owner: RequestSpan) -> Computation:
        made = cls(owner)
        made.owner, made._far, made._models = owner, [], []
        return made

    @property
    def calls(self) -> Sequence[str]:
        """The contexts of its calls: of the model if it was asked, else of far."""
        return self._models or self._far

    def asked_far(self, seconds: float, rows: int, found: int) -> None:
        """far was asked for so many rows, and had some."""
        context, now = child_context(self), time.time_ns()
        self._far.append(context)
        attributes: Attributes = {
            "db.system.name": "redis", "db.operation.name": "MGET", "foreseen.rows": rows, "foreseen.rows_hit": found,
        }  # fmt: skip
        self.owner.sink.add(EndedSpan("far", "CLIENT", context, str(self), now - int(seconds * 1e9), now, attributes))

    def asks_model(self, context: str) -> None:
        """The model is asked under this context."""
        self._models.append(context)


def far_call(traceparent: str | None, seconds: float | None, rows: int, found: int) -> None:
    """A CLIENT span of a look-up in far, if it is traced; `seconds` is None where far was not asked."""
    if isinstance(traceparent, Computation) and seconds is not None:
        traceparent.asked_far(seconds, rows, found)


class ModelCall:
    """A CLIENT span around one request to a model; `with` gives the options that carry its context."""

    __slots__ = ("_began_ns", "_model", "_options", "_parent", "_rows", "_sink")

    def __init__(self, model: str, rows: int, options: RequestOptions, parent: RequestSpan | Computation) -> None:
        context = child_context(parent)
        self._sink = parent.sink if isinstance(parent, RequestSpan) else parent.owner.sink
        if isinstance(parent, Computation):
            parent.asks_model(context)
        self._model, self._rows, self._parent = model, rows, str(parent)
        self._options = structs.replace(options, traceparent=context)

    def __enter__(self) -> RequestOptions:
        self._began_ns = time.time_ns()
        return self._options

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        attributes: Attributes = {"foreseen.model": self._model, "foreseen.rows": self._rows}
        code = None if error is None else code_of(error)
        context = self._options.traceparent or ""
        self._sink.add(
            EndedSpan("model", "CLIENT", context, self._parent, self._began_ns, time.time_ns(), attributes, (), code)
        )


def model_call(model: str, rows: int, options: RequestOptions) -> AbstractContextManager[RequestOptions]:
    """The options of a model request; if it is traced they carry the context of a span of its own."""
    parent = options.traceparent
    if isinstance(parent, RequestSpan | Computation):
        return ModelCall(model, rows, options, parent)
    return nullcontext(options)


def computed_span(model: str, rows: int, started: float, seconds: float, queued: float, traceparent: str) -> EndedSpan:
    """A SERVER span of the model process. `started` is on the clock that measures durations; `seconds` are those of
    the model's runs, `queued` those before the last of them."""
    now = time.time_ns()
    began = now - int((time.perf_counter() - started) * 1e9)
    attributes: Attributes = {
        "foreseen.model": model,
        "foreseen.rows": rows,
        "foreseen.queue_seconds": queued,
        "foreseen.run_seconds": seconds,
    }
    return EndedSpan(f"compute {model}", "SERVER", child_context(traceparent), traceparent, began, now, attributes)


class Publication:
    """A request that becomes a job: a PRODUCER span if the request is traced. `context` goes with the job: of that
    span, or what a sampled context of no span of ours is; else empty."""

    __slots__ = ("_began_ns", "_span", "context")

    def __init__(self, context: str, span: RequestSpan | None = None) -> None:
        self.context, self._span, self._began_ns = context, span, time.time_ns()

    @classmethod
    def of(cls, traceparent: str | None) -> Publication:
        if isinstance(traceparent, RequestSpan):
            return cls(child_context(traceparent), traceparent)
        return cls(traceparent if traceparent is not None and is_sampled(traceparent) else "")

    def end(self, job: Head, joined: str) -> None:
        """The job is queued. `joined` is the context of the job that was there already and is waited for instead."""
        span = self._span
        if span is None:
            return
        now, attributes = time.time_ns(), {**_messaging(job), "messaging.operation.type": "send"}
        links = (joined,) if joined else ()
        name = f"publish {job.model}"
        span.sink.add(EndedSpan(name, "PRODUCER", self.context, str(span), self._began_ns, now, attributes, links))


@contextmanager
def job_span(job: Head, sink: SpanSink | None) -> Iterator[str | None]:
    """The trace context under which a worker computes a job; a CONSUMER span if it is traced."""
    if sink is None or not is_sampled(job.traceparent):
        yield job.traceparent or None
        return
    span, error = RequestSpan.under(job.traceparent, sink), None
    try:
        yield span
    except Exception as raised:
        error = code_of(raised)
        raise
    finally:
        span.end_job(job, error)


def code_of(error: BaseException) -> str:
    """What a span says of an error."""
    return error.code if isinstance(error, ForeseenError) else type(error).__name__


def _messaging(job: Head) -> dict[str, str | int | float]:
    return {
        "messaging.system": "foreseen",
        "foreseen.model": job.model,
        "foreseen.rows": job.rows,
        "foreseen.job": job.job.hex()[:12],
    }
