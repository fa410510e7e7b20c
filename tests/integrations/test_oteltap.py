"""Span trees at an OTLP receiver that is not ours: oteltap, from PyPI, in an environment of its own."""

from __future__ import annotations

import base64
import json
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests import span_trees
from tests.live import Live, started
from tests.otlp_receiver import WAIT_SECONDS, Received, received
from tests.ports import free_port
from tests.stories.test_87_traces import in_front, traced_by

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-oteltap/bin/python"


class Tap:
    """What oteltap prints: a span a line."""

    def __init__(self, url: str, process: subprocess.Popen[str]) -> None:
        self.url = url
        self._process = process
        self._spans: list[Received] = []
        self._changed = threading.Condition()

    def read(self) -> None:
        """Until it ends."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                with self._changed:
                    self._spans.append(_span(json.loads(line)))
                    self._changed.notify_all()

    def of(self, trace: str, wanted: Callable[[list[Received]], bool]) -> list[Received]:
        def found() -> list[Received]:
            return [span for span in self._spans if span.trace == trace]

        with self._changed:
            assert self._changed.wait_for(lambda: wanted(found()), WAIT_SECONDS), found()
            return found()


def _span(document: dict[str, object]) -> Received:
    """oteltap writes ids in hexadecimal, as OTLP's JSON has them; protobuf's own JSON has base64."""

    def encoded(part: object) -> object:
        if isinstance(part, dict):
            return {
                name: base64.b64encode(bytes.fromhex(str(value))).decode()
                if name in ("traceId", "spanId", "parentSpanId")
                else encoded(value)
                for name, value in part.items()
            }
        return [encoded(one) for one in part] if isinstance(part, list) else part

    return received(ParseDict(encoded(document), Span(), ignore_unknown_fields=True))


@pytest.fixture(scope="module")
def tap() -> Iterator[Tap]:
    port = free_port()
    process = subprocess.Popen([PYTHON, "-u", "-m", "oteltap", f"--port={port}"], stdout=subprocess.PIPE, text=True)
    one = Tap(f"http://127.0.0.1:{port}", process)
    reader = threading.Thread(target=one.read)
    reader.start()
    try:
        deadline = time.monotonic() + 30
        while not _listens(one.url):
            assert time.monotonic() < deadline
        yield one
    finally:
        process.terminate()
        process.wait(30)
        reader.join()
        assert process.stdout is not None
        process.stdout.close()


def _listens(url: str) -> bool:
    """Whether it answers; 404 is an answer."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def system(built: Path, tmp_path_factory: pytest.TempPathFactory, tap: Tap) -> Iterator[Live]:
    with traced_by(tap.url), started(built, tmp_path_factory.mktemp("traced") / "data") as live:
        yield live


@pytest.mark.parametrize(
    "check",
    [span_trees.check_miss_and_hits, span_trees.check_coalesced, span_trees.check_job],
    ids=lambda f: f.__name__,
)
def test_span_trees(system: Live, tap: Tap, check: Callable[[Live, span_trees.Collector], None]) -> None:
    check(system, tap)


def test_the_tree_of_an_upstream(system: Live, tap: Tap, tmp_path: Path) -> None:
    with traced_by(tap.url), in_front(system, tmp_path) as front:
        span_trees.check_upstream(front, tap)
