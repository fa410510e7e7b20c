"""The configuration file, old names of settings, and `foreseen config show`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from foreseen.cli import app
from foreseen.errors import SetupError
from foreseen.settings import NAMES, ProxySettings, arguments
from foreseen.settings.commands import OTHER_NAMES, settings_of
from foreseen.settings.common import INTERNAL
from foreseen.settings.config_file import MAX_FILE_BYTES, checked, read_config
from foreseen.settings.renamed import RENAMED, renamed_flags, renamed_values, take_old_names

COMMAND = [sys.executable, "-m", "foreseen.cli"]
FILE = """
near-bytes = "64MiB"
model = ["minilm", "fingerprint"]
redis = "redis://user:geheim@store:1"
deadline_seconds = "1m"

[proxy]
port = 8080
near-bytes = 1000
server-timing = false
webhook-ports = [443, 8443]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "foreseen.toml"
    path.write_text(FILE)
    return path


def parsed(*words: str) -> Any:
    return app.parse_args(list(words), exit_on_error=False, print_error=False)[1].arguments["settings"]


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_the_file_gives_settings_and_a_commands_table_wins(file: Path) -> None:
    """Sizes, durations, lists and switches as in flags; keys with - or _; `up` does not see the proxy's table."""
    proxy, up = parsed("proxy", f"--config={file}"), parsed("up", f"--config={file}")
    assert (proxy.near_bytes, up.near_bytes) == (1000, 64 * 2**20)
    assert (proxy.port, up.port) == (8080, 8000)
    assert proxy.model == ("minilm", "fingerprint")
    assert proxy.webhook_ports == (443, 8443)
    assert (proxy.server_timing, up.server_timing) == (False, True)
    assert proxy.deadline_seconds == 60.0


def test_flags_win_over_the_environment_and_that_over_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting for itself; the file's own place can come of the environment."""
    monkeypatch.setenv("FORESEEN_CONFIG", str(file))
    assert parsed("proxy").port == 8080
    monkeypatch.setenv("FORESEEN_PORT", "9000")
    assert parsed("proxy").port == 9000
    assert parsed("proxy", "--port=9001").port == 9001
    assert parsed("proxy", "--port=9001").near_bytes == 1000


