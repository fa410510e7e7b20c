"""The keys file: what it may say, and what is refused without repeating it."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest

from foreseen.errors import SetupError
from foreseen.tenants.keys_file import parse_keys
from foreseen.tenants.tenant import PUBLIC, TenantLimits

HASH = "sha256:" + hashlib.sha256(b"a key").hexdigest()
OTHER = "sha256:" + hashlib.sha256(b"another").hexdigest()


def test_a_tenant_has_all_that_the_file_says() -> None:
    """Every field of the issue's table."""
    file = parse_keys(
        f"""
        [tenant.search]
        keys = ["{HASH}"]
        models = ["minilm", "bge-*"]
        scope = "team"
        requests_per_second = 100
        rows_per_second = 1000.5
        concurrent_misses = 16
        model_seconds_per_day = 3600
        priority = 2
        expires = 2027-01-01
        subjects = ["CN=search"]
    """.encode()
    )
    tenant = file.tenants["search"]
    assert (tenant.name, tenant.scope, tenant.owner) == ("search", "shared:team", "tenant:search")
    assert tenant.limits == TenantLimits(100, 1000.5, 16, 3600)
    assert (tenant.priority, tenant.expires_at) == (2, datetime(2027, 1, 1, tzinfo=UTC).timestamp())
    assert [tenant.may_use(name) for name in ("minilm", "bge-m3", "other")] == [True, True, False]
    assert file.by_key == {hashlib.sha256(b"a key").digest(): "search"}
    assert file.by_subject == {"CN=search": "search"}


def test_scopes_of_different_kinds_are_never_equal() -> None:
    """A shared scope called like a tenant is not that tenant's own; only `public` is the scope of today's entries."""
    file = parse_keys(
        b'[tenant.a]\n[tenant.b]\nscope = "a"\n[tenant.c]\nscope = "public"\n[tenant.d]\nscope = "a"\n[tenant.e]\n'
        b'scope = "own"'
    )
    scopes = {name: tenant.scope for name, tenant in file.tenants.items()}
    assert scopes["b"] == scopes["d"]
    assert scopes["c"] == PUBLIC == "public"
    assert len({scopes[name] for name in "abce"}) == 4
    assert len({tenant.owner for tenant in file.tenants.values()}) == 5
    assert file.tenants["c"].seed == 0
    assert file.tenants["b"].seed == file.tenants["d"].seed != file.tenants["a"].seed != 0


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[tenant.a]\nkeys = ['geheim']", "[tenant.a] keys"),
        ("[tenant.a]\nkeys = 'geheim'", "[tenant.a] keys"),
        ("[tenant.a]\nkeys = [7]", "[tenant.a] keys"),
        (f"[tenant.a]\nkeys = ['{HASH.upper()}']", "[tenant.a] keys"),
        ("[tenant.a]\nkey = []", "did you mean keys?"),
        ("[tenant.public]", "[tenant.public]"),
        ("[tenant.other]", "[tenant.other]"),
        ("[tenant.'a b']", "[tenant.a b]"),
        ("tenant = 1", "tenant"),
        ("[team.a]", "team"),
        ("[tenant.a]\nscope = ''", "scope"),
        ("[tenant.a]\nscope = 'x y'", "scope"),
        ("[tenant.a]\nrequests_per_second = 0", "requests_per_second"),
        ("[tenant.a]\nrows_per_second = -1", "rows_per_second"),
        ("[tenant.a]\nrows_per_second = inf", "rows_per_second"),
        ("[tenant.a]\nconcurrent_misses = 1.5", "concurrent_misses"),
        ("[tenant.a]\nconcurrent_misses = true", "concurrent_misses"),
        ("[tenant.a]\npriority = 0", "priority"),
        ("[tenant.a]\npriority = 1.5", "priority"),
        ("[tenant.a]\nexpires = 'geheim'", "expires"),
        ("[tenant.a]\nexpires = 7", "expires"),
        ("[tenant.a]\nmodels = 'minilm'", "models"),
        (f"[tenant.a]\nkeys = ['{HASH}']\n[tenant.b]\nkeys = ['{HASH}']", "also of [tenant.a]"),
        ("[tenant.a]\nsubjects = ['CN=x']\n[tenant.b]\nsubjects = ['CN=x']", "also of [tenant.a]"),
        ("[tenant.a]\nkeys = ['geheim' 'x']", "at line 2"),
        ("\udc80", "UTF-8"),
    ],
)
def test_what_is_wrong_is_named_and_not_repeated(text: str, named: str) -> None:
    """The message names tenant and field. What stands there may be a key, and is in no log."""
    with pytest.raises(SetupError) as error:
        parse_keys(text.encode(errors="surrogateescape"))
    assert named in str(error.value)
    assert "geheim" not in str(error.value)


def test_a_tenant_may_have_several_keys_and_one_twice() -> None:
    """Keys are rotated by having two for a while."""
    file = parse_keys(f'[tenant.a]\nkeys = ["{HASH}", "{OTHER}", "{HASH}"]'.encode())
    assert set(file.by_key.values()) == {"a"}
    assert len(file.by_key) == 2
