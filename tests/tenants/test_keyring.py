"""Credentials → tenants: accepted forms, ambiguous requests, changes of the file, expiry."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from multidict import CIMultiDict

from foreseen.errors import SetupError, Unauthorized
from foreseen.tenants.keyring import Keyring, internal_credential, make_internal_credential, scope_named
from foreseen.tenants.tenant import PUBLIC, PUBLIC_TENANT


def hashed(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def written(path: Path, **keys: str) -> Path:
    path.write_text("".join(f'[tenant.{name}]\nkeys = ["{hashed(key)}"]\n' for name, key in keys.items()))
    return path


def headers(*pairs: tuple[str, str]) -> CIMultiDict[str]:
    return CIMultiDict(pairs)


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return Keyring(written(tmp_path / "keys.toml", a="key of a", b="ключ"))


@pytest.mark.parametrize(
    "given",
    [
        [("Authorization", "Bearer key of a")],
        [("authorization", "bearer  key of a ")],
        [("X-API-Key", "key of a")],
        [("api-key", "key of a")],
        [("api-key", "key of a"), ("Authorization", "Bearer key of a")],
        [("Authorization", "Basic eDp5"), ("X-API-Key", "key of a")],
    ],
)
def test_a_key_is_accepted_in_every_form(keyring: Keyring, given: list[tuple[str, str]]) -> None:
    """As OpenAI's, Azure's and plain clients send it; gRPC's metadata are such pairs, too."""
    assert keyring.authenticate(headers(*given)).name == "a"


@pytest.mark.parametrize(
    "given",
    [
        [],
        [("Authorization", "Bearer ")],
        [("Authorization", "Bearer key of A")],
        [("Authorization", "key of a")],
        [("Authorization", "Basic key of a")],
        [("X-API-Key", "")],
        [("X-API-Key", hashed("key of a"))],
        [("X-API-Key", "key of a"), ("api-key", "ключ")],
        [("X-API-Key", "key of a"), ("X-API-Key", "nothing")],
        [("X-API-Key", "key of a\udcff")],
    ],
)
def test_everything_else_is_refused_with_a_challenge(keyring: Keyring, given: list[tuple[str, str]]) -> None:
    """Two different keys are refused: two readers could take different ones."""
    with pytest.raises(Unauthorized) as error:
        keyring.authenticate(headers(*given))
    assert error.value.headers["WWW-Authenticate"].startswith("Bearer")
    assert "key of a" not in str(error.value)


def test_without_a_file_every_caller_is_public() -> None:
    """Also one that sends a key."""
    assert Keyring().authenticate(headers(("X-API-Key", "x"))) is PUBLIC_TENANT
    assert Keyring().is_open


def test_a_certificate_counts_where_no_key_is_given(tmp_path: Path) -> None:
    """A key comes before it; where certificates are needed, none goes without, but for the supervisor."""
    path = tmp_path / "keys.toml"
    path.write_text(f'[tenant.a]\nsubjects = ["CN=a"]\n[tenant.b]\nkeys = ["{hashed("b")}"]')
    keyring = Keyring(path)
    assert keyring.authenticate(headers(), "CN=a").name == "a"
    assert keyring.authenticate(headers(("api-key", "b")), "CN=a").name == "b"
    with pytest.raises(Unauthorized):
        keyring.authenticate(headers(("api-key", "nothing")), "CN=a")
    with pytest.raises(Unauthorized):
        keyring.authenticate(headers(), "CN=b")
    for certified in (Keyring(path, b"i" * 64, certified=True), Keyring(None, b"i" * 64, certified=True)):
        for given in ((), (("api-key", "b"),)):
            with pytest.raises(Unauthorized, match="certificate"):
                certified.authenticate(headers(*given))
        certified.authenticate(headers(("api-key", "i" * 64)))
        assert certified.authenticate(headers(("api-key", "b")), "CN=x").name in ("b", "public")


def test_a_change_is_taken_at_the_second_look_that_finds_it(tmp_path: Path) -> None:
    """A file that is being written is not read. Whatever was learned before has another generation."""
    path = written(tmp_path / "keys.toml", a="a", b="b")
    keyring = Keyring(path)
    before = keyring.authenticate(headers(("api-key", "a")))
    written(path, b="b", c="c")
    keyring.look()
    assert keyring.authenticate(headers(("api-key", "a"))) is before
    keyring.look()
    with pytest.raises(Unauthorized):
        keyring.authenticate(headers(("api-key", "a")))
    assert keyring.authenticate(headers(("api-key", "c"))).generation == keyring.generation > before.generation
    now = keyring.generation
    keyring.look()
    assert keyring.generation == now


