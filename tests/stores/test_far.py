"""Far's contract, on every far there is: a real Valkey, fakeredis, and the double that stories use."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fakeredis
import pytest
from redis.asyncio import Redis

from foreseen.errors import FarError
from foreseen.stores import valkey
from foreseen.stores.breaker import Breaker
from foreseen.stores.commands import PREFIX, SECRET_CHECK
from foreseen.stores.far import Far
from foreseen.stores.owned import OwnedEntries
from foreseen.stores.redis_urls import connect
from foreseen.tasks import end
from tests.doubles import DictFar, numbered

pytestmark = pytest.mark.processes

BUDGET_SECONDS = 0.2
scripted = pytest.mark.parametrize("far", ["valkey", "double"], indirect=True)
"""Of what takes a script: fakeredis runs none."""


@contextlib.contextmanager
def valkey_server(folder: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A real Valkey in the cache role, on a unix socket."""
    socket = folder / "far.sock"
    process = subprocess.Popen(valkey.command(socket, 64 * 2**20), stdout=subprocess.DEVNULL)
    try:
        with ThreadPoolExecutor(1) as thread:  # this thread may be running a loop already
            thread.submit(asyncio.run, valkey.until_answering(socket, 10)).result()
        yield socket, process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with valkey_server(tmp_path_factory.mktemp("valkey")) as (socket, _):
        yield socket


@pytest.fixture(params=["valkey", "fakeredis", "double"])
async def far(request: pytest.FixtureRequest, server: Path) -> AsyncIterator[Far | DictFar]:
    if request.param == "double":
        yield DictFar()
        return
    client: Redis = (
        fakeredis.FakeAsyncRedis() if request.param == "fakeredis" else connect(f"unix://{server}", BUDGET_SECONDS)
    )
    await client.flushall()
    tier = Far(client, keys_per_call=3)
    yield tier
    await tier.close()


async def test_what_is_put_is_got_in_order(far: Far | DictFar) -> None:
    """Values come back in the order of the keys, None where there is none; more keys than one call takes are fine."""
    keys = numbered(8)
    await far.put([(key, b"value %d" % index, 60_000) for index, key in enumerate(keys) if index % 2])
    assert await far.get(keys) == [None if index % 2 == 0 else b"value %d" % index for index in range(8)]


async def test_any_bytes_are_a_value_and_any_key_a_name(far: Far | DictFar) -> None:
    """Zeros, newlines and braces are data."""
    key = numbered(1)[0][:0] + b"{}\r\n\x00" + bytes(27)
    await far.put([(key, b"\x00\r\n$5\r\n" * 100, 60_000)])  # type: ignore[list-item]
    assert await far.get([key]) == [b"\x00\r\n$5\r\n" * 100]  # type: ignore[list-item]


async def test_forgotten_keys_are_gone(far: Far | DictFar) -> None:
    """Forget says how many there were."""
    keys = numbered(3)
    await far.put([(key, b"v", 60_000) for key in keys[:2]])
    assert await far.forget(keys) == 2
    assert await far.get(keys) == [None, None, None]


async def test_a_lease_has_one_holder(far: Far | DictFar) -> None:
    """Who asks first has it, row by row; the same holder does not get it twice."""
    keys = numbered(5)
    assert await far.lease(keys[:2], b"ours", 60_000) == [True, True]
    assert await far.lease(keys, b"theirs", 60_000) == [False, False, True, True, True]
    assert await far.lease(keys[:1], b"ours", 60_000) == [False]


@scripted
async def test_a_lease_is_let_go_by_its_holder_alone(far: Far | DictFar) -> None:
    """Compare and delete: somebody whose lease was taken over deletes nobody else's."""
    keys = numbered(2)
    await far.lease(keys, b"ours", 60_000)
    await far.release(keys, b"theirs")
    assert await far.lease(keys, b"theirs", 60_000) == [False, False]
    await far.release(keys[:1], b"ours")
    assert await far.lease(keys, b"theirs", 60_000) == [True, False]


@scripted
async def test_a_lease_expires_unless_its_holder_extends_it(far: Far | DictFar) -> None:
    """Nobody else can extend it."""
    extended, left, others = numbered(3)
    assert all(await far.lease([extended, left, others], b"ours", 150))
    await far.extend([extended], b"ours", 60_000)
    await far.extend([others], b"theirs", 60_000)
    for expiring in (left, others):
        while await far.lease([expiring], b"theirs", 60_000) == [False]:  # noqa: ASYNC110 - Redis' clock decides
            await asyncio.sleep(0.01)
    assert await far.lease([extended], b"theirs", 60_000) == [False]


@scripted
async def test_leases_and_entries_do_not_meet(far: Far | DictFar) -> None:
    """A row that is leased has no entry yet, and one with an entry may be leased."""
    (key,) = numbered(1)
    assert await far.lease([key], b"ours", 60_000) == [True]
    assert await far.get([key]) == [None]
    await far.put([(key, b"v", 60_000)])
    await far.release([key], b"ours")
    assert await far.get([key]) == [b"v"]


