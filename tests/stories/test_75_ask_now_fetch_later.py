"""Client and prediction decoupled: a ticket at once, the answer later, and the cache in between."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
from typing import Any

import aiohttp

from tests.live import Live
from tests.questions import ask_fingerprint, ask_minilm, fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT

ASYNC = {"Prefer": "respond-async"}
V1 = "/v1/models/fingerprint:predict"
seeds = itertools.count(750_000)


def submit(live: Live, body: Any, path: str = FINGERPRINT, **headers: str) -> tuple[dict[str, str], dict[str, Any]]:
    status, told, content = live.post(path, body, ASYNC | headers)
    assert status == 202, content
    return told, json.loads(content)


def ask(live: Live, path: str, prefer: str | None = None) -> tuple[int, dict[str, str], Any]:
    status, headers, content = live.ask("GET", path, None, {} if prefer is None else {"Prefer": prefer})
    return status, headers, json.loads(content)


def test_a_ticket_at_once_and_the_answer_later(live: Live) -> None:
    """202 with a relative Location, its body; `wait` sees the end; the result is what /infer sends, byte by byte."""
    body = ask_fingerprint(numbers(next(seeds)), numbers(next(seeds)))
    headers, ticket = submit(live, body)
    assert headers["location"] == f"/v2/predictions/{ticket['id']}"
    assert headers["preference-applied"] == "respond-async"
    assert int(headers["retry-after"]) >= 1
    assert (ticket["state"], ticket["rows"], ticket["model"]) == ("queued", 2, "fingerprint")
    status, headers, seen = ask(live, headers["location"], "wait=20")
    assert (status, headers["preference-applied"]) == (200, "wait=20")
    assert (seen["state"], seen["done"], seen["rows"]) == ("succeeded", 2, 2)
    assert seen["created_at"] <= seen["started_at"] <= seen["ended_at"]
    status, headers, result = live.get(f"/v2/predictions/{ticket['id']}/result")
    assert (status, headers["content-type"]) == (200, "application/json")
    assert headers["cache-status"] == "foreseen;fwd=miss;stored"
    status, headers, again = live.post(FINGERPRINT, body)
    assert headers["cache-status"].startswith("foreseen;hit")  # the job's result is the cache's entry
    assert result == again


def test_a_hit_needs_no_ticket(live: Live) -> None:
    """Where near or far know every row, `respond-async` gets its answer at once."""
    body = ask_fingerprint(numbers(next(seeds)))
    assert live.post(FINGERPRINT, body)[0] == 200
    status, headers, _ = live.post(FINGERPRINT, body, ASYNC)
    assert status == 200
    assert headers["cache-status"].startswith("foreseen;hit")


def test_nobody_gets_a_202_unasked(live: Live) -> None:
    """Neither without Prefer nor with any other preference."""
    for prefer in ({}, {"Prefer": "wait=5"}, {"Prefer": "return=minimal"}, {"Prefer": "respond-synchronously"}):
        assert live.post(FINGERPRINT, ask_fingerprint(numbers(next(seeds))), prefer)[0] == 200


def test_the_result_is_in_the_encoding_that_was_asked_for_then(live: Live) -> None:
    """Binary outputs, one output of two, the id; V1 by row and by column: each as the synchronous route sends it."""
    for path, body in (
        (FINGERPRINT, ask_fingerprint(numbers(next(seeds))) | {"id": "mine", "outputs": [{"name": "digest"}]}),
        (FINGERPRINT, ask_fingerprint(numbers(next(seeds))) | {"parameters": {"binary_data_output": True}}),
        (V1, {"instances": [{"x": numbers(next(seeds))}]}),
        (V1, {"inputs": {"x": [numbers(next(seeds))]}}),
    ):
        headers, _ = submit(live, body, path)
        status, headers, result = live.ask("GET", headers["location"] + "/result", None, {"Prefer": "wait=20"})
        assert status == 200
        status, expected, answer = live.post(path, body)
        assert result == answer
        for name in ("content-type", "inference-header-content-length"):
            assert headers.get(name) == expected.get(name)


def test_the_same_question_twice_is_one_job(own: Live) -> None:
    """While its worker is stopped two ask the same: two tickets, one row of the model, both get the answer."""
    body = ask_fingerprint(numbers(1))
    own.signal("worker", signal.SIGSTOP)
    one, other = submit(own, body)[1], submit(own, body | {"id": "other"})[1]
    assert one["id"] != other["id"]
    before = own.model_metric("fingerprint", "foreseen_model_rows_total")
    own.signal("worker", signal.SIGCONT)
    results = [ask(own, f"/v2/predictions/{ticket['id']}/result", "wait=20")[2] for ticket in (one, other)]
    assert [result["outputs"][0]["data"] for result in results] == [fingerprint(numbers(1))] * 2
    assert [result.get("id") for result in results] == [None, "other"]
    assert own.model_metric("fingerprint", "foreseen_model_rows_total") == before + 1


def test_a_cancelled_ticket_takes_the_job_with_it_only_if_it_was_the_last(own: Live) -> None:
    """One of two is cancelled: the other is answered. The only one is cancelled: the model is never asked."""
    own.signal("worker", signal.SIGSTOP)
    shared = [submit(own, ask_fingerprint(numbers(2)))[1]["id"] for _ in range(2)]
    single = submit(own, ask_fingerprint(numbers(3)))[1]["id"]
    before = own.model_metric("fingerprint", "foreseen_model_rows_total")
    for ticket in (shared[0], single):
        status, _, content = own.ask("DELETE", f"/v2/predictions/{ticket}", None, None)
        assert (status, json.loads(content)["state"]) == (200, "cancelled")
    own.signal("worker", signal.SIGCONT)
    assert ask(own, f"/v2/predictions/{shared[1]}", "wait=20")[2]["state"] == "succeeded"
    for ticket in (shared[0], single):
        assert ask(own, f"/v2/predictions/{ticket}")[2]["state"] == "cancelled"
        assert ask(own, f"/v2/predictions/{ticket}/result")[0] == 410
    assert own.model_metric("fingerprint", "foreseen_model_rows_total") == before + 1


def test_who_has_no_ticket_gets_nothing(live: Live) -> None:
    """Unknown, guessed and mangled ids are 404; not yet there is 409; a bad Last-Event-ID is 400."""
    location = submit(live, ask_fingerprint(numbers(next(seeds))))[0]["location"]
    mangled = location[:-1] + ("A" if location[-1] != "A" else "B")
    for path in ("/v2/predictions/none", f"/v2/predictions/{'A' * 48}", mangled, f"{mangled}/result"):
        status, _, told = ask(live, path)
        assert (status, told["code"]) == (404, "unknown_prediction")
    headers = {"Accept": "text/event-stream", "Last-Event-ID": "x"}
    assert live.ask("GET", location, None, headers)[0] == 400


def test_bad_input_is_refused_at_once(live: Live) -> None:
    """What is wrong with a question is said before it is queued."""
    status, _, content = live.post(FINGERPRINT, ask_fingerprint([1, 2, 3]), ASYNC)
    assert (status, json.loads(content)["code"]) == (400, "bad_input")


async def stream(client: aiohttp.ClientSession, url: str, last: int | None = None) -> list[tuple[int, dict[str, Any]]]:
    """All events of a stream, to its end."""
    headers = {"Accept": "text/event-stream"} | ({} if last is None else {"Last-Event-ID": str(last)})
    async with client.get(url, headers=headers) as reply:
        assert reply.status in (200, 204)
        text = (await reply.read()).decode()
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            told = json.loads(fields["data"])
            assert fields["event"] == told["state"]
            events.append((int(fields["id"]), told))
    return events


async def test_a_hundred_readers_of_one_job_cost_the_model_one_row(own: Live) -> None:
    """Half stream, half poll: all see the same end; who comes back with the last id is not told it again."""
    own.signal("worker", signal.SIGSTOP)
    location = submit(own, ask_minilm("a hundred read this"), "/v2/models/minilm/infer")[0]["location"]
    before = own.model_metric("minilm", "foreseen_model_rows_total")
    url = own.url + location
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

        async def poll() -> dict[str, Any]:
            async with client.get(url, headers={"Prefer": "wait=30"}) as reply:
                return dict(await reply.json())

        streams = [asyncio.create_task(stream(client, url)) for _ in range(50)]
        polls = [asyncio.create_task(poll()) for _ in range(50)]
        own.signal("worker", signal.SIGCONT)
        ends = [events[-1][1] for events in await asyncio.gather(*streams)] + list(await asyncio.gather(*polls))
        assert {json.dumps(end, sort_keys=True) for end in ends} == {json.dumps(ends[0], sort_keys=True)}
        assert ends[0]["state"] == "succeeded"
        events = await stream(client, url)
        assert await stream(client, url, events[-1][0]) == []
    assert own.model_metric("minilm", "foreseen_model_rows_total") == before + 1


def test_a_stopped_queue_is_503_for_jobs_and_nothing_else(own: Live) -> None:
    """Submitting and polling are refused; the synchronous path answers as ever; afterwards nothing is lost."""
    location = submit(own, ask_fingerprint(numbers(4)))[0]["location"]
    own.signal("state", signal.SIGSTOP)
    try:
        status, headers, content = own.post(FINGERPRINT, ask_fingerprint(numbers(5)), ASYNC)
        assert (status, json.loads(content)["code"]) == (503, "queue_unavailable")
        assert int(headers["retry-after"]) >= 1
        assert ask(own, location)[0] == 503
        assert own.post(FINGERPRINT, ask_fingerprint(numbers(6)))[0] == 200
    finally:
        own.signal("state", signal.SIGCONT)
    status, _, seen = ask(own, location, "wait=20")
    assert (status, seen["state"]) == (200, "succeeded")


def test_a_worker_that_is_killed_loses_nothing(own: Live) -> None:
    """`kill -9` on the worker and on the queue's store while jobs wait: every one of them is answered, rightly."""
    own.signal("worker", signal.SIGSTOP)
    tickets = {number: submit(own, ask_fingerprint(numbers(7000 + number)))[1]["id"] for number in range(50)}
    own.signal("worker", signal.SIGKILL)
    own.signal("state", signal.SIGKILL)
    for number, ticket in tickets.items():
        status, _, result = 503, {}, None
        while status == 503:  # until the store is back
            status, _, result = ask(own, f"/v2/predictions/{ticket}/result", "wait=20")
        assert status == 200, result
        assert result["outputs"][0]["data"] == fingerprint(numbers(7000 + number))
