"""Settings as people write them: sizes, durations and lists, on the command line and in the environment."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any

import cyclopts
import pytest

from foreseen.cli import app
from foreseen.command_line import foreign, misspelt
from foreseen.units import seconds_of, share_of, size_of, words_of

COMMAND = [sys.executable, "-m", "foreseen.cli"]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("1048576", 2**20),
        ("64MiB", 64 * 2**20),
        ("64mib", 64 * 2**20),
        ("64 MiB", 64 * 2**20),
        ("1.5GiB", 3 * 2**29),
        ("2g", 2**31),
        ("512M", 2**29),
        ("500kB", 500_000),
        ("1TB", 10**12),
        ("10B", 10),
        (str(2**60 + 1), 2**60 + 1),
    ],
)
def test_sizes(text: str, count: int) -> None:
    """Binary units by i or a bare letter, decimal ones by B; whole numbers are exact however large."""
    assert size_of(text) == count


@pytest.mark.parametrize("text", ["", "MiB", "64MoB", "-1", "1.5", "0x10", "1e9", "64MiB64", "nan"])
def test_what_is_no_size(text: str) -> None:
    """Everything else says how a size is written."""
    with pytest.raises(ValueError, match=r"size|whole"):
        size_of(text)


@pytest.mark.parametrize(("text", "share"), [("0.1%", 0.001), ("0.001", 0.001), ("5 %", 0.05), ("0", 0), ("100%", 1)])
def test_shares(text: str, share: float) -> None:
    """Per cent, or a number up to 1."""
    assert share_of(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "%", "2", "101%", "-1%", "1%%", "nan", "inf"])
def test_what_is_no_share(text: str) -> None:
    """Everything else says how a share is written."""
    with pytest.raises(ValueError, match="share"):
        share_of(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1.5", 1.5),
        ("2h", 7200),
        ("1h30m", 5400),
        ("500ms", 0.5),
        ("7d", 604800),
        ("1 h 5 s", 3605),
        (".5", 0.5),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    """A plain number is in the setting's unit, else units add up."""
    assert seconds_of(text) == pytest.approx(seconds)


def test_a_duration_for_ever_and_one_in_milliseconds() -> None:
    """`inf` stays; a setting in ms takes a plain number as ms and 2s as 2000."""
    assert seconds_of("inf") == math.inf
    assert seconds_of("250", "ms") == 0.25


@pytest.mark.parametrize("text", ["", "h", "2x", "1h-5m", "-3", "nan", "2 hours ago"])
def test_what_is_no_duration(text: str) -> None:
    """Everything else says how a duration is written."""
    with pytest.raises(ValueError, match=r"duration|unit"):
        seconds_of(text)


def parsed(*words: str) -> Any:
    _, bound, _ = app.parse_args(list(words), exit_on_error=False, print_error=False)
    return bound.arguments["settings"]


def test_flags_take_units() -> None:
    """Also where the value is a word of its own; what is wrong names the flag."""
    found = parsed(
        "up", "--near-bytes=64MiB", "--far-bytes", "1GiB", "--ttl-seconds=2h", "--lease-ms=2s", "--port=1234"
    )
    assert (found.near_bytes, found.far_bytes, found.ttl_seconds, found.lease_ms) == (2**26, 2**30, 7200.0, 2000.0)
    assert parsed("proxy", "--lease-ms=inf").lease_ms == math.inf
    with pytest.raises(cyclopts.CycloptsError, match="--near-bytes: '64MoB' is no size"):
        parsed("up", "--near-bytes=64MoB")


def test_the_environment_takes_units_and_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commas or white space between the words of a list; a setting of one word keeps its commas."""
    monkeypatch.setenv("FORESEEN_NEAR_BYTES", "1.5GiB")
    monkeypatch.setenv("FORESEEN_MODEL", "minilm, fingerprint")
    monkeypatch.setenv("FORESEEN_WEBHOOK_PORTS", "443 8443")
    monkeypatch.setenv("FORESEEN_REDIS", "redis+cluster://a:1,b:2")
    found = parsed("up")
    assert (found.near_bytes, found.model, found.webhook_ports) == (3 * 2**29, ("minilm", "fingerprint"), (443, 8443))
    assert found.redis == "redis+cluster://a:1,b:2"
    assert words_of(" a,b  c,, ") == ["a", "b", "c"]


def test_names_that_are_misspelt_are_named() -> None:
    """With the one that was meant; what Kubernetes sets of its own accord is passed over."""
    environment = {
        "FORESEEN_NEAR_BYTE": "1",
        "FORESEEN_XYZZY": "1",
        "FORESEEN_DATA": "d",
        "FORESEEN_SERVICE_HOST": "10.0.0.7",
        "FORESEEN_PROXY_PORT_8000_TCP": "tcp://10.0.0.7:8000",
        "OTHER": "1",
    }
    told = list(misspelt(environment, {"near_bytes", "data"}))
    assert told == [
        "FORESEEN_NEAR_BYTE is not a setting and changes nothing; did you mean FORESEEN_NEAR_BYTES?",
        "FORESEEN_XYZZY is not a setting and changes nothing; see docs/settings.md",
    ]
    assert foreign({"FORESEEN_PORT": "tcp://10.0.0.7:8000", "FORESEEN_HOST": "::"}) == ["FORESEEN_PORT"]
    assert foreign({"FORESEEN_PORT": "8080"}) == []


@pytest.mark.processes
def test_the_command_says_so_on_stderr() -> None:
    """One line each, and goes on."""
    environment = {**os.environ, "FORESEEN_NEAR_BYTE": "1", "FORESEEN_PORT": "tcp://10.0.0.7:8000"}
    done = subprocess.run([*COMMAND, "--version"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == (
        "foreseen: FORESEEN_NEAR_BYTE is not a setting and changes nothing; did you mean FORESEEN_NEAR_BYTES?\n"
    )