def test_a_mounted_secret_may_be_swapped(tmp_path: Path) -> None:
    """Kubernetes renames a link `..data`; what the path leads to is another file with the same name, maybe the same
    times and size."""
    for name, key in (("one", "x"), ("two", "y")):
        (tmp_path / name).mkdir()
        written(tmp_path / name / "keys.toml", a=key)
        os.utime(tmp_path / name / "keys.toml", (1, 1))
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "keys.toml").symlink_to("..data/keys.toml")
    keyring = Keyring(tmp_path / "keys.toml")
    assert keyring.authenticate(headers(("api-key", "x"))).name == "a"
    (tmp_path / "..new").symlink_to("two")
    (tmp_path / "..new").rename(tmp_path / "..data")
    for _ in range(2):
        keyring.look()
    assert keyring.authenticate(headers(("api-key", "y"))).name == "a"
    with pytest.raises(Unauthorized):
        keyring.authenticate(headers(("api-key", "x")))


@pytest.mark.parametrize("broken", [b"[tenant.a", b"[tenant.a]\nkeys = ['x']", None])
def test_a_broken_or_missing_file_changes_nothing(tmp_path: Path, broken: bytes | None) -> None:
    """The tenants of before stay; a good file is taken again."""
    path = written(tmp_path / "keys.toml", a="a")
    keyring = Keyring(path)
    if broken is None:
        path.unlink()
    else:
        path.write_bytes(broken)
    for _ in range(3):
        keyring.look()
    assert keyring.authenticate(headers(("api-key", "a"))).name == "a"
    written(path, a="b")
    for _ in range(2):
        keyring.look()
    assert keyring.authenticate(headers(("api-key", "b"))).name == "a"


def test_a_proxy_does_not_start_with_a_broken_or_missing_file(tmp_path: Path) -> None:
    """It would be open, or shut, without anyone having said so."""
    with pytest.raises(SetupError, match=r"keys\.toml"):
        Keyring(tmp_path / "keys.toml")
    (tmp_path / "keys.toml").write_text("[tenant")
    with pytest.raises(SetupError, match=r"keys\.toml"):
        Keyring(tmp_path / "keys.toml")


def test_a_tenant_expires_on_time_and_with_it_all_that_was_learned(tmp_path: Path) -> None:
    """By the clock, not by the next change of the file."""
    now = [1_000.0]
    path = tmp_path / "keys.toml"
    path.write_text(f'[tenant.a]\nkeys = ["{hashed("a")}"]\nexpires = 1970-01-01T00:16:50Z')
    keyring = Keyring(path, clock=lambda: now[0])
    before = keyring.authenticate(headers(("api-key", "a"))).generation
    keyring.look()
    assert keyring.generation == before
    now[0] = 1_010.0
    with pytest.raises(Unauthorized, match="expired"):
        keyring.authenticate(headers(("api-key", "a")))
    keyring.look()
    assert keyring.generation > before


def test_a_tenant_that_was_found_once_follows_the_file(tmp_path: Path) -> None:
    """Its limits change with the file; it is none where the file lacks it or it has expired. Public stays."""
    now = [1000.0]
    path = tmp_path / "keys.toml"
    path.write_text("[tenant.a]\nrows_per_second = 1\n[tenant.b]\nexpires = 1970-01-01T00:20:00Z\n")
    keyring = Keyring(path, clock=lambda: now[0])
    one, two = (keyring.named(name) for name in ("a", "b"))
    assert one is not None
    assert two is not None
    assert (keyring.renewed(one), keyring.renewed(two)) == (one, two)
    now[0] = 1200.0
    keyring.look()
    assert keyring.renewed(two) is None
    path.write_text("[tenant.a]\nrows_per_second = 2\n")
    keyring.look()
    keyring.look()
    renewed = keyring.renewed(one)
    assert renewed is not None
    assert renewed.limits.rows_per_second == 2
    path.write_text("")
    keyring.look()
    keyring.look()
    assert keyring.renewed(one) is None
    assert keyring.renewed(PUBLIC_TENANT) is PUBLIC_TENANT


def test_the_supervisors_credential_is_read_from_a_file_without_a_name(tmp_path: Path) -> None:
    """Again and again, for workers that are started again; its entries are in a scope of its own."""
    descriptor, text = make_internal_credential()
    try:
        assert internal_credential(descriptor) == internal_credential(descriptor) == text.encode()
        path = written(tmp_path / "keys.toml", a="a")
        found = Keyring(path, internal_credential(descriptor)).authenticate(headers(("api-key", text)))
        assert found.scope not in (PUBLIC, "tenant:a")
        assert found.may_use("anything")
        with pytest.raises(Unauthorized):
            Keyring(path).authenticate(headers(("api-key", text)))
    finally:
        os.close(descriptor)


def test_a_command_line_names_a_tenants_scope(tmp_path: Path) -> None:
    """By the keys file where there is one; else the scope that is the tenant's own."""
    path = tmp_path / "keys.toml"
    path.write_text('[tenant.a]\nscope = "public"\n[tenant.b]\n')
    assert scope_named(None, None) == scope_named("a", path) == PUBLIC
    assert scope_named("b", path) == scope_named("b", None) == "tenant:b"
    with pytest.raises(SetupError, match="no such tenant"):
        scope_named("c", path)
