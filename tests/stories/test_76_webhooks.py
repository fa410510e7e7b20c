"""Somebody else is told: signed, once it is true, again until it is heard, and never where it must not go."""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from tests.live import Live, started
from tests.questions import ask_fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT
from tests.stories.test_75_ask_now_fetch_later import ask, submit

seeds = itertools.count(760_000)


class Sink:
    """A receiver on loopback: answers what is scripted, 200 after that, and holds where it is told to."""

    def __init__(self) -> None:
        self.came: queue.Queue[tuple[str, dict[str, str], bytes]] = queue.Queue()
        self.script: list[int] = []
        self.open = threading.Event()
        self.open.set()
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                sink.came.put((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
                sink.open.wait(30)
                self.send_response(sink.script.pop(0) if sink.script else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @contextlib.contextmanager
    def running(self) -> Iterator[Sink]:
        """It receives until the block ends."""
        thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        thread.start()
        yield self
        self.server.shutdown()
        self.server.server_close()
        thread.join()

    def next(self) -> tuple[str, dict[str, str], bytes]:
        return self.came.get(timeout=30)


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    with Sink().running() as one:
        yield one


@pytest.fixture(scope="module")
def telling(built: Path, tmp_path_factory: pytest.TempPathFactory, sink: Sink) -> Iterator[Live]:
    """A system that may call the sink, and nothing else."""
    data = tmp_path_factory.mktemp("telling") / "data"
    with started(
        built, data, f"--webhook-allow={sink.url}", "--webhook-seconds=2", "--webhook-tries=3", models=["fingerprint"]
    ) as system:
        yield system


def secret(system: Live) -> Webhook:
    return Webhook((system.data / "webhook-secret").read_text().strip())


def test_a_receiver_is_told_the_end_signed_and_without_the_answer(telling: Live, sink: Sink) -> None:
    """The event holds what a poll shows; the specification's own verifier takes it; the answer is fetched."""
    url = f"{sink.url}/done?who=me"
    headers, ticket = submit(telling, ask_fingerprint(numbers(next(seeds))), **{"Foreseen-Webhook": url})
    path, told, body = sink.next()
    event = secret(telling).verify(body, told)
    assert path == "/done?who=me"
    assert event["type"] == "prediction.succeeded"
    assert event["data"] == ask(telling, headers["location"])[2]
    assert event["data"]["id"] == ticket["id"]
    assert "outputs" not in body.decode()
    assert telling.get(f"{headers['location']}/result")[0] == 200


def test_a_cancelled_ticket_is_told_too(telling: Live, sink: Sink) -> None:
    """Whatever the end is."""
    telling.signal("worker", signal.SIGSTOP)
    location = submit(telling, ask_fingerprint(numbers(next(seeds))), **{"Foreseen-Webhook": sink.url})[0]["location"]
    assert telling.ask("DELETE", location, None, None)[0] == 200
    telling.signal("worker", signal.SIGCONT)
    assert secret(telling).verify(*reversed(sink.next()[1:]))["type"] == "prediction.cancelled"


def test_what_is_not_heard_is_said_again_under_the_same_id(telling: Live, sink: Sink) -> None:
    """Two times 500, then 200: three calls, one webhook-id, one body, each freshly signed."""
    sink.script += [500, 500]
    submit(telling, ask_fingerprint(numbers(next(seeds))), **{"Foreseen-Webhook": sink.url})
    calls = [sink.next(), sink.next()]
    for _, told, body in calls:
        assert secret(telling).verify(body, told)
    assert calls[0][1]["webhook-id"] == calls[1][1]["webhook-id"]
    assert calls[0][2] == calls[1][2]
    assert int(calls[0][1]["webhook-timestamp"]) < int(calls[1][1]["webhook-timestamp"])
    sink.script.clear()


def test_a_worker_that_is_killed_while_it_tells_does_not_lose_the_webhook(telling: Live, sink: Sink) -> None:
    """The sink has it and has not answered when the worker is killed: the next worker sends it again, the same."""
    sink.open.clear()
    submit(telling, ask_fingerprint(numbers(next(seeds))), **{"Foreseen-Webhook": sink.url})
    first = sink.next()
    telling.signal("worker", signal.SIGKILL)
    sink.open.set()
    again = sink.next()
    assert again[1]["webhook-id"] == first[1]["webhook-id"]
    assert again[2] == first[2]


def test_where_it_may_not_go_is_said_at_once(telling: Live, sink: Sink) -> None:
    """Another host, another port, another scheme, a private address, nonsense, two: 400, and no ticket is made."""
    for url in (
        "https://127.0.0.1/",
        f"{sink.url[:-1]}/",
        f"{sink.url.replace('http:', 'https:')}/",
        "http://169.254.169.254/latest/meta-data/",
        f"http://user@{sink.url[7:]}/",
        "nonsense",
        "",
    ):
        headers = {"Prefer": "respond-async", "Foreseen-Webhook": url}
        status, _, content = telling.post(FINGERPRINT, ask_fingerprint(numbers(next(seeds))), headers)
        assert (status, json.loads(content)["code"]) == (400, "webhook_refused"), url


def test_a_hit_tells_nobody_and_a_webhook_needs_a_ticket(telling: Live, sink: Sink) -> None:
    """Who has the answer needs no event; who does not prefer a ticket has nothing that could be told."""
    body, headers = ask_fingerprint(numbers(next(seeds))), {"Foreseen-Webhook": sink.url}
    status, _, content = telling.post(FINGERPRINT, body, headers)
    assert (status, json.loads(content)["code"]) == (400, "webhook_refused")
    assert telling.post(FINGERPRINT, body)[0] == 200
    status, _, content = telling.post(FINGERPRINT, body, headers)
    assert (status, json.loads(content)["code"]) == (400, "webhook_refused")
    assert telling.post(FINGERPRINT, body, headers | {"Prefer": "respond-async"})[0] == 200
    assert sink.came.empty()


def test_webhooks_are_off_unless_the_operator_allows_some(live: Live) -> None:
    """The default: a request for one is refused and says what there is instead."""
    headers = {"Prefer": "respond-async", "Foreseen-Webhook": "https://hooks.example/"}
    status, _, content = live.post(FINGERPRINT, ask_fingerprint(numbers(next(seeds))), headers)
    told = json.loads(content)
    assert (status, told["code"]) == (400, "webhook_refused")
    assert "off" in told["error"]
    assert not (live.data / "webhook-secret").exists()
