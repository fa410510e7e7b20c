"""What callers send and what operators keep secret stands in no log, no metric and no error."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from foreseen.paths import admin_socket
from tests.live import Live, started
from tests.questions import ask_fingerprint, ask_minilm, numbers
from tests.stories.test_10_first_question import FINGERPRINT, MINILM

CANARY = "canary4711"
NUMBER = 987_654_321_123
"""A canary of the model that takes numbers."""
MODELS = ("minilm", "fingerprint")


@contextlib.contextmanager
def searched(built: Path, folder: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[tuple[Live, list[bytes]]]:
    """A system that logs all that it ever logs, and a place for what it answered: searched at the end. (No fixture:
    what a process that pytest's setup has started writes, pytest does not keep.)"""
    with started(built, folder / "d", "--log-level=debug", "--access-log-hits=1") as system:
        answers: list[bytes] = []
        yield system, answers
        answers += [system.get(path)[2] for path in ("/metrics", *(f"/metrics/{name}" for name in MODELS))]
        secrets = {name: (system.data / name).read_text().strip() for name in ("secret", "admin-token")}
        digests = [json.loads(system.get(f"/v2/models/{name}")[2])["parameters"]["digest"] for name in MODELS]
    logged = capfd.readouterr().err
    assert logged.count('"event": "request"') > 20
    for text in (logged, *(answer.decode("utf-8", "replace") for answer in answers)):
        assert CANARY not in text
        assert str(NUMBER) not in text
        assert not any(secret in text for secret in secrets.values())
    assert not any(digest in logged for digest in digests)
    assert not re.search(r"\b[0-9a-f]{64}\b", logged), "a key, a digest or a secret in full"


def malformed(good: dict[str, object]) -> list[bytes]:
    """Bodies that are refused, each for another reason, with the canary where the fault is."""
    text = json.dumps(good)
    return [
        text.replace("inputs", CANARY).encode(),
        text.replace('"data"', f'"{CANARY}"').encode(),
        text.replace("BYTES", CANARY).encode(),
        text.replace("[1]", f'["{CANARY}"]').encode(),
        (text[:-1] + f', "parameters": "{CANARY}"}}').encode(),
        text[:-3].encode(),
        f'"{CANARY}'.encode(),
        CANARY.encode(),
    ]


def misnamed(good: dict[str, object]) -> list[bytes]:
    """The canary as the name of a tensor: the error names the field, to the caller alone."""
    text = json.dumps(good)
    return [
        text.replace('"name": "text"', f'"name": "{CANARY}"').encode(),
        (text[:-1] + f', "outputs": [{{"name": "{CANARY}"}}]}}').encode(),
    ]


def ask_operators(system: Live, token: str, body: dict[str, object]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("admin")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(admin_socket(system.data)))
    connection.request("POST", "/admin/purge", json.dumps(body), {"Authorization": f"Bearer {token}"})
    reply = connection.getresponse()
    answered = reply.status, reply.read()
    connection.close()
    return answered


def test_a_canary_is_nowhere_but_in_its_answer(built: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Inputs, right and wrong; headers and paths: the log at its most talkative, every metric, every error and every
    answer are searched for them."""
    with searched(built, tmp_path, capfd) as (system, answers):
        ask_in_every_way(system, answers)


def ask_in_every_way(system: Live, answers: list[bytes]) -> None:
    question = ask_minilm(f"the {CANARY} sings")
    for headers in ({}, {"traceparent": CANARY}, {"Cache-Control": CANARY}, {"Authorization": f"Bearer {CANARY}"}):
        for _ in range(3):
            answers.append(system.post(MINILM, question, headers)[2])
    answers.append(system.post(FINGERPRINT, ask_fingerprint([NUMBER, *numbers(1)[1:]]))[2])
    answers.append(system.post("/v1/models/minilm:predict", {"instances": [f"{CANARY} again"]})[2])
    for body in malformed(question):
        for path in (MINILM, "/v1/models/minilm:predict"):
            status, _, answer = system.post(path, body)
            if status != 200:
                answers.append(answer)
    for body in misnamed(question):
        assert system.post(MINILM, body)[0] == 400
    for headers in ({"Request-Timeout": CANARY}, {"Content-Encoding": "gzip"}, {"Expect": CANARY}):
        status, _, answer = system.post(MINILM, question, headers)
        assert status >= 400
        answers.append(answer)
    assert system.post(f"/v2/models/{CANARY}/infer", question)[0] == 404  # its own name, told back to the caller alone
    answers.append(system.post(f"/{CANARY}", question)[2])
    answers.append(system.post(f"{MINILM}?{CANARY}={CANARY}", question)[2])


def test_operators_are_logged_and_their_tokens_are_not(
    built: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A purge with a wrong token, with the right one, and by the command; explain."""
    with searched(built, tmp_path, capfd) as (system, answers):
        operate(system, answers)


def operate(system: Live, answers: list[bytes]) -> None:
    for _ in range(21):
        answers.append(system.post(MINILM, ask_minilm(f"the {CANARY} sings"))[2])
    token = (system.data / "admin-token").read_text().strip()
    assert ask_operators(system, CANARY, {"all": True})[0] == 401
    status, answer = ask_operators(system, token, {"key": "ab" * 32})
    assert status == 200
    answers.append(answer)
    explained = system.post(
        "/v2/models/minilm/explain", ask_minilm(CANARY), {"Authorization": f"Bearer {token}"}
    )  # told to operators alone
    assert explained[0] == 200
    command = [sys.executable, "-m", "foreseen.cli", "purge", "--all", f"--data={system.data}"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    answers += [done.stdout, done.stderr]


def test_who_purged_what_is_told_however_quiet_the_log(
    built: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """At level warning: the purge, its generation and who asked, on a unix socket the user; and who had no token."""
    with started(built, tmp_path / "d", models=["fingerprint"]) as system:
        assert ask_operators(system, "wrong", {"all": True})[0] == 401
        token = (system.data / "admin-token").read_text().strip()
        generation = json.loads(ask_operators(system, token, {"model": "fingerprint"})[1])["generation"]
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    refused, purged = [line for line in lines if line["event"] == "audit"]
    assert (refused["passed"], refused["action"], refused["actor"]) == (False, "purge", "")
    assert (purged["passed"], purged["action"], purged["actor"]) == (True, "purge", "admin-token")
    assert (purged["kind"], purged["what"], purged["generation"]) == ("model", "fingerprint", generation)
    assert re.fullmatch(r"uid \d+, process \d+", purged["client"])
    assert purged["workers"] >= 1  # a worker of jobs confirms, too
    assert purged["missing"] == []
