"""Many questions and one ticket; a key by which a request that is sent again is known again."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.live import Live, started
from tests.questions import ask_fingerprint, fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT
from tests.stories.test_75_ask_now_fetch_later import ASYNC, ask, submit

BATCH = "/v2/predictions:batch"
seeds = itertools.count(770_000)


@pytest.fixture(scope="module")
def many(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A system for the stories of this file."""
    data = tmp_path_factory.mktemp("many") / "data"
    with started(built, data, "--batch-lines=300", models=["fingerprint"]) as system:
        yield system


def batch(live: Live, lines: list[Any], **headers: str) -> tuple[int, dict[str, str], dict[str, Any]]:
    body = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    status, told, content = live.post(BATCH, body, headers)
    return status, told, json.loads(content)


def results(live: Live, location: str) -> list[dict[str, Any]]:
    """The lines of a batch's result, when it has ended."""
    assert ask(live, location, "wait=30")[2]["state"] == "succeeded"
    status, headers, content = live.get(f"{location}/result")
    assert (status, headers["content-type"]) == (200, "application/jsonl")
    return [json.loads(line) for line in content.splitlines()]


def line(seed: int, name: str | None = None) -> dict[str, Any]:
    named = {} if name is None else {"custom_id": name}
    return {**named, "model": "fingerprint", **ask_fingerprint(numbers(seed))}


def test_a_batch_is_one_ticket_with_a_result_a_line(many: Live) -> None:
    """In order, by name; each answer is what /infer sends, to the byte; what is the same is one job."""
    first = [next(seeds) for _ in range(40)]
    before = many.model_metric("fingerprint", "foreseen_model_rows_total")
    status, headers, ticket = batch(many, [line(seed, f"n{seed}") for seed in first])
    assert status == 202
    assert headers["location"] == f"/v2/predictions/{ticket['id']}"
    assert (ticket["state"], ticket["items"]) == ("running", 40)
    told = results(many, headers["location"])
    assert [one["custom_id"] for one in told] == [f"n{seed}" for seed in first]
    assert [one["response"]["body"]["outputs"][0]["data"] for one in told] == [
        fingerprint(numbers(seed)) for seed in first
    ]
    assert all(one["error"] is None and one["response"]["status_code"] == 200 for one in told)
    assert many.model_metric("fingerprint", "foreseen_model_rows_total") == before + 40
    _, _, content = many.post(FINGERPRINT, ask_fingerprint(numbers(first[0])))
    assert content.decode() in many.get(f"{headers['location']}/result")[2].decode()
    seen = ask(many, headers["location"])[2]
    assert (seen["items"], seen["done"], seen["unsuccessful"]) == (40, 40, 0)
    assert "model" not in seen


def test_a_bad_line_spoils_nobody_elses(many: Live) -> None:
    """No JSON, no such model, a wrong input, binary outputs: each is told in its line, as /infer would have said it."""
    seed = next(seeds)
    good = line(seed, "good")
    wrapped = {"custom_id": "wrapped", "method": "POST", "url": FINGERPRINT, "body": ask_fingerprint(numbers(seed))}
    v1 = {"url": "/v1/models/fingerprint:predict", "body": {"instances": [{"x": numbers(seed)}]}}
    bad = [
        b"no json",
        line(seed, "nobody") | {"model": "nobody"},
        {"custom_id": "short", "model": "fingerprint", **ask_fingerprint([1, 2, 3])},
        line(seed, "binary") | {"parameters": {"binary_data_output": True}},
    ]
    status, headers, ticket = batch(many, [good, *bad, wrapped, v1])
    assert (status, ticket["items"]) == (202, 7)
    told = results(many, headers["location"])
    assert [one["error"] and one["error"]["code"] for one in told] == [
        None, "bad_request", "unknown_model", "bad_input", "bad_request", None, None,
    ]  # fmt: skip
    assert told[0]["response"]["body"]["outputs"] == told[5]["response"]["body"]["outputs"]
    assert "predictions" in told[6]["response"]["body"]
    assert ask(many, headers["location"])[2]["unsuccessful"] == 4


def test_a_batch_is_bounded(many: Live) -> None:
    """Too many lines and none at all are refused whole."""
    assert batch(many, [line(1)] * 301)[0] == 413
    assert batch(many, [])[0] == 400


def test_who_cancels_a_batch_cancels_what_is_in_it(many: Live) -> None:
    """Its jobs do not run, but for one that somebody else waits for; its lines say that they were cancelled."""
    many.signal("worker", signal.SIGSTOP)
    chosen = [next(seeds) for _ in range(20)]
    location = batch(many, [line(seed) for seed in chosen])[1]["location"]
    other = submit(many, ask_fingerprint(numbers(chosen[0])))[0]["location"]
    before = many.model_metric("fingerprint", "foreseen_model_rows_total")
    status, _, content = many.ask("DELETE", location, None, None)
    assert (status, json.loads(content)["state"]) == (200, "cancelled")
    many.signal("worker", signal.SIGCONT)
    assert ask(many, other, "wait=20")[2]["state"] == "succeeded"
    status, _, content = many.get(f"{location}/result")
    told = [json.loads(line) for line in content.splitlines()]
    assert (status, len(told)) == (200, 20)
    assert {one["error"] and one["error"]["code"] for one in told} == {"prediction_cancelled"}
    assert many.model_metric("fingerprint", "foreseen_model_rows_total") == before + 1


