"""The log and the metrics say who asked, by whichever way a request was answered."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live import Live, fresh, given
from tests.questions import ask_fingerprint, numbers

FINGERPRINT = "/v2/models/fingerprint/infer"
SECONDS = 20


@pytest.fixture(scope="module")
def logged(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, Path]]:
    """A system behind one trusted proxy that logs every hit, with two workers; and the file of its log."""
    folder = tmp_path_factory.mktemp("who")
    flags = ("--forwarded-hops=1", "--access-log-hits=1", "--log-level=info", "--log-format=json", "--workers=2")
    with (folder / "log").open("w") as log:
        given(built, folder / "data")
        with fresh(folder / "data", "--model=fingerprint", *flags, stderr=log) as system:
            yield system, folder / "log"


def lines(log: Path, client: str, wanted: int) -> list[dict[str, Any]]:
    """The access lines of a client, once there are so many."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        found = [json.loads(line) for line in log.read_text().splitlines()]
        found = [one for one in found if one["event"] == "request" and one.get("client") == client]
        if len(found) >= wanted:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{client}: {found}")


def ask(live: Live, client: str, times: int, body: bytes, path: str = FINGERPRINT, **headers: str) -> list[int]:
    """The same request so many times on one connection: read by aiohttp, then by its known head, then kept whole."""
    connection = http.client.HTTPConnection("127.0.0.1", live.port)
    statuses = []
    for number in range(times):
        named = {"X-Forwarded-For": f"6.6.6.6, {client}", **{k: v.format(number) for k, v in headers.items()}}
        connection.request("POST", path, body, named)
        reply = connection.getresponse()
        reply.read()
        statuses.append(reply.status)
    connection.close()
    return statuses


def test_a_line_says_who_asked_by_every_way(logged: tuple[Live, Path]) -> None:
    """A miss and hits, of which the last are replayed by their bytes: client behind the trusted proxy, and path."""
    live, log = logged
    body = json.dumps(ask_fingerprint(numbers(860_001))).encode()
    assert ask(live, "192.0.2.1", 6, body) == [200] * 6
    told = lines(log, "192.0.2.1", 6)
    assert [line["result"] for line in told] == ["miss"] + ["hit"] * 5
    assert {line["path"] for line in told} == {FINGERPRINT}
    assert "6.6.6.6" not in log.read_text()


def test_a_request_id_is_told(logged: tuple[Live, Path]) -> None:
    """Of heads that differ by nothing else, too, which the fast path recognises."""
    live, log = logged
    body = json.dumps(ask_fingerprint(numbers(860_002))).encode()
    ask(live, "192.0.2.2", 4, body, **{"X-Request-Id": "call-{}"})
    assert [line["request_id"] for line in lines(log, "192.0.2.2", 4)] == [f"call-{number}" for number in range(4)]


def test_an_error_says_what_was_wrong(logged: tuple[Live, Path]) -> None:
    """Its text names the field and holds no input nor a name that the client made up; the path has no query."""
    live, log = logged
    wrong = json.dumps({"inputs": [{"name": "x", "shape": [1, 3], "datatype": "INT64", "data": [123456789] * 3}]})
    assert ask(live, "192.0.2.3", 1, wrong.encode(), FINGERPRINT + "?key=secret") == [400]
    assert ask(live, "192.0.2.3", 1, b"{}", "/v2/models/nobody/infer") == [404]
    bad, unknown = lines(log, "192.0.2.3", 2)
    assert (bad["code"], bad["path"]) == ("bad_input", FINGERPRINT)
    assert "inputs.x.shape" in bad["error"]
    assert (unknown["model"], unknown["path"]) == ("other", "/v2/models/{…}/infer")
    assert "123456789" not in log.read_text()
    assert "secret" not in log.read_text()
    assert "nobody" not in log.read_text()
    assert unknown["error"] == "Request for unknown model: '…' is not found"


def test_the_heaviest_callers_are_told_of(logged: tuple[Live, Path]) -> None:
    """Over both workers, in metrics and by `foreseen top`; computed rows apart."""
    live, _ = logged
    for seed in range(860_010, 860_030):
        ask(live, "192.0.2.9", 2, json.dumps(ask_fingerprint(numbers(seed))).encode())
    live.until("foreseen_caller_requests", lambda count: count == 40, caller="192.0.2.9")
    assert live.metric("foreseen_caller_computed_rows", caller="192.0.2.9") == 20
    command = [sys.executable, "-m", "foreseen.cli", "top", "--once", "--interval=0.1", f"--data={live.data}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "192.0.2.9" in done.stdout
    told = json.loads(subprocess.run([*command, "--json"], capture_output=True, check=False).stdout)
    assert {"caller": "192.0.2.9", "requests": 40, "rows": 40, "computed_rows": 20} in told["callers"]


def test_each_caller_behind_a_proxy_has_its_own_rate(built: Path, tmp_path: Path) -> None:
    """One that asks too often gets 429 by every way, and another one on the same connections its answers."""
    given(built, tmp_path / "data")
    flags = ("--forwarded-hops=1", "--rate=0.01", "--rate-burst=6", "--workers=1")
    with fresh(tmp_path / "data", "--model=fingerprint", *flags) as live:
        body = json.dumps(ask_fingerprint(numbers(860_009))).encode()
        assert ask(live, "192.0.2.1", 9, body) == [200] * 6 + [429] * 3
        assert ask(live, "192.0.2.2", 7, body) == [200] * 6 + [429]
        assert ask(live, "192.0.2.1", 1, body) == [429]


def test_a_client_that_wants_no_hits_is_found_in_the_log(logged: tuple[Live, Path]) -> None:
    """Misses of reason `asked` are those of a caller: its lines say so, and other misses do not."""
    live, log = logged
    body = json.dumps(ask_fingerprint(numbers(860_900))).encode()
    ask(live, "8.8.4.4", 1, body)
    ask(live, "8.8.4.5", 2, body, **{"Cache-Control": "no-cache"})
    assert ["asked" in one for one in lines(log, "8.8.4.4", 1)] == [False]
    assert [(one["result"], one.get("asked")) for one in lines(log, "8.8.4.5", 2)] == [("miss", True)] * 2
