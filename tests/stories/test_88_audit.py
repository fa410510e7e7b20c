"""The audit of hits, on a running system: an entry that is not the model's is found, removed and said; else nothing."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from msgspec import structs
from redis import Redis

from foreseen.keys.entry import EntryCodec
from foreseen.keys.key import tag_key
from foreseen.keys.secret import read_secret
from foreseen.paths import redis_socket
from foreseen.stores.commands import PREFIX
from foreseen.types import Key
from tests.live import Live, started
from tests.questions import ask_fingerprint, ask_minilm, fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT, MINILM, status_of
from tests.stories.test_60_start_and_stop import foreseen

SHARE = 0.2
MANY = 120
"""Hits among which one is audited all but surely: 0.8 ** 120 is 2e-12."""
FLAGS = (f"--audit={SHARE:.0%}", "--audit-rows-per-second=1000", "--job-workers=0")


def answered(live: Live, seed: int) -> tuple[list[int], str]:
    """What a row is answered by, and where that came from."""
    _, headers, body = live.post(FINGERPRINT, ask_fingerprint(numbers(seed)))
    return list(json.loads(body)["outputs"][0]["data"]), str(status_of(headers).get("detail"))


def tamper(live: Live, seed: int) -> tuple[str, bytes]:
    """Ask for a row, then put another answer under its key in Redis, tagged with the real secret: key and entry."""
    with Redis(unix_socket_path=str(redis_socket(live.data)), protocol=2) as redis:
        before = set(redis.scan_iter(PREFIX + b"*"))
        answered(live, seed)
        while not (new := set(redis.scan_iter(PREFIX + b"*")) - before):  # it is stored after the answer
            pass
        (stored,) = new
        key = Key(stored.removeprefix(PREFIX))
        codec = EntryCodec(tag_key(read_secret(live.data / "secret")))
        digest = json.loads(live.get("/v2/models/fingerprint")[2])["parameters"]["digest"]
        known = codec.unpack(key, digest, redis.get(stored))
        value = codec.pack(key, structs.replace(known, data=(bytes(len(known.data[0])), *known.data[1:])))
        redis.set(stored, value, keepttl=True)
    return key.hex(), value


def restart(live: Live) -> None:
    """Kill the proxy's worker, whose near goes with it, and wait for the next one."""
    (before,) = live.workers()
    live.signal("proxy", signal.SIGKILL)
    while live.workers() in ([], [before]):
        pass
    while live.get("/v2/health/ready")[0] != 200:
        pass


def audited(live: Live, **outcome: str) -> float:
    return live.metric("foreseen_audit_rows_total", **outcome)


def said(live: Live, *flags: str) -> tuple[int, str]:
    """The exit status of `foreseen audit`, and what it printed."""
    done = foreseen("audit", f"--data={live.data}", *flags)
    assert not done.stderr
    return done.returncode, done.stdout


@pytest.mark.parametrize("near_bytes", [0, 2**20], ids=["far", "near"])
def test_a_tampered_entry_is_found_and_removed_everywhere(
    built: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], near_bytes: int
) -> None:
    """Its tag is valid, so it is answered: from far each time, or, once near has it from there, on the fast path.
    One of its first hits is audited: the key is logged and listed, the alert's counter moves, and the next
    answer is the model's.
    """
    right, wrong = fingerprint(numbers(880_001)), [0, 0, 0, 0]
    with started(built, tmp_path / "d", *FLAGS, f"--near-bytes={near_bytes}", models=["fingerprint"]) as live:
        key, value = tamper(live, 880_001)
        if near_bytes:  # an empty near takes it over from far
            restart(live)
        assert audited(live, outcome="different") == 0
        got = []
        while not audited(live, outcome="different"):
            got.append(answered(live, 880_001)[0])
            assert len(got) < MANY
        assert got[0] == wrong
        assert answered(live, 880_001)[0] == right
        assert answered(live, 880_001)[0] == right
        with Redis(unix_socket_path=str(redis_socket(live.data)), protocol=2) as redis:
            assert redis.get(PREFIX + bytes.fromhex(key)) != value
        assert audited(live, outcome="different") == 1
        status, text = said(live)
        assert status == 1
        assert "fingerprint: 1 of " in text
        assert f"keys that differ: {key[:16]}" in text
        assert json.loads(said(live, "--json")[1])["fingerprint"]["keys"] == [key[:16]]
    logged = capfd.readouterr().err
    assert f'"key": "{key[:16]}"' in logged
    assert key not in logged


def test_an_honest_system_differs_in_nothing(built: Path, tmp_path: Path) -> None:
    """Every hit is audited, of two models and on all ways: cached replies, templates, near; the bound says how many."""
    flags = ("--audit=100%", "--audit-rows-per-second=1000", "--job-workers=0")
    with started(built, tmp_path / "d", *flags) as live:
        for _ in range(5):
            for first in range(3):
                live.post(FINGERPRINT, ask_fingerprint(*(numbers(first + at) for at in range(4))))
            live.post(MINILM, ask_minilm("an honest system", "differs in nothing"))
        live.until("foreseen_audit_rows_total", lambda rows: rows >= 40, model="fingerprint", outcome="equal")
        live.until("foreseen_audit_rows_total", lambda rows: rows == 8, model="minilm", outcome="equal")
        assert audited(live) == audited(live, outcome="equal")
        status, text = said(live)
        assert status == 0
        assert "minilm: 0 of 8 audited hits differ: at most 31 % at 95 % confidence (2 distinct keys)" in text
        assert live.metric("foreseen_audit_distinct_keys", model="fingerprint") == 6