def test_a_cancelled_batch_gives_what_had_run(many: Live) -> None:
    """Half of it is known to somebody already and is answered at once; the worker stops; it is cancelled: a line each,
    answers of what had run, in order, and no other answers."""
    chosen = [next(seeds) for _ in range(6)]
    first = batch(many, [line(seed) for seed in chosen[:3]])[1]["location"]
    assert len(results(many, first)) == 3
    many.signal("worker", signal.SIGSTOP)
    location = batch(many, [line(seed, str(seed)) for seed in chosen])[1]["location"]
    seen = ask(many, location)[2]
    assert (seen["state"], seen["done"]) == ("running", 3)
    assert many.ask("DELETE", location, None, None)[0] == 200
    many.signal("worker", signal.SIGCONT)
    told = [json.loads(one) for one in many.get(f"{location}/result")[2].splitlines()]
    assert [one["custom_id"] for one in told] == [str(seed) for seed in chosen]
    assert [one["response"]["body"]["outputs"][0]["data"] for one in told[:3]] == [
        fingerprint(numbers(seed)) for seed in chosen[:3]
    ]
    assert {one["error"]["code"] for one in told[3:]} == {"prediction_cancelled"}
    assert ask(many, location)[2]["state"] == "cancelled"


def test_lines_that_expire_are_those_lines_errors(built: Path, tmp_path: Path) -> None:
    """The batch ends when they do, and gives what had run; it says how many have no answer."""
    flags = ("--job-seconds=3", "--job-workers=1")
    with started(built, tmp_path / "data", *flags, models=["fingerprint"]) as system:
        chosen = [next(seeds) for _ in range(4)]
        assert len(results(system, batch(system, [line(seed) for seed in chosen[:2]])[1]["location"])) == 2
        system.signal("worker", signal.SIGSTOP)
        location = batch(system, [line(seed) for seed in chosen])[1]["location"]
        system.until("foreseen_jobs", lambda jobs: jobs >= 2, state="queued")
        system.until("foreseen_jobs_oldest_seconds", lambda seconds: seconds > 3.1)
        submit(system, ask_fingerprint(numbers(next(seeds))))  # which sweeps, as the stopped worker would have
        seen = ask(system, location)[2]
        assert (seen["state"], seen["items"], seen["done"], seen["unsuccessful"]) == ("succeeded", 4, 4, 2)
        told = [json.loads(one) for one in system.get(f"{location}/result")[2].splitlines()]
        assert [one["error"] and one["error"]["code"] for one in told] == [None, None, *["prediction_expired"] * 2]
        assert told[0]["response"]["body"]["outputs"][0]["data"] == fingerprint(numbers(chosen[0]))
        system.signal("worker", signal.SIGCONT)


def test_a_batch_survives_its_worker(many: Live) -> None:
    """The worker is killed with half of it done: the ticket ends, and every line has its answer."""
    many.signal("worker", signal.SIGSTOP)
    chosen = [next(seeds) for _ in range(100)]
    location = batch(many, [line(seed) for seed in chosen])[1]["location"]
    many.signal("worker", signal.SIGKILL)
    told = results(many, location)
    assert [one["response"]["body"]["outputs"][0]["data"] for one in told] == [
        fingerprint(numbers(seed)) for seed in chosen
    ]


def test_the_same_key_is_the_same_ticket(many: Live) -> None:
    """Sent again, at once and after the answer: one ticket. Another body is 422; another key is another ticket."""
    body = ask_fingerprint(numbers(next(seeds)))
    headers, ticket = submit(many, body, **{"Idempotency-Key": '"one"'})
    assert submit(many, body, **{"Idempotency-Key": "one"})[1]["id"] == ticket["id"]
    assert ask(many, headers["location"], "wait=20")[2]["state"] == "succeeded"
    assert submit(many, body, **{"Idempotency-Key": "one"})[1]["id"] == ticket["id"]
    other = ask_fingerprint(numbers(next(seeds)))
    status, _, content = many.post(FINGERPRINT, other, ASYNC | {"Idempotency-Key": "one"})
    assert (status, json.loads(content)["code"]) == (422, "idempotency_key_reused")
    headers, second = submit(many, other, **{"Idempotency-Key": "two"})
    assert second["id"] != ticket["id"]
    assert ask(many, headers["location"], "wait=20")[2]["state"] == "succeeded"  # its row is not the next test's
    for key in ("", '"', "two words", "x" * 256, 'a"b"'):
        status, _, content = many.post(FINGERPRINT, other, ASYNC | {"Idempotency-Key": key})
        assert (status, json.loads(content)["code"]) == (400, "bad_request"), key


async def test_a_hundred_of_the_same_key_at_once_are_one_ticket(many: Live) -> None:
    """Whoever comes first makes it, all others get it; the model computes one row."""
    body = json.dumps(ask_fingerprint(numbers(next(seeds)))).encode()
    before = many.model_metric("fingerprint", "foreseen_model_rows_total")
    async with aiohttp.ClientSession() as client:

        async def once() -> tuple[int, str]:
            headers = ASYNC | {"Idempotency-Key": "hundred"}
            async with client.post(many.url + FINGERPRINT, data=body, headers=headers) as reply:
                return reply.status, (await reply.json())["id"]

        told = set(await asyncio.gather(*(once() for _ in range(100))))
    assert len(told) == 1
    ((status, ticket),) = told
    assert status == 202
    assert ask(many, f"/v2/predictions/{ticket}", "wait=20")[2]["state"] == "succeeded"
    assert many.model_metric("fingerprint", "foreseen_model_rows_total") == before + 1


def test_a_batch_has_its_key_too(many: Live) -> None:
    """Sent again it is the same batch; in another body it is 422."""
    lines = [line(next(seeds)) for _ in range(5)]
    _, headers, ticket = batch(many, lines, **{"Idempotency-Key": "batch"})
    assert batch(many, lines, **{"Idempotency-Key": "batch"})[2]["id"] == ticket["id"]
    assert len(results(many, headers["location"])) == 5
    assert batch(many, lines[:4], **{"Idempotency-Key": "batch"})[0] == 422
