"""Traces: which requests get spans, the span tree of hit, miss and coalesced requests, and their export."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, cast

import pytest
from msgspec import structs

from foreseen.errors import ModelFailed, SetupError
from foreseen.proxy.fastpath.responder import Responder
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.telemetry.otlp import Traces
from foreseen.telemetry.spans import EndedSpan, is_sampled
from foreseen.telemetry.traces import settings_of, traces_of
from tests.otlp_receiver import receiving
from tests.proxy.fastpath.test_responder import ASK, System, body, status

if TYPE_CHECKING:
    from foreseen.proxy.predict.ask import RequestHead

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


class ListSink:
    """Keeps spans, and samples as a test says."""

    def __init__(self, *sampled: bool) -> None:
        self.share = 1.0 if sampled else 0.0
        self.spans: list[EndedSpan] = []
        self._sampled = list(sampled)

    def add(self, span: EndedSpan) -> None:
        self.spans.append(span)

    def samples(self) -> bool:
        return self.share > 0 and self._sampled.pop(0)

    def named(self, name: str) -> list[EndedSpan]:
        return [span for span in self.spans if span.name == name]


class TracedSystem(System):
    """The same with a traced responder."""

    def __init__(self, *sampled: bool, near_bytes: int = 0) -> None:
        super().__init__(near_bytes=near_bytes)
        self.sink = ListSink(*sampled)
        self.responder = Responder(
            traces=cast(Traces, self.sink),
            served=self.responder.served,
            server=self.server,
            cache=self.cache,
            clock=self.pipeline.tiers.clock,
        )


def traced(number: int, flags: str = "01") -> RequestHead:
    """A request with a trace context of its own."""
    return structs.replace(ASK, traceparent=f"00-{number:032x}-{number:016x}-{flags}")


async def test_a_miss_has_far_and_model_beneath_it_and_the_model_gets_the_context() -> None:
    system = TracedSystem()
    await system.ask(body((4, 2), (5, 2)), traced(7))
    (far,), (model,), (server,) = (system.sink.named(name) for name in ("far", "model", "infer m"))
    assert server.parent == traced(7).traceparent
    assert server.context[:36] == f"00-{7:032x}-", "the trace is the caller's"
    assert far.parent == model.parent == server.context
    assert [far.kind, model.kind, server.kind] == ["CLIENT", "CLIENT", "SERVER"]
    assert [options.traceparent for options in system.model.asked] == [model.context]
    assert len({far.context, model.context, server.context}) == 3
    assert server.attributes == {
        "foreseen.model": "m", "foreseen.protocol": "v2", "foreseen.cache.result": "miss", "foreseen.rows": 2,
        "foreseen.rows_hit": 0, "foreseen.digest": "d1", "http.response.status_code": 200,
    }  # fmt: skip
    assert (far.attributes["foreseen.rows"], far.attributes["foreseen.rows_hit"]) == (2, 0)
    assert server.began_ns <= far.began_ns <= far.ended_ns <= model.began_ns <= model.ended_ns <= server.ended_ns
    assert abs(server.ended_ns / 1e9 - time.time()) < 60


async def test_a_hit_has_one_span_and_an_unsampled_one_none() -> None:
    system = TracedSystem(near_bytes=100_000)
    await system.known(body((4, 2)))
    assert system.sink.spans == [], "nothing was sampled"
    assert "near" in status(await system.ask(body((4, 2)), traced(1)))
    (server,) = system.sink.spans
    assert (server.attributes["foreseen.cache.result"], server.attributes["foreseen.rows_hit"]) == ("hit", 1)
    await system.ask(body((4, 2)), traced(2, "00"))
    await system.ask(body((9, 9)), traced(3, "00"))
    assert len(system.sink.spans) == 1
    assert system.model.asked[-1].traceparent == traced(3, "00").traceparent, "it goes on as it came"


async def test_a_partial_hit_says_how_many_rows_were_hits() -> None:
    system = TracedSystem()
    await system.known(body((4, 2)))
    await system.ask(body((4, 2), (6, 6)), traced(1))
    (server,) = system.sink.named("infer m")
    assert (server.attributes["foreseen.cache.result"], server.attributes["foreseen.rows_hit"]) == ("partial", 1)


@pytest.mark.parametrize("same_body", [True, False])
async def test_coalesced_requests_have_a_link_to_the_call_that_they_waited_for(*, same_body: bool) -> None:
    """Whether they joined a row in flight or a whole request; the second is a row of a longer request."""
    system = TracedSystem()
    system.model.gate.clear()
    first = system.ask(body((4, 2)), traced(1))
    await system.model.entered.wait()
    second = system.ask(body((4, 2)) if same_body else body((4, 2), (4, 2)), traced(2))
    unsampled = system.ask(body((4, 2)), traced(3, "00"))
    system.model.gate.set()
    await asyncio.gather(first, second, unsampled)
    (model,), servers = system.sink.named("model"), system.sink.named("infer m")
    links = {server.context[3:35]: server.links for server in servers}
    assert links == {f"{1:032x}": [], f"{2:032x}": [model.context]}
    assert model.parent == next(server.context for server in servers if not server.links)
    assert system.model.rows == 1


async def test_requests_of_one_turn_share_a_batch_that_the_first_owns() -> None:
    system = TracedSystem()
    await asyncio.gather(*(system.ask(body((n, n)), traced(n)) for n in (1, 2, 3)))
    (model,) = system.sink.named("model")
    links = [server.links for server in system.sink.named("infer m")]
    assert sorted(links) == [[], [model.context], [model.context]]
    assert model.attributes["foreseen.rows"] == 3


async def test_a_sampled_request_owns_the_batch_of_an_unsampled_one() -> None:
    system = TracedSystem()
    system.model.gate.clear()
    first = system.ask(body((4, 2)), traced(1, "00"))
    await system.model.entered.wait()
    second = system.ask(body((4, 2)), traced(2))
    system.model.gate.set()
    await asyncio.gather(first, second)
    (server,) = system.sink.spans
    assert (server.name, server.links) == ("infer m", [])


async def test_an_error_ends_the_span_with_its_code() -> None:
    system = TracedSystem()
    system.model.error = ModelFailed("it fell")
    await system.ask(body((4, 2)), traced(1))
    (model,), (server,) = system.sink.named("model"), system.sink.named("infer m")
    assert (model.error, server.error) == ("model_failed", "model_failed")
    assert server.attributes["http.response.status_code"] == 502
    await system.ask(b"{", traced(2))
    await system.ask(body((4, 2)), structs.replace(traced(3), model="missing"))
    bad, unknown = system.sink.spans[3:]
    assert (bad.error, unknown.error) == (None, None), "an error of the client is none of the server"
    assert unknown.name == "infer other", "a name that the client made up is in no span"
    assert "it fell" not in repr(system.sink.spans)


async def test_a_share_of_requests_without_a_context_is_sampled_once_each() -> None:
    """Known requests as well; nothing of a span is kept for the next request of the same bytes."""
    system = TracedSystem(False, False, False, near_bytes=100_000)
    await system.known(body((4, 2)))
    raw = b"the whole request"
    responder = system.responder

    def again(*sampled: bool) -> None:
        system.sink._sampled = list(sampled)
        if responder.repeat(raw) is None:
            responder.begin(ASK, body((4, 2)), lambda _: None, raw)
        assert system.sink._sampled == [], "one decision a request"

    again(False)
    again(True)
    again(False)
    assert len(system.sink.spans) == 1
    assert system.sink.spans[0].parent is None
    system.sink._sampled = [True]
    traced_once = responder.traced(ASK)  # as handlers do, before they ask for an answer
    await responder.answer(traced_once, body((4, 2)), time.perf_counter(), asyncio.get_running_loop().time() + 9)
    assert len(system.sink.spans) == 2


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, None),
        (ENDPOINT, 0.0),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/v1/traces"}, 0.0),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "true"}, None),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, None),
        ({**ENDPOINT, "OTEL_TRACES_SAMPLER": "always_off"}, None),
        ({**ENDPOINT, "OTEL_TRACES_SAMPLER": "parentbased_always_on"}, 1.0),
        ({**ENDPOINT, "OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}, 0.25),
    ],
)
def test_the_standard_variables_decide(environment: dict[str, str], share: float | None) -> None:
    settings = settings_of(environment)
    assert (None if settings is None else settings.share) == share


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(SetupError, match=f"{name}.*{value}"):
        settings_of({**ENDPOINT, name: value})


def test_a_share_that_is_none_is_refused() -> None:
    environment = {**ENDPOINT, "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "7"}
    with pytest.raises(SetupError, match=r"OTEL_TRACES_SAMPLER_ARG.*from 0 to 1"):
        settings_of(environment)


def test_the_flag_decides() -> None:
    assert is_sampled(traced(1).traceparent)
    assert not any(map(is_sampled, (None, "", traced(1, "00").traceparent, traced(1, "02").traceparent)))


async def test_spans_are_exported_as_otlp_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the ids that they had from the start; what is exported, failed and dropped is counted."""
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
        metrics = ProxyMetrics()
        traces = traces_of("foreseen-proxy", metrics)
        assert traces is not None
        trace = f"{5:032x}"
        parent, context, link = (f"00-{trace}-{n:016x}-01" for n in (1, 2, 3))
        traces.add(EndedSpan("infer m", "SERVER", context, parent, 10, 20, {"foreseen.rows": 1}, (link,), "internal"))
        (span,) = receiver.of(trace, lambda spans: len(spans) == 1)
        assert (span.id, span.parent, span.links) == (f"{2:016x}", f"{1:016x}", (f"{3:016x}",))
        assert (span.service, span.kind, span.failed, span.began, span.ended) == (
            "foreseen-proxy",
            "SERVER",
            True,
            10,
            20,
        )
        assert span.attributes == {"foreseen.rows": 1, "error.type": "internal"}
        assert receiver.paths == ["/v1/traces"]
        await traces.close()
        assert _counted(metrics) == {"exported": 1, "failed": 0, "dropped": 0}


async def test_a_collector_that_is_away_costs_spans_and_no_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with receiving() as receiver:
        receiver.status = 400
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "3")
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "3")
        metrics = ProxyMetrics()
        traces = Traces("foreseen-proxy", 0.0, 2, metrics)
        for number in range(5):
            traces.add(EndedSpan("far", "CLIENT", f"00-{5:032x}-{number + 1:016x}-01", None, 1, 2, {}))
        await traces.close()
        assert _counted(metrics) == {"exported": 0, "failed": 2, "dropped": 3}
        assert receiver.spans == []


def _counted(metrics: ProxyMetrics) -> dict[str, float]:
    metrics.expect([])
    get = metrics.registry.get_sample_value
    return {
        result: get("foreseen_spans_total", {"result": result}) or 0 for result in ("exported", "failed", "dropped")
    }
