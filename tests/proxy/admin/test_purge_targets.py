"""What a purge names: everything that was ever served is found by its name, anything else is an error."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from foreseen.errors import UnknownTarget
from foreseen.proxy.admin.purge_targets import (
    KnownNames,
    Target,
    Targets,
    digest_target,
    model_target,
    tenant_target,
    unknown_tenant_text,
    unknown_text,
)
from foreseen.stores.state import KEPT_SERVED, ServedDigest, State, connect_state
from foreseen.tenants.keyring import Keyring
from foreseen.types import Scope

NOW, BEFORE, OTHER = "a1" * 32, "b2" * 32, "a1b2" * 16
ARTIFACT, UNSERVED = "c3" * 32, "d4" * 32
KNOWN = KnownNames(
    served=(ServedDigest("minilm", NOW, ARTIFACT),),
    former=(ServedDigest("minilm", BEFORE, ARTIFACT), ServedDigest("bert", OTHER)),
    artifacts=(("digits", UNSERVED), ("minilm", ARTIFACT)),
    purged=frozenset({"last", "all:", "model:gone", f"digest:{'e5' * 32}"}),
    loaded=frozenset({"minilm", "starting"}),
)


@pytest.fixture
async def state(state_url: str) -> AsyncIterator[State]:
    client: Redis = Redis.from_url(state_url)
    await client.flushall()
    await client.aclose()
    one = connect_state(state_url)
    yield one
    await one.close()


@pytest.mark.parametrize("name", ["minilm", "starting", "bert", "digits", "gone"])
def test_a_model_that_was_ever_known_is_purged(name: str) -> None:
    """Served, starting, served by another proxy, built only, purged before; one not served here is said to be so."""
    target = model_target(name, KNOWN)
    assert target is not None
    assert (target.kind, target.names) == ("model", (name,))
    assert ("not served here now" in target.said) == (name not in KNOWN.loaded)


@pytest.mark.parametrize(
    ("what", "kind", "names"),
    [
        (NOW, "digest", (NOW,)),
        (BEFORE[:8], "digest", (BEFORE,)),
        ("e5" * 32, "digest", ("e5" * 32,)),
        (ARTIFACT, "digest", (NOW, BEFORE)),
        (ARTIFACT[:12], "digest", (NOW, BEFORE)),
        (UNSERVED, "model", ("digits",)),
    ],
)
def test_both_kinds_of_digest_are_accepted_and_named(what: str, kind: str, names: tuple[str, ...]) -> None:
    """A model digest is purged itself, an artifact as every digest it was served under, whole or by its beginning."""
    target = digest_target(what, KNOWN)
    assert isinstance(target, Target)
    assert (target.kind, target.names) == (kind, names)
    assert what[:8] in target.said
    assert target.said.startswith("artifact" if what[:8] in (ARTIFACT[:8], UNSERVED[:8]) else "digest")


def test_what_nothing_knows_is_no_target() -> None:
    """Neither a misspelt name, nor another digest, nor a beginning that is too short or stands for several."""
    assert model_target("MiniLM", KNOWN) is None
    assert digest_target("a1" * 31 + "a2", KNOWN) is None
    assert digest_target(NOW[:7], KNOWN) is None
    both = KnownNames(
        (ServedDigest("m", "0" * 64), ServedDigest("m", "0" * 63 + "1")), (), (), frozenset(), frozenset()
    )
    with pytest.raises(UnknownTarget, match="several"):
        digest_target("0" * 10, both)


def test_near_names_are_listed() -> None:
    """The message names what may have been meant, else what there is, and the flag."""
    assert "near names: minilm" in unknown_text("model", "MiniLLM", KNOWN)
    assert "known are: bert, digits, gone, minilm, starting" in unknown_text("model", "xyzzy", KNOWN)
    said = unknown_text("digest", "c3c3c3c4", KNOWN)
    assert f"near names: {ARTIFACT[:12]} (artifact of minilm)" in said
    assert "--even-if-unknown" in said


def tenants(folder: Path, **scopes: str) -> Keyring:
    """A keyring of tenants with these scopes."""
    file = folder / "keys.toml"
    file.write_text("".join(f'[tenant.{name}]\nscope = "{scope}"\n' for name, scope in scopes.items()))
    return Keyring(file)


def test_a_tenant_is_purged_in_its_own_scope_and_in_the_one_that_it_shares(tmp_path: Path) -> None:
    """What an operator reads names the tenants that lose entries with it."""
    keyring = tenants(tmp_path, a="own", t1="team", t2="team", p="public")
    for name, scopes, said in (
        ("a", ["tenant:a"], "tenant a, its own scope"),
        ("t1", ["tenant:t1", "shared:team"], "tenant t1, its own scope and scope team, shared with t2"),
        ("p", ["tenant:p", "public"], "tenant p, its own scope and scope public"),
        ("public", ["public"], "scope public, of callers without a tenant, shared with p"),
    ):
        assert tenant_target(name, keyring, frozenset()) == Target("scope", tuple(map(Scope, scopes)), said)


def test_a_tenant_that_left_the_file_is_known_by_its_last_purge(tmp_path: Path) -> None:
    """Any other name is none, with near names; names of models are no tenants."""
    keyring = tenants(tmp_path, search="own")
    found = tenant_target("gone", keyring, frozenset({"scope:tenant:gone", "model:m"}))
    assert found is not None
    assert (found.names, "does not have" in found.said) == (("tenant:gone",), True)
    assert tenant_target("m", keyring, frozenset({"scope:tenant:gone", "model:m"})) is None
    assert tenant_target("foreseen", keyring, frozenset()) is None
    assert "near names: search" in unknown_tenant_text("serach", keyring.names())
    assert "known are: search, public" in unknown_tenant_text("xyzzy", keyring.names())


def test_the_tenants_that_share_a_scope_are_listed_up_to_a_number(tmp_path: Path) -> None:
    """Eight by their names, then how many more."""
    keyring = tenants(tmp_path, **{f"t{number}": "team" for number in range(12)})
    found = tenant_target("t0", keyring, frozenset())
    assert found is not None
    assert found.said.endswith("shared with t1, t2, t3, t4, t5, t6, t7, t8 and 3 more")


async def test_an_unknown_tenant_is_an_error_unless_that_is_asked_for(state: State, tmp_path: Path) -> None:
    """Its own scope is purged then."""
    targets = Targets(state, {}, tmp_path, tenants(tmp_path, a="own"))
    assert (await targets.resolve("tenant", "a")).names == ("tenant:a",)
    with pytest.raises(UnknownTarget, match="tenant 'b'"):
        await targets.resolve("tenant", "b")
    target = await targets.resolve("tenant", "b", even_if_unknown=True)
    assert (target.kind, target.names) == ("scope", ("tenant:b",))


async def test_a_name_that_is_not_known_is_purged_when_that_is_asked_for(state: State, tmp_path: Path) -> None:
    """Otherwise it is an error, and nothing is written."""
    targets = Targets(state, {}, tmp_path, Keyring())
    with pytest.raises(UnknownTarget):
        await targets.resolve("model", "bertha")
    target = await targets.resolve("model", "bertha", even_if_unknown=True)
    assert (target.kind, target.names) == ("model", ("bertha",))


async def test_the_state_store_remembers_what_was_served(state: State, tmp_path: Path) -> None:
    """Another proxy that serves nothing of it finds model, digest and artifact; the number of notes is bounded."""
    await state.note_served([ServedDigest("team:a", NOW, ARTIFACT), ServedDigest("minilm", BEFORE)])
    targets = Targets(state, {}, tmp_path, Keyring())
    assert (await targets.resolve("model", "team:a")).names == ("team:a",)
    assert (await targets.resolve("digest", ARTIFACT)).names == (NOW,)
    assert "of model minilm" in (await targets.resolve("digest", BEFORE)).said
    for start in range(0, KEPT_SERVED, 1024):
        await state.note_served([ServedDigest("m", f"{number:064x}") for number in range(start, start + 1024)])
    await state.note_served([ServedDigest("newest", NOW)])
    served = await state.served()
    assert len(served) == KEPT_SERVED
    assert ServedDigest("newest", NOW) in served
