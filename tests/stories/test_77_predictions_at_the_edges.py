"""Predictions asked for by those who should not, in another way, or too late: nothing runs, leaks or breaks."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from redis import Redis

from foreseen.keys.secret import read_secret
from foreseen.paths import state_socket
from foreseen.queue.records import JOB_BYTES, MAC_BYTES, NONCE_BYTES, Records
from foreseen.queue.scripts import BASE
from tests.live import Live, started
from tests.questions import ask_fingerprint, fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT
from tests.stories.test_75_ask_now_fetch_later import ask, submit
from tests.stories.test_77_batches import batch, line

seeds = itertools.count(780_000)


@pytest.fixture(scope="module")
def many(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A system for the stories of this file."""
    data = tmp_path_factory.mktemp("edges") / "data"
    with started(built, data, models=["fingerprint"]) as system:
        yield system


@contextlib.contextmanager
def stopped(live: Live) -> Iterator[None]:
    """While this lasts nobody works on jobs."""
    live.signal("worker", signal.SIGSTOP)
    try:
        yield
    finally:
        live.signal("worker", signal.SIGCONT)


def done(live: Live, seed: int) -> str:
    """Ask later for a row and wait for it; where it is."""
    location = submit(live, ask_fingerprint(numbers(seed)))[0]["location"]
    assert ask(live, location, "wait=20")[2]["state"] == "succeeded"
    return location


def raw(live: Live, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
    """All bytes that come back, over a connection that is then asked once more for its health."""
    with socket.create_connection(("127.0.0.1", live.port), 20) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        told = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, rest = told.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (one.partition(": ") for one in lines[1:])}
    body, _, _ = rest.partition(b"HTTP/1.1 200 ")
    assert b'"live":true' in rest, "the connection is of no use afterwards"
    return int(lines[0].split()[1]), headers, body


def test_other_methods_are_405_and_do_nothing(many: Live) -> None:
    """HEAD, OPTIONS and the rest, on a waiting and on an ended prediction and on none: 405 with Allow, a HEAD without
    a body; nothing is run, fetched or cancelled by it."""
    ended = done(many, next(seeds))
    before = many.model_metric("fingerprint", "foreseen_model_rows_total")
    with stopped(many):
        waiting = submit(many, ask_fingerprint(numbers(next(seeds))))[0]["location"]
        refused_as_they_are(many, ended, waiting)
    assert many.model_metric("fingerprint", "foreseen_model_rows_total") == before
    assert ask(many, waiting, "wait=20")[2]["state"] == "succeeded"


def refused_as_they_are(many: Live, ended: str, waiting: str) -> None:
    for location, state in ((ended, "succeeded"), (waiting, "queued"), ("/v2/predictions/none", None)):
        for path, allowed in ((location, "DELETE, GET"), (f"{location}/result", "GET")):
            for method in ("HEAD", "OPTIONS", "PUT", "PATCH", "POST", "QUERY"):
                status, headers, body = raw(many, method, path)
                assert (status, headers["allow"]) == (405, allowed), (method, path)
                assert headers["content-type"] == "application/json"
                assert body == b"" if method == "HEAD" else json.loads(body)["code"] == "method_not_allowed"
        if state is not None:
            assert ask(many, location)[2]["state"] == state
    assert raw(many, "DELETE", f"{ended}/result")[0] == 405


def purge(live: Live, *words: str) -> None:
    command = [sys.executable, "-m", "foreseen.cli", "purge", f"--data={live.data}", *words]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("words", [["--model=fingerprint"], ["--all"]])
def test_a_purge_takes_results_with_it(many: Live, words: list[str]) -> None:
    """Result and batch line are 410 afterwards, though the ticket says that it had succeeded; the same question again
    is another job, computed anew."""
    seed = next(seeds)
    location, lines = done(many, seed), batch(many, [line(seed)])[1]["location"]
    assert ask(many, lines, "wait=20")[2]["state"] == "succeeded"
    purge(many, *words)
    status, _, told = ask(many, f"{location}/result")
    assert (status, told["code"]) == (410, "prediction_expired")
    assert ask(many, location)[2]["state"] == "succeeded"
    (one,) = (json.loads(text) for text in many.get(f"{lines}/result")[2].splitlines())
    assert (one["response"], one["error"]["code"]) == (None, "prediction_expired")
    before = many.model_metric("fingerprint", "foreseen_model_rows_total")
    again = done(many, seed)
    assert again != location
    assert ask(many, f"{again}/result")[2]["outputs"][0]["data"] == fingerprint(numbers(seed))
    assert many.model_metric("fingerprint", "foreseen_model_rows_total") == before + 1


def test_a_purged_key_takes_its_row(many: Live) -> None:
    """Of two results only the one with that row."""
    kept, gone = next(seeds), next(seeds)
    locations = [done(many, seed) for seed in (kept, gone)]
    token = (many.data / "admin-token").read_text().strip()
    explained = many.post(
        FINGERPRINT.replace("/infer", "/explain"), ask_fingerprint(numbers(gone)), {"Authorization": f"Bearer {token}"}
    )
    (row,) = json.loads(explained[2])["rows"]
    purge(many, f"--key={row['key']}")
    assert [ask(many, f"{location}/result")[0] for location in locations] == [200, 410]


