"""Span trees of real processes: what a collector has to hold for a miss, a hit, coalesced requests, a job, an upstream.

`tests/stories` checks them with a receiver of this process, `tests/integrations` with oteltap.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from tests.live import Live
from tests.otlp_receiver import Received
from tests.questions import ask_fingerprint, ask_minilm, numbers
from tests.raw import FINGERPRINT, MINILM, post

Tree = list[Any]
"""Name and kind of a span, then its children's trees, by name."""


class Collector(Protocol):
    """A receiver of spans, as a test reads it."""

    def of(self, trace: str, wanted: Callable[[list[Received]], bool]) -> list[Received]: ...


def tree_of(spans: Sequence[Received], parent: str) -> list[Tree]:
    """The spans beneath one."""
    children = sorted((span for span in spans if span.parent == parent), key=lambda span: span.name)
    return [[f"{span.name} {span.kind}", *tree_of(spans, span.id)] for span in children]


class TracedClient:
    """Sends requests that have sampled traces, and reads what the collector got."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def context(self) -> tuple[str, str, str]:
        """A new trace: its context, its id, and the id of the caller's span."""
        trace, parent = secrets.token_hex(16), secrets.token_hex(8)
        return f"00-{trace}-{parent}-01", trace, parent

    def asked(
        self, live: Live, path: str, body: Any, count: int, headers: Mapping[str, str] | None = None
    ) -> tuple[list[Tree], dict[str, Received]]:
        """One request: the trees beneath its caller's span, and its spans by name, once there are so many."""
        context, trace, parent = self.context()
        reply = post(live, path, body, traceparent=context, **(headers or {}))
        assert reply.status in (200, 202), reply
        found = self._collector.of(trace, lambda spans: len(spans) >= count)
        assert len(found) == count, found
        return tree_of(found, parent), {span.name: span for span in found}


MISS: Tree = [
    "infer fingerprint SERVER",
    ["far CLIENT"],
    ["model CLIENT", ["compute fingerprint SERVER"]],
]
JOB: Tree = [
    "infer fingerprint SERVER",
    ["publish fingerprint PRODUCER", ["process fingerprint CONSUMER", *MISS[1:]]],
]


def check_miss_and_hits(live: Live, collector: Collector) -> None:
    """The call of far and of the model beneath a miss, the model process's own span beneath that, nothing beneath a
    hit; nothing at all of a request that is not sampled."""
    client, body = TracedClient(collector), ask_fingerprint(numbers(1))
    tree, spans = client.asked(live, FINGERPRINT, body, 4)
    assert tree == [MISS]
    server = spans["infer fingerprint"]
    assert (server.attributes["foreseen.cache.result"], server.attributes["foreseen.rows_hit"]) == ("miss", 0)
    assert server.attributes["url.path"] == FINGERPRINT
    assert len(server.attributes["foreseen.digest"]) == 8
    for _ in range(3):  # the normal path, a known body, a known head
        tree, spans = client.asked(live, FINGERPRINT, body, 1)
        assert tree == [["infer fingerprint SERVER"]]
        server = spans["infer fingerprint"]
        assert (server.attributes["foreseen.cache.result"], server.attributes["foreseen.rows_hit"]) == ("hit", 1)
    unsampled, trace, _ = client.context()
    post(live, FINGERPRINT, ask_fingerprint(numbers(2)), traceparent=unsampled[:-2] + "00")
    client.asked(live, FINGERPRINT, body, 1)
    assert collector.of(trace, lambda _: True) == []


def check_coalesced(live: Live, collector: Collector) -> None:
    """Two requests for the same new texts: one is answered by the other's call, and has a link to it."""
    client, texts = TracedClient(collector), [f"{secrets.token_hex(8)} {'word ' * 100}" for _ in range(48)]
    contexts, sockets = [client.context() for _ in range(2)], []
    try:
        for context, _, _ in contexts:
            sockets.append(_sent(live, MINILM, ask_minilm(*texts), context))
        for one in sockets:
            assert one.recv(12) == b"HTTP/1.1 200"
    finally:
        for one in sockets:
            one.close()
    found: list[Received] = []
    for _, trace, _ in contexts:  # the model's span ends before the request's, in the same process
        found += collector.of(trace, lambda spans: any(span.name == "infer minilm" for span in spans))
    servers = [span for span in found if span.name == "infer minilm"]
    waited = [span for span in servers if span.attributes["foreseen.cache.result"] == "collapsed"]
    calls = {span.id: span for span in found if span.name == "model"}
    assert len(servers) == 2, found
    assert len(waited) == 1, servers
    assert waited[0].links, "no link to the computation"
    for link in waited[0].links:
        assert calls[link].trace != waited[0].trace


def _sent(live: Live, path: str, body: Any, context: str) -> socket.socket:
    """A request on a connection of its own, and nothing read yet."""
    import json

    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(data)}\r\ntraceparent: {context}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", live.port), timeout=60)
    connection.sendall(head.encode() + data)
    return connection


def check_job(live: Live, collector: Collector) -> None:
    """The worker's span is beneath the publication, which is beneath the request that got the ticket."""
    client = TracedClient(collector)
    tree, spans = client.asked(live, FINGERPRINT, ask_fingerprint(numbers(3)), 6, {"prefer": "respond-async"})
    assert tree == [JOB]
    assert spans["infer fingerprint"].attributes["http.response.status_code"] == 202
    assert (
        spans["process fingerprint"].attributes["foreseen.job"]
        == spans["publish fingerprint"].attributes["foreseen.job"]
    )


def check_upstream(front: Live, collector: Collector) -> None:
    """`front` is a proxy before another one: that one's spans are beneath the first one's call of its model."""
    tree, _ = TracedClient(collector).asked(front, FINGERPRINT, ask_fingerprint(numbers(4)), 6)
    assert tree == [["infer fingerprint SERVER", ["model CLIENT", MISS]]], tree
