"""A purge is over when every worker has said so: nobody serves anything older, whoever was killed or stopped."""

from __future__ import annotations

import http.client
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from foreseen.paths import admin_socket
from tests.live import Live, started
from tests.questions import ask_fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT, status_of
from tests.stories.test_60_start_and_stop import foreseen


@pytest.fixture(scope="module")
def two(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Two workers on one port."""
    folder = tmp_path_factory.mktemp("purge") / "data"
    with started(built, folder, "--workers=2", "--job-workers=0", models=("fingerprint",)) as system:
        yield system


def ask(live: Live, *seeds: int) -> dict[str, str]:
    return live.post(FINGERPRINT, ask_fingerprint(*(numbers(seed) for seed in seeds)))[1]


def cached(live: Live, seed: int) -> set[bool]:
    """What twenty connections, so both workers, say of a row: is it in the cache?"""
    asked = ask_fingerprint(numbers(seed))
    statuses = {live.post(FINGERPRINT, asked, {"Cache-Control": "only-if-cached"})[0] for _ in range(20)}
    assert statuses <= {200, 504}
    return {status == 200 for status in statuses}


def everywhere(live: Live, seed: int) -> None:
    """Get a row into the near tier of both workers."""
    for _ in range(20):
        ask(live, seed)
    assert cached(live, seed) == {True}


def purge(live: Live, *flags: str) -> str:
    done = foreseen("purge", f"--data={live.data}", *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


def key_of(live: Live, seed: int) -> str:
    token = (live.data / "admin-token").read_text().strip()
    route = FINGERPRINT.replace("/infer", "/explain")
    told = live.post(route, ask_fingerprint(numbers(seed)), {"Authorization": f"Bearer {token}"})
    return str(json.loads(told[2])["rows"][0]["key"])


def digest_of(live: Live) -> str:
    return str(json.loads(live.get("/v2/models/fingerprint")[2])["parameters"]["digest"])


@pytest.mark.parametrize("what", ["model", "digest", "all"])
def test_a_purge_reaches_every_worker_before_it_is_acknowledged(two: Live, what: str) -> None:
    """By model, by digest, of everything: what both workers and Redis held is a miss for both, then cached again."""
    flag = {"model": "--model=fingerprint", "digest": f"--digest={digest_of(two)}", "all": "--all"}[what]
    everywhere(two, 590_001)
    assert "confirmed by 2 workers" in purge(two, flag)
    assert cached(two, 590_001) == {False}
    told = status_of(ask(two, 590_001))
    assert str(told["fwd"]) == "miss"
    everywhere(two, 590_001)


def test_another_model_and_another_digest_are_not_touched(two: Live) -> None:
    """A purge names a space, and only that space ends; one that is no longer served is purged and said so."""
    everywhere(two, 590_002)
    assert "purged model minilm, which is not served here now" in purge(two, "--model=minilm")
    assert "not known here" in purge(two, "--digest=0123456789", "--even-if-unknown")
    assert cached(two, 590_002) == {True}


def test_what_models_list_prints_can_be_purged(two: Live) -> None:
    """The artifact digest and the model digest, whole or as they are shown, forget the same answers."""
    done = foreseen("models", "list", f"--data={two.data}", "--json")
    (built,) = [one["built"] for one in json.loads(done.stdout) if one["name"] == "fingerprint"]
    assert built["digest"] == digest_of(two)
    for digest in (built["digest"], built["artifact"], built["digest"][:12], built["artifact"][:12]):
        everywhere(two, 590_008)
        assert digest[:12] in purge(two, f"--digest={digest}")
        assert cached(two, 590_008) == {False}


def test_an_unknown_name_is_an_error_that_names_near_ones(two: Live) -> None:
    """Nothing is purged, the status is 1, and what may have been meant is named."""
    for flags, near in (
        (("--model=fingerprnt",), "fingerprint"),
        ((f"--digest={digest_of(two)[:6]}00",), digest_of(two)[:12]),
    ):
        done = foreseen("purge", f"--data={two.data}", *flags)
        assert done.returncode == 1
        assert done.stderr.startswith("foreseen: not purged: ")
        assert near in done.stderr
    told = admin(two, "/admin/purge", {"model": "bertha"})
    assert told is not None
    assert (told[0], told[1]["code"]) == (404, "unknown_target")


def test_one_key_and_no_other(two: Live) -> None:
    """By key: gone from Redis and from both workers, its neighbour stays; it can be computed and kept anew."""
    everywhere(two, 590_003)
    everywhere(two, 590_004)
    assert "; 1 entry deleted in Redis" in purge(two, f"--key={key_of(two, 590_003)}")
    assert "; Redis had no such entry" in purge(two, f"--key={'ab' * 32}")
    assert cached(two, 590_003) == {False}
    assert cached(two, 590_004) == {True}
    assert status_of(ask(two, 590_003)).get("stored") is True
    assert True in cached(two, 590_003)


def test_a_purge_survives_the_state_store_and_the_workers(two: Live) -> None:
    """kill -9 of the state store and of a worker: what was purged stays purged, what was kept since is there, and the
    next purge waits for nobody who is dead."""
    everywhere(two, 590_005)
    purge(two, "--model=fingerprint")
    everywhere(two, 590_006)
    for child in ("state", "proxy"):
        two.signal(child, signal.SIGKILL)
    assert cached_through_restart(two, 590_005) == {False}
    assert cached_through_restart(two, 590_006) == {True}
    done = foreseen("purge", f"--data={two.data}", "--model=fingerprint")
    while "by 2 workers" not in done.stdout:  # the store, or the worker, may be just coming back
        done = foreseen("purge", f"--data={two.data}", "--model=fingerprint")
    assert cached_through_restart(two, 590_006) == {False}


def cached_through_restart(live: Live, seed: int) -> set[bool]:
    while True:
        try:
            return cached(live, seed)
        except OSError:
            continue


def test_a_worker_that_has_not_confirmed_is_named(two: Live) -> None:
    """A stopped worker: status 1 and its name; it goes on, and the purge is acknowledged."""
    pid = two.children()["proxy"]
    two.signal("proxy", signal.SIGSTOP)
    try:
        done = admin(two, "/admin/purge", {"model": "fingerprint", "timeout_seconds": 0.2})
        while done is None:  # the stopped worker may have taken the connection
            done = admin(two, "/admin/purge", {"model": "fingerprint", "timeout_seconds": 0.2})
        status, document = done
        assert (status, document["code"]) == (504, "not_confirmed")
        assert f"/{pid}/" in document["error"]
    finally:
        two.signal("proxy", signal.SIGCONT)
    assert "confirmed by 2 workers" in purge(two, "--model=fingerprint")


def admin(live: Live, path: str, body: object, token: str | None = None) -> tuple[int, dict[str, str]] | None:
    """What the operators' listener says, None where nobody does."""
    token = (live.data / "admin-token").read_text().strip() if token is None else token
    connection = http.client.HTTPConnection("admin")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(2)
    connection.sock.connect(str(admin_socket(live.data)))
    try:
        connection.request("POST", path, json.dumps(body), {"Authorization": f"Bearer {token}"})
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())
    except TimeoutError:
        return None
    finally:
        connection.close()