def test_a_forged_ticket_is_not_there(many: Live) -> None:
    """Every byte of an id changed, another tenant's id of the same job, another job's nonce, another secret's: 404,
    the same 404 as for any other text; and none of them cancels anything."""
    records = Records(read_secret(many.data / "secret"))
    mine, other = (done(many, next(seeds)).rsplit("/", 1)[1] for _ in range(2))
    nothing = many.get("/v2/predictions/none")
    job, nonce = records.read_ticket_id(mine, "public") or (b"", b"")
    (_, other_nonce) = records.read_ticket_id(other, "public") or (b"", b"")
    strange = Records(b"another root secret of 32 bytes..")
    forged = [mine[:at] + ("A" if mine[at] != "A" else "B") + mine[at + 1 :] for at in range(len(mine))]
    forged += [
        records.ticket_id(job, nonce, "another"),
        records.ticket_id(job, nonce, ""),
        strange.ticket_id(job, nonce, "public"),
        mine[:-12] + other[-12:],
        mine[: (JOB_BYTES * 4) // 3] + other[(JOB_BYTES * 4) // 3 :],
        mine + "=",
        mine.upper(),
    ]
    assert len(mine) == (JOB_BYTES + NONCE_BYTES + MAC_BYTES) * 4 // 3
    for ticket in forged:
        for method, path in (("GET", ""), ("GET", "/result"), ("DELETE", "")):
            status, headers, content = many.ask(method, f"/v2/predictions/{ticket}{path}", None, None)
            assert (status, content) == (404, nothing[2]), ticket
            assert headers.keys() == nothing[1].keys()
    assert ask(many, f"/v2/predictions/{mine}")[2]["state"] == "succeeded"
    # A nonce of another job under this job's, signed rightly: there never was such a ticket.
    stranger = records.ticket_id(job, other_nonce, "public")
    assert ask(many, f"/v2/predictions/{stranger}/result")[0] == 410


def test_a_ticket_that_was_moved_in_the_store_opens_nothing(many: Live) -> None:
    """Whoever can write there moves a ticket's record under another ticket or job, or another job's result under this
    one: the id still is one of ours, so it is 410, it says nothing of the answer, and the proxy counts it."""
    records = Records(read_secret(many.data / "secret"))
    mine, victim = (done(many, next(seeds)).rsplit("/", 1)[1] for _ in range(2))
    (job, nonce), (theirs, their_nonce) = (
        records.read_ticket_id(one, "public") or (b"", b"") for one in (mine, victim)
    )
    right = many.get(f"/v2/predictions/{victim}/result")[2]
    at = f"{BASE}.job:".encode()
    before = many.metric("foreseen_verify_failed_total")
    moves: list[dict[bytes, Any]] = []
    with Redis.from_url(f"unix://{state_socket(many.data)}") as store:
        own = store.hgetall(at + job)
        other = store.hgetall(at + theirs)
        moves.append({b"t:" + nonce: other[b"t:" + their_nonce]})
        moves.append({b"head": other[b"head"]})
        moves.append({b"r": other[b"r"]})
        moves.append({b"t:" + nonce: other[b"t:" + their_nonce], b"head": other[b"head"], b"r": other[b"r"]})
        for move in moves:
            store.hset(at + job, mapping=move)
            status, _, content = many.get(f"/v2/predictions/{mine}/result")
            assert (status, json.loads(content)["code"]) == (410, "prediction_expired"), move.keys()
            assert content not in right
            store.hset(at + job, mapping=own)
    assert many.metric("foreseen_verify_failed_total") == before + len(moves)
    assert many.get(f"/v2/predictions/{mine}/result")[0] == 200


async def test_nobody_who_did_not_ask_gets_a_202(many: Live) -> None:
    """The same rows at the same time, a third of the askers with Prefer: all others get 200 and the right answer,
    whoever came first; as many 202 are counted as were asked for and given."""
    before = many.metric("foreseen_requests_total", code="202")
    ticket_options: list[dict[str, str]] = [{"Prefer": "respond-async"}, {}, {"Prefer": "wait=9"}]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

        async def one(seed: int, headers: dict[str, str]) -> tuple[int, bool]:
            body = ask_fingerprint(numbers(seed))
            async with client.post(many.url + FINGERPRINT, json=body, headers=headers) as reply:
                told = await reply.json()
                return reply.status, "outputs" in told and told["outputs"][0]["data"] == fingerprint(numbers(seed))

        chosen = [next(seeds) for _ in range(60)]
        told = await asyncio.gather(*(one(seed, headers) for seed in chosen for headers in ticket_options))
    assert {one for number, one in enumerate(told) if number % 3} == {(200, True)}
    assert many.metric("foreseen_requests_total", code="202") - before == [status for status, _ in told].count(202)
