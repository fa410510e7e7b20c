"""An OTLP receiver of the tests: takes spans over HTTP as a collector does, and waits for those that a test wants."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class Received:
    """A span as a collector sees it; ids are hexadecimal."""

    service: str
    name: str
    kind: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    links: tuple[str, ...]
    failed: bool
    began: int
    ended: int


def received(span: Span, service: str = "") -> Received:
    """A span of the protocol."""
    attributes = {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}
    return Received(
        service, span.name, Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"), span.trace_id.hex(),
        span.span_id.hex(), span.parent_span_id.hex(), attributes, tuple(link.span_id.hex() for link in span.links),
        span.status.code == 2, span.start_time_unix_nano, span.end_time_unix_nano,
    )  # fmt: skip


@dataclass
class Receiver:
    """Spans that were received. `url` is the endpoint; `status` is what exports are answered with."""

    url: str = ""
    status: int = 200
    spans: list[Received] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self, path: str, body: bytes) -> None:
        message = ExportTraceServiceRequest.FromString(body)
        with self.changed:
            self.paths.append(path)
            for resource in message.resource_spans:
                names = {one.key: one.value.string_value for one in resource.resource.attributes}
                for scope in resource.scope_spans:
                    self.spans += [received(span, names.get("service.name", "")) for span in scope.spans]
            self.changed.notify_all()

    def of(self, trace: str, wanted: Callable[[list[Received]], bool]) -> list[Received]:
        """The spans of a trace, once they are as wanted."""

        def found() -> list[Received]:
            return [span for span in self.spans if span.trace == trace]

        with self.changed:
            assert self.changed.wait_for(lambda: wanted(found()), WAIT_SECONDS), found()
            return found()


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver on a port of its own."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if receiver.status == 200:
                receiver.take(self.path, body)
            self.send_response(receiver.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library names it
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
