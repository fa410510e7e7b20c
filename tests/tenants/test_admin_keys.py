"""Keys of operators and viewers: the keys file, the token file of before, changes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from foreseen.errors import SetupError
from foreseen.tenants.admin_keys import AdminKeys, parse_admin_keys
from foreseen.tenants.edit_keys import add_key, listed_administrators, revoke_keys

HASH = "sha256:" + hashlib.sha256(b"a key").hexdigest()
TOKEN = "t" * 40


def roles(keys: AdminKeys, *given: str) -> list[str | None]:
    found = [keys.find(one) for one in given]
    return [None if one is None else f"{one.role} {one.name}" for one in found]


def test_operators_and_viewers_have_keys_of_their_own(tmp_path: Path) -> None:
    """Beside the token that `foreseen up` makes; a change is in force at the second look."""
    token, path = tmp_path / "admin-token", tmp_path / "admin-keys.toml"
    token.write_text(TOKEN + "\n")
    token.chmod(0o600)
    keys = AdminKeys(token, path, required=False)
    assert roles(keys, TOKEN, "", "x") == ["operator admin-token", None, None]
    alice, grafana = add_key(path, "alice", "operator"), add_key(path, "grafana", "viewer")
    keys.look()
    assert roles(keys, alice) == [None]
    keys.look()
    assert roles(keys, alice, grafana, TOKEN) == ["operator alice", "viewer grafana", "operator admin-token"]
    assert {(one.role, one.name) for one in listed_administrators(path)} == {
        ("operator", "alice"),
        ("viewer", "grafana"),
    }
    revoke_keys(path, "alice", kind="operator")
    for _ in range(2):
        keys.look()
    assert roles(keys, alice, grafana) == [None, "viewer grafana"]
    path.write_text("[operator")
    for _ in range(2):
        keys.look()
    assert roles(keys, grafana) == ["viewer grafana"]


def test_the_token_file_may_be_a_keys_file_and_one_of_before_is_warned_of(tmp_path: Path) -> None:
    """Where an operator gave it; the one that `foreseen up` makes for this machine is not."""
    given, none = tmp_path / "given", tmp_path / "none"
    key = add_key(given, "bob", "operator")
    with capture_logs() as lines:
        assert roles(AdminKeys(given, none, required=True), key) == ["operator bob"]
    assert lines == []
    given.write_text(TOKEN)
    with capture_logs() as lines:
        assert roles(AdminKeys(given, none, required=True), TOKEN) == ["operator admin-token"]
        AdminKeys(given, none, required=False)
    (line,) = lines
    assert "replace it by a keys file" in line["event"]
    assert TOKEN not in str(line)


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    """A missing file that was asked for, a short token, one that all may read."""
    path, none = tmp_path / "token", tmp_path / "none"
    with pytest.raises(SetupError, match="no such file"):
        AdminKeys(path, none, required=True)
    assert roles(AdminKeys(path, none, required=False), "x") == [None]
    path.write_text("short")
    with pytest.raises(SetupError, match="shorter"):
        AdminKeys(path, none, required=False)
    path.write_text(TOKEN)
    path.chmod(0o644)
    with pytest.raises(SetupError, match="chmod 600"):
        AdminKeys(path, none, required=False)


def test_a_key_expires(tmp_path: Path) -> None:
    """By the clock."""
    path, now = tmp_path / "keys", [0.0]
    path.write_text(f'[viewer.x]\nkeys = ["{HASH}"]\nexpires = 1970-01-01T00:00:10Z')
    keys = AdminKeys(path, tmp_path / "none", required=True, clock=lambda: now[0])
    assert roles(keys, "a key") == ["viewer x"]
    now[0] = 10.0
    assert roles(keys, "a key") == [None]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[tenant.a]", "tenant"),
        ("operator = 1", "operator"),
        ("[operator.a]\nkeys = ['geheim']", "[operator.a] keys"),
        ("[operator.a]\nmodels = []", "[operator.a] models"),
        ("[viewer.'a b']", "[viewer.a b]"),
        ("[viewer.a]\nexpires = 'geheim'", "[viewer.a] expires"),
        (f"[operator.a]\nkeys = ['{HASH}']\n[viewer.b]\nkeys = ['{HASH}']", "also of [operator.a]"),
        ("[operator", "TOML"),
    ],
)
def test_what_is_wrong_is_named_and_not_repeated(text: str, named: str) -> None:
    """The table and the field, never a value."""
    with pytest.raises(SetupError) as error:
        parse_admin_keys(text.encode())
    assert named in str(error.value)
    assert "geheim" not in str(error.value)