def test_the_key_that_the_command_prints_is_the_one_in_force(two: Live, tmp_path: Path) -> None:
    """`foreseen key` reads the generation: after a purge it still names what is stored now."""
    file = tmp_path / "body.json"
    file.write_text(json.dumps(ask_fingerprint(numbers(590_007))))
    purge(two, "--model=fingerprint")
    printed = foreseen("key", str(file), f"--data={two.data}", "--model=fingerprint", "--json")
    assert json.loads(printed.stdout)[0]["key"] == key_of(two, 590_007)


def test_without_its_state_store_nothing_is_answered_from_the_cache(built: Path, tmp_path: Path) -> None:
    """A proxy that never reached it cannot know what was purged: it answers, past the cache, and says so."""
    flags = ("--state=unix:///nowhere/state.sock",)
    with started(built, tmp_path / "data", *flags, models=("fingerprint",)) as live:
        for _ in range(2):
            assert ask(live, 1)["cache-status"] == "foreseen;fwd=bypass;detail=state-unavailable"
        told = admin(live, "/admin/purge", {"all": True})
        assert told is not None
        assert (told[0], told[1]["code"]) == (503, "state_unavailable")


@pytest.mark.parametrize(
    ("body", "token", "status"),
    [
        ({"all": True}, "", 401),
        ({"all": True}, "another", 401),
        ({}, None, 400),
        ({"all": True, "model": "m"}, None, 400),
        ({"all": "yes"}, None, 400),
        ({"key": "12"}, None, 400),
        ({"model": 5}, None, 400),
        ({"model": "m", "surprise": 1}, None, 400),
        ({"model": "m", "timeout_seconds": -1}, None, 400),
        ([], None, 400),
    ],
)
def test_who_may_not_or_cannot_say_what_purges_nothing(two: Live, body: object, token: str | None, status: int) -> None:
    """Without the token, or with a body that is not exactly one target."""
    told = admin(two, "/admin/purge", body, token)
    assert told is not None
    assert told[0] == status


def test_operators_routes_are_on_no_public_listener(two: Live) -> None:
    """The port that clients reach has no purge; the socket is for its owner alone."""
    assert two.post("/admin/purge", {"all": True})[0] == 404
    assert admin_socket(two.data).stat().st_mode & 0o777 == 0o600


def test_the_command_says_what_is_wrong(two: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No target, two targets, no proxy: one line and status 1."""
    for flags in ((), ("--all", "--model=m"), ("--key=12",)):
        done = foreseen("purge", f"--data={two.data}", *flags)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    monkeypatch.setenv("FORESEEN_MODEL", "fingerprint")  # a server's own, and no word of a purge
    assert foreseen("purge", f"--data={two.data}").returncode == 1
    nobody = tmp_path / "nobody"
    nobody.mkdir()
    (nobody / "admin-token").write_text("t" * 64)
    (nobody / "admin-token").chmod(0o600)
    done = foreseen("purge", f"--data={nobody}", "--all")
    assert done.returncode == 1
    assert "is one running?" in done.stderr


@pytest.mark.parametrize("flag", ["--model=fingerprint", "--key"])
def test_explain_says_that_a_row_was_purged(two: Live, flag: str) -> None:
    """The reason of the miss, to an operator, on whichever worker answers."""
    seed = 590_100 + len(flag)
    everywhere(two, seed)
    purge(two, f"--key={key_of(two, seed)}" if flag == "--key" else flag)
    token = (two.data / "admin-token").read_text().strip()
    route = FINGERPRINT.replace("/infer", "/explain")
    told = two.post(route, ask_fingerprint(numbers(seed)), {"Authorization": f"Bearer {token}"})[2]
    (row,) = json.loads(told)["rows"]
    assert (row["where"], row["reason"]) == ("nowhere", "purged")
