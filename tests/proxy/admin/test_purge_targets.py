"""What a purge names: everything that was ever served is found by its name, anything else is an error."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from foreseen.errors import UnknownTarget
from foreseen.proxy.admin.purge_targets import KnownNames, Target, Targets, digest_target, model_target, unknown_text
from foreseen.stores.state import KEPT_SERVED, ServedDigest, State, connect_state

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
    assert ("no longer served" in target.said) == (name not in KNOWN.loaded)


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


async def test_a_name_that_is_not_known_is_purged_when_that_is_asked_for(state: State, tmp_path: Path) -> None:
    """Otherwise it is an error, and nothing is written."""
    targets = Targets(state, {}, tmp_path)
    with pytest.raises(UnknownTarget):
        await targets.resolve("model", "bertha")
    target = await targets.resolve("model", "bertha", even_if_unknown=True)
    assert (target.kind, target.names) == ("model", ("bertha",))


async def test_the_state_store_remembers_what_was_served(state: State, tmp_path: Path) -> None:
    """Another proxy that serves nothing of it finds model, digest and artifact; the number of notes is bounded."""
    await state.note_served([ServedDigest("team:a", NOW, ARTIFACT), ServedDigest("minilm", BEFORE)])
    targets = Targets(state, {}, tmp_path)
    assert (await targets.resolve("model", "team:a")).names == ("team:a",)
    assert (await targets.resolve("digest", ARTIFACT)).names == (NOW,)
    assert "of model minilm" in (await targets.resolve("digest", BEFORE)).said
    for start in range(0, KEPT_SERVED, 1024):
        await state.note_served([ServedDigest("m", f"{number:064x}") for number in range(start, start + 1024)])
    await state.note_served([ServedDigest("newest", NOW)])
    served = await state.served()
    assert len(served) == KEPT_SERVED
    assert ServedDigest("newest", NOW) in served
