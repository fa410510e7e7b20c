"""A candidate process beside the model in force, on a running system: shadow traffic, and a canary."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live import Live, given, started
from tests.questions import ask_fingerprint, fingerprint, numbers
from tests.rolling import seal_in
from tests.stories.test_10_first_question import FINGERPRINT
from tests.stories.test_60_start_and_stop import foreseen

pytestmark = pytest.mark.long


@contextlib.contextmanager
def candidate(data: Path, socket: Path, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """`foreseen inference` of fingerprint on a socket of its own."""
    command = [sys.executable, "-P", "-m", "foreseen.cli", "inference", "--model=fingerprint", *flags]
    process = subprocess.Popen([*command, f"--data={data}", f"--uds={socket}", "--log-level=warning"])
    try:
        yield process
    finally:
        process.kill()
        process.wait(20)


def answers(live: Live, *seeds: int) -> None:
    """Ask for rows; the answers are right."""
    for seed in seeds:
        _, _, body = live.post(FINGERPRINT, ask_fingerprint(numbers(seed)))
        assert json.loads(body)["outputs"][0]["data"] == fingerprint(numbers(seed))


def rows(live: Live, outcome: str) -> float:
    return live.metric("foreseen_shadow_rows_total", model="fingerprint", outcome=outcome)


def test_a_candidate_process_is_compared_and_may_die(built: Path, tmp_path: Path) -> None:
    """Two workers send it what they compute; `foreseen shadow` says how its answers compare. Without it answers go on,
    and once it is back it is asked again."""
    other, socket = tmp_path / "candidate", tmp_path / "candidate.sock"
    given(built, other)
    flags = ("--workers=2", "--job-workers=0", "--shadow=100%", "--shadow-rows-per-second=1000")
    with (
        candidate(other, socket) as process,
        started(
            built, tmp_path / "d", f"--candidate=fingerprint=unix:{socket}", *flags, models=["minilm", "fingerprint"]
        ) as live,
    ):
        assert live.metric("foreseen_shadow_running", model="fingerprint") == 2
        seed = 890_000
        while rows(live, "equal") < 20:  # it may not be ready yet
            answers(live, seed := seed + 1)
        process.kill()
        process.wait(20)
        failed = rows(live, "failed")
        while rows(live, "failed") < failed + 3:
            answers(live, seed := seed + 1)
        with candidate(other, socket):
            equal = rows(live, "equal")
            while rows(live, "equal") < equal + 3:
                answers(live, seed := seed + 1)
        assert rows(live, "changed") == 0
        done = foreseen("shadow", f"--data={live.data}")
        assert done.returncode == 0
        assert done.stdout.startswith("fingerprint: 0 of ")
        assert "2 workers send rows" in done.stdout
        found = json.loads(foreseen("shadow", f"--data={live.data}", "--json").stdout)["fingerprint"]
        assert 23 <= found["compared"] == found["equal"] <= rows(live, "equal")  # some may be under way
        assert found["high"] < 0.3
        assert live.metric("foreseen_shadow_compute_seconds_total", side="candidate") > 0


class Address:
    """A caller of an address of its own, on one connection that is kept."""

    def __init__(self, live: Live, number: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", live.port, 60, (f"127.0.0.{number}", 0))

    def ask(self, seed: int) -> tuple[int, bool]:
        """The seal of the model that has answered, and whether it was a hit; the answer is right."""
        self._connection.request("POST", FINGERPRINT, json.dumps(ask_fingerprint(numbers(seed))))
        reply = self._connection.getresponse()
        outputs = {output["name"]: output["data"] for output in json.loads(reply.read())["outputs"]}
        assert outputs["digest"] == fingerprint(numbers(seed))
        (seal,) = outputs["seal"]
        return seal, "hit" in (reply.getheader("Cache-Status") or "")

    def close(self) -> None:
        self._connection.close()


def sides(callers: list[Address], seeds: range) -> list[int]:
    """Who answers each caller; always the same."""
    found = [{caller.ask(seed)[0] for seed in seeds for _ in range(3)} for caller in callers]
    assert all(len(one) == 1 for one in found), found
    return [one.pop() for one in found]


def canary(live: Live, *flags: str) -> str:
    done = foreseen("canary", f"--data={live.data}", *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_canary_is_promoted_and_aborted(built: Path, tmp_path: Path) -> None:
    """Two workers, callers of twenty addresses that send the same bytes, on the fast path as well: each is answered by
    one build, which its seal names, whichever worker it asks. After `--promote` and `--abort` all are; both spaces are
    still warm."""
    models, other, socket = tmp_path / "models", tmp_path / "candidate", tmp_path / "candidate.sock"
    seal_in(models, 2)
    given(built, other)
    command = [sys.executable, "-P", "-m", "foreseen.cli", "models", "build", "fingerprint"]
    subprocess.run([*command, f"--data={other}", f"--models={models}"], check=True, stdout=subprocess.DEVNULL)
    flags = (f"--candidate=unix:{socket}", "--canary=50%", "--workers=2", "--job-workers=0")
    with (
        candidate(other, socket, f"--models={models}"),
        started(built, tmp_path / "d", *flags, models=["fingerprint"]) as live,
        contextlib.ExitStack() as opened,
    ):
        callers = [opened.enter_context(contextlib.closing(Address(live, number))) for number in range(2, 22)]
        while {caller.ask(891_000)[0] for caller in callers} != {1, 2}:  # the candidate may not be ready yet
            pass
        before = sides(callers, range(891_001, 891_006))
        assert set(before) == {1, 2}
        again = [opened.enter_context(contextlib.closing(Address(live, number))) for number in range(2, 22)]
        assert sides(again, range(891_003, 891_008)) == before
        assert foreseen("canary", f"--data={live.data}", "--share=2").returncode == 1
        for flag, seal in (("--promote", 2), ("--abort", 1)):
            assert f"answers {int(seal == 2)} of callers" in canary(live, flag)
            while {caller.ask(891_001)[0] for caller in callers} != {seal}:  # within a second
                pass
            assert set(sides(callers, range(891_001, 891_006))) == {seal}
            assert all(caller.ask(891_001) == (seal, True) for caller in callers)
        text = canary(live)
        assert "fingerprint: the candidate answers 0 of callers" in text
        assert ", 0 failed" in text