async def test_entries_have_a_life(server: Path) -> None:
    """Redis itself expires what nobody asks for: PX is set with the value."""
    client = connect(f"unix://{server}", BUDGET_SECONDS)
    far, (key,) = Far(client), numbered(1)
    await far.put([(key, b"v", 60_000)])
    assert 50_000 < await client.pttl(PREFIX + key) <= 60_000
    await far.close()


async def test_a_server_that_is_not_there_is_one_failure_a_call_and_then_none() -> None:
    """Refused connections raise `connect`; after three the breaker is open and nobody waits any more."""
    far, keys = Far(connect("unix:///nowhere/far.sock", BUDGET_SECONDS)), numbered(1)
    kinds = []
    for _ in range(5):
        with pytest.raises(FarError) as error:
            await far.get(keys)
        kinds.append(error.value.kind)
    assert kinds == ["connect"] * 3 + ["open"] * 2
    await far.close()


async def test_a_stopped_server_costs_the_budget_and_its_return_is_noticed(tmp_path: Path) -> None:
    """SIGSTOP: `timeout` until the breaker opens; SIGCONT: the probe closes it and hits return."""
    with valkey_server(tmp_path) as (socket, process):
        far = Far(connect(f"unix://{socket}", 0.05), breaker=Breaker(threshold=2, probe_seconds=0.02))
        (key,) = numbered(1)
        await far.put([(key, b"v", 60_000)])
        process.send_signal(19)
        kinds = []
        for _ in range(3):
            with pytest.raises(FarError) as error:
                await far.get([key])
            kinds.append(error.value.kind)
        process.send_signal(18)
        assert kinds == ["timeout", "timeout", "open"]
        probe = far._probe
        assert probe is not None
        await asyncio.wait_for(probe, 10)
        assert await far.get([key]) == [b"v"]
        await far.close()


async def test_a_full_server_rests_stores_but_not_reads(tmp_path: Path) -> None:
    """`OOM command not allowed` is kind `oom`; the next store is not tried, reads go on, the breaker stays closed."""
    with valkey_server(tmp_path) as (socket, _):
        client = connect(f"unix://{socket}", BUDGET_SECONDS)
        await client.config_set("maxmemory-policy", "noeviction")
        await client.config_set("maxmemory", "1")
        far, keys = Far(client), numbered(1)
        kinds = []
        for _ in range(2):
            with pytest.raises(FarError) as error:
                await far.put([(keys[0], b"v", 60_000)])
            kinds.append(error.value.kind)
        assert kinds == ["oom", "paused"]
        assert await far.get(keys) == [None]
        assert not far.breaker.open
        await far.close()


async def test_the_first_root_secret_claims_a_redis(server: Path) -> None:
    """Its check value stays; the same secret passes again and again, another one does not."""
    client = connect(f"unix://{server}", BUDGET_SECONDS)
    await client.flushall()
    far = Far(client)
    assert await far.claim(b"ours")
    assert await far.claim(b"ours")
    assert not await far.claim(b"theirs")
    assert await far.knows(b"ours")
    await far.close()


@pytest.mark.parametrize("tampering", ["another value", "no string", "empty"])
async def test_a_foreign_redis_is_not_asked_until_it_is_ours_again(server: Path, tampering: str) -> None:
    """Reads and writes raise `foreign`, and no breaker counts them; once the value is right, far is as before."""
    client = connect(f"unix://{server}", BUDGET_SECONDS)
    await client.flushall()
    far, (key,) = OwnedEntries(Far(client), b"ours", look_seconds=0.01), numbered(1)
    await far.look()
    await far.put([(key, b"value", 60_000)])
    await client.delete(SECRET_CHECK)
    if tampering == "no string":
        await client.lpush(SECRET_CHECK, b"x")
    else:
        await client.set(SECRET_CHECK, {"another value": b"theirs", "empty": b""}[tampering])
    following = asyncio.create_task(far.follow())
    async with asyncio.timeout(10):
        while not far.foreign:  # noqa: ASYNC110 - its next look
            await asyncio.sleep(0.01)
        entry = (key, b"other", 60_000)
        for call in (far.get([key]), far.put([entry]), far.lease([key], b"t", 1000), far.forget([key])):
            with pytest.raises(FarError, match="foreign"):
                await call
        assert not far.open
        await client.delete(SECRET_CHECK)
        while far.foreign:  # noqa: ASYNC110 - its next look
            await asyncio.sleep(0.01)
    assert await far.get([key]) == [b"value"]
    assert await client.get(SECRET_CHECK) == b"ours"
    await end(following)
    await far.close()


async def test_a_redis_that_does_not_answer_is_not_foreign() -> None:
    """Whose it is cannot be known: the look says that it failed, and changes nothing."""
    far = OwnedEntries(Far(connect("unix:///nowhere.sock", BUDGET_SECONDS)), b"ours")
    with pytest.raises(FarError, match="connect"):
        await far.look()
    assert not far.foreign
    await far.close()


def test_the_breaker_opens_at_the_threshold_and_closes_on_success() -> None:
    """Pure counting: the failure that opens it says so, once."""
    breaker = Breaker(threshold=2)
    assert [breaker.failed(), breaker.failed(), breaker.failed()] == [False, True, False]
    assert breaker.open
    breaker.succeeded()
    assert not breaker.open
