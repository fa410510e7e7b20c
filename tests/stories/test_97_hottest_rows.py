"""The inputs that proxies keep for a handover: for operators, for the tenant whose they are, and nowhere else."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foreseen.errors import SetupError
from foreseen.models.change.hottest import hottest_rows
from foreseen.operate.admin_client import AdminConnection, ask_own_operators
from foreseen.tenants.edit_keys import add_key
from tests.handover import ChangedSystem, changed_system
from tests.questions import ask_fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT
from tests.stories.test_91_tenants import key_of, keys_text

KEEP = "--keep-hot-inputs=1048576"


def hit(system: ChangedSystem, seed: int, tenant: str) -> bool:
    """Ask for a row; whether it was a hit, also on a worker that has not answered it yet."""
    status, headers, body = system.live.post(FINGERPRINT, ask_fingerprint(numbers(seed)), key_of(tenant))
    assert status == 200, body
    return ";hit" in headers["cache-status"]


def until(so: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not so():
        assert time.monotonic() < end
        time.sleep(0.05)


def kept(system: ChangedSystem, *seeds: int) -> list[tuple[str, int]]:
    """The scopes and seeds of rows that are kept, of those with these seeds: a system asks for a row itself when it
    starts."""
    found = hottest_rows(system.live.data, "fingerprint", 10_000)
    assert (found.asked, found.workers) == (1, 1)
    by_row = {tuple(numbers(seed)): seed for seed in seeds}
    rows = [(str(scope), by_row.get(tuple(row.tensors[0].tolist()))) for scope, row, _ in found.rows]
    assert len(rows) <= len(seeds) + 1
    return sorted((scope, seed) for scope, seed in rows if seed is not None)


@pytest.mark.long
async def test_rows_are_handed_over_in_their_tenants_space(tmp_path: Path) -> None:
    """What `a` has asked for is a hit for `a` afterwards, and a miss for `b`. Neither log says anything of the inputs;
    the operators' log says that rows were given."""
    (tmp_path / "keys.toml").write_text(keys_text())
    flags = (f"--keys-file={tmp_path / 'keys.toml'}", KEEP, "--log-level=debug", "--access-log-hits=1")
    with (
        (tmp_path / "log").open("w") as log,
        changed_system(tmp_path, "fingerprint", 1, *flags, stderr=log) as system,
    ):
        mine, theirs = range(970_001, 970_020), range(970_101, 970_105)
        for tenant, seeds in (("a", mine), ("b", theirs)):
            for seed in seeds:
                assert not hit(system, seed, tenant)
                assert hit(system, seed, tenant)
        wanted = [("tenant:a", seed) for seed in mine] + [("tenant:b", seed) for seed in theirs]
        assert kept(system, *mine, *theirs) == wanted
        status, said = await system.handover(rows="--hottest=10000")
        assert status == 0, said
        assert all(hit(system, seed, "a") for seed in mine)
        assert not any(hit(system, seed, "b") for seed in mine)
        assert all(hit(system, seed, "b") for seed in theirs)
    written = (tmp_path / "log").read_text()
    assert "hot-rows" in written
    inputs = {json.dumps(numbers(seed))[1:40] for seed in (*mine, *theirs)}
    for text in (written, said):
        assert not [one for one in inputs if one in text]


async def test_only_an_operator_gets_inputs_and_none_that_were_purged(tmp_path: Path) -> None:
    """Neither without a key nor with a viewer's; not after a purge of the row, of the model, of everything. The metrics
    say how much is kept. A row that is asked for again is kept again."""
    with changed_system(tmp_path, "fingerprint", 1, KEEP) as system:
        live = system.live

        def ask(seed: int) -> None:
            assert live.post(FINGERPRINT, ask_fingerprint(numbers(seed)))[0] == 200

        def asked(authorization: dict[str, str]) -> tuple[int, bytes]:
            body = json.dumps({"model": "fingerprint", "most": 10})
            with contextlib.closing(AdminConnection(live.data, 20)) as connection:
                connection.request("POST", "/admin/hot-rows", body, authorization)
                with connection.getresponse() as reply:
                    return reply.status, reply.read()

        seeds = 970_201, 970_202, 970_203
        for seed in seeds:
            ask(seed)
        live.until("foreseen_hot_input_rows", lambda rows: rows >= 3)
        assert 0 < live.metric("foreseen_hot_input_bytes") < 2**20
        assert asked({})[0] == 401
        assert asked({"Authorization": "Bearer wrong"})[0] == 401
        viewer = add_key(live.data / "admin-keys.toml", "look", "viewer")
        until(lambda: asked({"Authorization": f"Bearer {viewer}"})[0] == 403)  # the file is followed
        wrong: list[Any] = [{"model": "fingerprint"}, {"model": "none", "most": 1}, {"model": "fingerprint", "most": 0}]
        for body in wrong:
            assert ask_own_operators(live.data, "/admin/hot-rows", body, 20)[0] == 400
        operator = {"Authorization": f"Bearer {(live.data / 'admin-token').read_text().strip()}"}
        explained = live.post(f"{FINGERPRINT[:-6]}/explain", ask_fingerprint(numbers(970_202)), operator)[2]
        key = json.loads(explained)["rows"][0]["key"]
        for purge, left in ((f"--key={key}", 2), ("--model=fingerprint", 0)):
            status, said = await system.foreseen("purge", purge)
            assert status == 0, said
            assert len(kept(system, *seeds)) == left
        live.until("foreseen_hot_input_rows", lambda rows: rows == 0)
        ask(970_201)
        assert [seed for _, seed in kept(system, *seeds)] == [970_201]
        status, said = await system.foreseen("purge", "--all")
        assert status == 0, said
        assert kept(system, *seeds) == []


@pytest.mark.long
async def test_without_kept_inputs_nothing_is_handed_over(tmp_path: Path) -> None:
    """By default no input is kept, and the command says what to do."""
    with changed_system(tmp_path, "fingerprint", 1) as system:
        assert system.live.post(FINGERPRINT, ask_fingerprint(numbers(1)))[0] == 200
        with pytest.raises(SetupError, match="start it with --keep-hot-inputs"):
            hottest_rows(system.live.data, "fingerprint", 10)
        status, said = await system.handover(rows="--hottest=10")
        assert status != 0
        assert "start it with --keep-hot-inputs" in said
        status, said = await system.foreseen("models", "handover", "fingerprint", "--to=int8", "--yes")
        assert "--hottest 100000" in said
