"""`foreseen keys`: what it writes, what stays, and what it refuses to write."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from multidict import CIMultiDict

from foreseen.errors import SetupError
from foreseen.tenants.edit_keys import PREFIX, add_key, listed, revoke_keys
from foreseen.tenants.keyring import Keyring


def tenant_by(path: Path, key: str) -> str:
    return Keyring(path).authenticate(CIMultiDict({"X-API-Key": key})).name


def test_a_key_is_made_and_only_its_hash_is_stored(tmp_path: Path) -> None:
    """A new file has mode 0600; the key stands in no file."""
    path = tmp_path / "keys.toml"
    key = add_key(path, "search")
    assert key.startswith(PREFIX)
    assert path.stat().st_mode & 0o777 == 0o600
    assert key not in path.read_text()
    assert key.removeprefix(PREFIX) not in path.read_text()
    assert tenant_by(path, key) == "search"
    other = add_key(path, "search")
    assert tenant_by(path, key) == tenant_by(path, other) == "search"
    assert len(listed(path)[0].keys) == 2


def test_what_else_stands_in_the_file_stays(tmp_path: Path) -> None:
    """Comments, order, other tenants, the mode."""
    path = tmp_path / "keys.toml"
    path.write_text(
        '# who asks\n[tenant.a] # first\nmodels = ["m"]  # one\nkeys = [\n]\n\n[tenant.b]\nscope = "public"\n'
    )
    path.chmod(0o640)
    key = add_key(path, "a")
    text = path.read_text()
    for kept in ("# who asks", "# first", "# one", '[tenant.b]\nscope = "public"'):
        assert kept in text
    assert path.stat().st_mode & 0o777 == 0o640
    assert tenant_by(path, key) == "a"
    assert revoke_keys(path, "a") == 1
    assert [one.keys for one in listed(path)] == [[], []]
    assert "# one" in path.read_text()


def test_one_of_several_keys_is_revoked_by_its_hash(tmp_path: Path) -> None:
    """As `list` shows it; the others stay. What means none, or several, changes nothing."""
    path = tmp_path / "keys.toml"
    keys = [add_key(path, "a") for _ in range(3)]
    first = listed(path)[0].keys[0]
    for wrong in ("", "zz"):
        with pytest.raises(SetupError, match="keys of 'a' whose hash begins with"):
            revoke_keys(path, "a", wrong)
    assert revoke_keys(path, "a", first) == 1
    with pytest.raises(SetupError, match="no tenant 'b'"):
        revoke_keys(path, "b")
    assert sum(tenant is not None for tenant in (_maybe(path, key) for key in keys)) == 2


def _maybe(path: Path, key: str) -> str | None:
    try:
        return tenant_by(path, key)
    except Exception:  # noqa: BLE001 - refused
        return None


def test_a_link_is_followed_and_stays_a_link(tmp_path: Path) -> None:
    """The file that it leads to is replaced."""
    (tmp_path / "real.toml").write_text("")
    (tmp_path / "keys.toml").symlink_to("real.toml")
    key = add_key(tmp_path / "keys.toml", "a")
    assert (tmp_path / "keys.toml").is_symlink()
    assert tenant_by(tmp_path / "real.toml", key) == "a"


def test_what_is_no_keys_file_is_not_touched(tmp_path: Path) -> None:
    """Nor is a name written that a keys file may not have."""
    path = tmp_path / "keys.toml"
    for text in ("[tenant", "[other]\nx = 1\n"):
        path.write_text(text)
        with pytest.raises(SetupError, match=r"keys\.toml"):
            add_key(path, "a")
        assert path.read_text() == text
    path.write_text("")
    with pytest.raises(SetupError, match=r"tenant\.public"):
        add_key(path, "public")
    assert path.read_text() == ""
    with pytest.raises(SetupError, match="no such folder"):
        add_key(tmp_path / "nowhere" / "keys.toml", "a")
    assert [one.name for one in tmp_path.iterdir()] == ["keys.toml"]


def test_keys_that_are_added_at_once_are_all_there(tmp_path: Path) -> None:
    """Each edit waits for the one before."""
    path = tmp_path / "keys.toml"
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda n: add_key(path, f"t{n % 4}"), range(24)))
    assert sum(len(one.keys) for one in listed(path)) == len(set(keys)) == 24


@pytest.mark.processes
def test_the_command_prints_a_key_once(tmp_path: Path) -> None:
    """`add` prints the key alone on stdout; `list` and `revoke` never do."""
    path = tmp_path / "keys.toml"

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "foreseen.cli", "keys", *words, f"--keys-file={path}"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    made = run("add", "search")
    key = made.stdout.strip()
    assert (made.returncode, tenant_by(path, key)) == (0, "search")
    shown = run("list", "--json")
    (one,) = json.loads(shown.stdout)
    assert (one["tenant"], one["scope"], len(one["keys"])) == ("search", "tenant:search", 1)
    revoked = run("revoke", "search")
    assert "revoked 1 of search" in revoked.stdout
    for done in (shown, revoked, run("list")):
        assert key not in done.stdout + done.stderr
    assert run("add", "a b").returncode == 1