def test_a_list_at_the_top_is_for_commands_that_take_several(file: Path) -> None:
    """`model` of all proxies is not the one model of `inference`, whose flag stays required."""
    assert parsed("inference", "--model=m", f"--config={file}").model == "m"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("near-byte = 1", "near-byte is not a setting; did you mean near-bytes"),
        ("[proxy]\nprot = 1", r"\[proxy\] prot is not a setting; did you mean port"),
        ("[prox]\nport = 1", r"\[prox\] is not a command; did you mean proxy"),
        ("[proxy]\nworkers = 1", r"\[proxy\] workers is not a setting"),
        ("slot = 1", "slot is not a setting"),
        ("config = 'x'", "config is not a setting"),
        ("[purge]\nmodel = 'm'", r"\[purge\] model is not a setting"),
        ("port = [1, 2]", "port: takes one value, not a list"),
        ("[inference]\nmodel = ['a', 'b']", r"\[inference\] model: takes one value"),
        ("port = 1979-05-27", "port: must be a string, a number"),
        ("near-bytes = 1\nnear_bytes = 2", "a key is given twice"),
        ("port = \nhost = 1", "line 1"),
        ("[proxy]\nredis = {a = 1}", r"\[proxy\] redis: must be"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(text: str, said: str, tmp_path: Path) -> None:
    """The key, where it stands, and near spellings."""
    path = tmp_path / "f.toml"
    path.write_text(text)
    with pytest.raises(SetupError, match=said):
        parsed("inference" if "inference" in text else "proxy", f"--config={path}", "--log-level=info")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Missing, too large, or not text."""
    with pytest.raises(SetupError, match="No such file"):
        read_config(tmp_path / "none.toml")
    path = tmp_path / "f.toml"
    path.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(SetupError, match="more than"):
        read_config(path)
    path.write_bytes(b"a = '\xff'")
    with pytest.raises(SetupError, match="UTF-8"):
        read_config(path)


def test_a_shared_key_reaches_only_commands_that_have_it() -> None:
    """`purge` has a setting `model` that no file may aim; `top` has no near tier."""
    file = checked("f", {"model": "m", "near-bytes": 1, "data": "d"})
    assert file.values("purge") == {"data": ("d",)}
    assert file.values("top") == {"data": ("d",)}
    assert file.values("proxy") == {"model": ("m",), "near_bytes": ("1",), "data": ("d",)}


def test_the_names_of_commands_without_a_class_are_those_of_their_functions() -> None:
    """What a file may give `top` is what `top` takes."""
    for command in ("top", "observed", "audit", "shadow", "dashboards"):
        found = app[command].assemble_argument_collection(parse_docstring=False)
        named = {one.name.lstrip("-").replace("-", "_") for one in found}
        assert named == settings_of(command), command
    assert set(OTHER_NAMES) | set(NAMES) <= set(app)


@pytest.mark.processes
def test_the_help_shows_at_most_54_flags_of_a_proxy() -> None:
    """Every `--word` counts, also `--no-…`; what only the supervisor gives is not among them."""
    shown = set(re.findall(r"--[a-z][a-z-]+", run("proxy", "--help", COLUMNS="300").stdout))
    # 45, and --grpc-port, --keys-file, --tls-cert, --tls-key, --tls-client-ca, --upstream-pass-authorization,
    # --audit, --candidate, --shadow, --canary, --keep-hot-inputs
    assert len(shown) <= 54
    assert not shown & {f"--{name.replace('_', '-')}" for name in INTERNAL}
    assert parsed("proxy", "--slot=3", "--fd=7").slot == 3


def test_old_flags_are_taken_with_a_warning() -> None:
    """A new name, a constant, a switch, values as words of their own; sizes of two that became one add up."""
    words, warnings = renamed_flags(
        "proxy", ["--replay-bytes=1MiB", "--shortcut-bytes", "2", "--no-short-road", "--far-keys", "3", "--port=1"]
    )
    assert words == ["--port=1", f"--reply-cache-bytes={2**20 + 2}"]
    assert [one.split()[0] for one in warnings] == [
        "--replay-bytes", "--shortcut-bytes", "--no-short-road", "--far-keys",
    ]  # fmt: skip
    assert renamed_flags("proxy", ["--replay-bytes=1", "--reply-cache-bytes=5"])[0] == ["--reply-cache-bytes=5"]
    assert renamed_flags("purge", ["--far-keys=3"]) == (["--far-keys=3"], [])
    assert renamed_flags("warm", ["--model=m", "--", "--far-value-bytes"])[0] == [
        "--model=m", "--", "--far-value-bytes",
    ]  # fmt: skip


def test_old_names_in_the_environment_are_taken_with_a_warning() -> None:
    """The environment is changed in place, the new name wins where both are given."""
    environment = {"FORESEEN_REPLAY_BYTES": "1", "FORESEEN_MODEL_ROWS": "2", "OTHER": "3"}
    warnings = take_old_names(["foreseen", "proxy"], environment)
    assert environment == {"FORESEEN_REPLY_CACHE_BYTES": "1", "OTHER": "3"}
    assert warnings == [
        "FORESEEN_REPLAY_BYTES is called FORESEEN_REPLY_CACHE_BYTES now; the next release refuses the old name",
        "FORESEEN_MODEL_ROWS is no longer a setting and changes nothing; the next release refuses it",
    ]
    both = {"FORESEEN_SHORTCUT_BYTES": "1", "FORESEEN_REPLY_CACHE_BYTES": "9"}
    assert renamed_values(both, "FORESEEN_")[0] == {"FORESEEN_REPLY_CACHE_BYTES": "9"}


def test_old_names_in_a_file_are_taken_with_a_warning() -> None:
    """At the top and in a table."""
    file = checked("f.toml", {"replay-bytes": 5, "proxy": {"far-keys": 3}})
    assert file.values("proxy") == {"reply_cache_bytes": ("5",)}
    assert file.warnings == (
        "f.toml: replay-bytes is called reply-cache-bytes now; the next release refuses the old name",
        "f.toml: [proxy] far-keys is no longer a setting and changes nothing; the next release refuses it",
    )


def test_no_old_name_is_a_setting_and_every_new_one_is() -> None:
    """The table names nothing that is in force."""
    for command, table in RENAMED.items():
        names = {one.name for one in fields(NAMES[command])}
        assert not set(table) & names
        assert {new for new in table.values() if new is not None} <= names


@pytest.mark.processes
def test_the_command_warns_in_one_line_each() -> None:
    """On stderr, and goes on."""
    done = run("config", "show", "proxy", "--far-keys=3", "--json", FORESEEN_SHORT_ROAD="0")
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "foreseen: FORESEEN_SHORT_ROAD is no longer a setting and changes nothing; the next release refuses it",
        "foreseen: --far-keys is no longer a setting and changes nothing; the next release refuses it",
    ]


@pytest.mark.processes
def test_config_show_says_where_each_setting_was_given(file: Path) -> None:
    """Flag, environment, file, default; no password."""
    words = ("config", "show", "proxy", f"--config={file}", "--rate", "3", "--no-metrics", "--json")
    done = run(*words, FORESEEN_QUEUE_BYTES="1GiB", FORESEEN_UPSTREAM="http://me:geheim@host:1/?password=geheim")
    assert done.returncode == 0, done.stderr
    assert "geheim" not in done.stdout
    lines = {line["setting"]: (line["value"], line["from"]) for line in json.loads(done.stdout)}
    assert lines["rate"] == (3.0, "flag")
    assert lines["metrics"] == (False, "flag")
    assert lines["queue-bytes"] == (2**30, "FORESEEN_QUEUE_BYTES")
    assert lines["near-bytes"] == (1000, str(file))
    assert lines["redis"] == ("redis://…@store:1", str(file))
    assert lines["host"] == ("127.0.0.1", "default")
    assert set(lines) == {one.name.replace("_", "-") for one in fields(ProxySettings) if one.name not in INTERNAL}


@pytest.mark.processes
def test_config_show_for_people_and_of_commands_that_lack_something(file: Path) -> None:
    """One line a setting; a required one is said to be; no such command is an error with status 1."""
    shown = run("config", "show").stdout.splitlines()
    assert ["host", "127.0.0.1", "default"] in [line.split() for line in shown]
    lacking = run("config", "show", "key", f"--config={file}").stdout.splitlines()
    assert ["model", "–", "required"] in [line.split() for line in lacking]
    wrong = run("config", "show", "nothing")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "no such command" in wrong.stderr


@pytest.mark.processes
def test_a_wrong_file_ends_the_command_with_status_1(tmp_path: Path) -> None:
    """In one line; a value is never in it."""
    path = tmp_path / "f.toml"
    path.write_text('redi = "redis://user:geheim@h:1"')
    done = run("proxy", f"--config={path}")
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if "redi is not a setting; did you mean redis" in line]
    assert len(done.stderr.splitlines()) == 1
    assert "geheim" not in done.stderr


def test_the_file_is_not_passed_on() -> None:
    """A process that `up` starts gets settings as flags, and reads no file."""
    assert arguments(ProxySettings(config=Path("f"), rate=2.0), ProxySettings) == ["--rate=2.0"]
