"""The far tier over several servers, on real ones: a Cluster's masters, and the master that Sentinels name."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from redis.cluster import RedisCluster
from redis.crc import key_slot
from redis.exceptions import ResponseError

from foreseen.errors import FarError, SetupError
from foreseen.stores.cluster import ShardedFar, far_at
from foreseen.stores.commands import PREFIX, Entries
from foreseen.stores.far import Far
from foreseen.stores.redis_urls import shown, slot_of
from foreseen.types import DOWN, Key
from tests.doubles import numbered
from tests.redis_servers import Server, cluster, replicated, sentinels, until

pytestmark = pytest.mark.processes

BUDGET_SECONDS = 0.2
RECOVERY_SECONDS = 2.0
CHECK = b"a check value"


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    with cluster(tmp_path_factory.mktemp("cluster")) as servers:
        yield servers


def entries(keys: list[Key]) -> list[tuple[Key, bytes, int]]:
    return [(key, b"value of " + key, 60_000) for key in keys]


async def found(far: Entries, keys: list[Key]) -> list[int]:
    """How many are there, not there, and not to be had."""
    try:
        told = await far.get(keys)
    except FarError:
        return [0, 0, len(keys)]
    lost = sum(isinstance(value, FarError) for value in told)
    return [len(keys) - lost - told.count(None), told.count(None), lost]


async def within(seconds: float, ask: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it is so; it has so many seconds."""
    async with asyncio.timeout(seconds):
        while not await ask():  # noqa: ASYNC110 - another process signals nothing
            await asyncio.sleep(0.02)


def test_slots_are_those_of_the_cluster() -> None:
    """Also of keys with braces in them, whole, empty, or the wrong way round."""
    names = [PREFIX + key for key in numbered(300)] + [b"a{b}c", b"{}x", b"}{", b"{a", b"{{a}}", b"", b"fsn1:{\x00}"]
    assert [slot_of(name) for name in names] == [key_slot(name) for name in names]


async def test_entries_are_spread_over_the_masters_and_come_back_in_order(three: list[Server]) -> None:
    """500 keys: each master holds some, one pipeline each; what is deleted is gone; the secret's check passes."""
    far, keys = far_at(f"redis+cluster://{three[1].address}", BUDGET_SECONDS), numbered(500)
    assert await far.claim(CHECK)
    assert not await far.claim(b"another")
    await far.put(entries(keys[::2]))
    assert await far.get(keys) == [None if at % 2 else b"value of " + key for at, key in enumerate(keys)]
    held = []
    for server in three:
        with server.client() as client:
            held.append(client.dbsize())
    assert min(held) > 50
    assert await far.forget(keys[:100]) == 50
    assert await found(far, keys) == [200, 300, 0]
    state = await far.state()
    assert state.keys == sum(held) - 50
    assert abs(await far.time() - time.time()) < 5
    assert not far.open
    await far.close()


async def test_leases_are_held_on_a_cluster_too(three: list[Server]) -> None:
    """Each key's lease lies on a master of its own: one holder, extended and let go of by its token alone."""
    far, keys = far_at(f"redis+cluster://{three[0].address}", BUDGET_SECONDS), numbered(40)
    assert await far.lease(keys, b"one", 60_000) == [True] * 40
    assert await far.lease(keys, b"two", 60_000) == [False] * 40
    await far.release(keys, b"two")
    await far.extend(keys, b"one", 60_000)
    assert await far.lease(keys, b"two", 60_000) == [False] * 40
    await far.release(keys, b"one")
    assert await far.lease(keys, b"two", 1) == [True] * 40
    await far.close()


async def test_what_it_says_of_a_key_is_what_other_clients_see(three: list[Server]) -> None:
    """An entry lies where redis-py's own Cluster client looks for it."""
    far, keys = far_at(f"redis+cluster://{three[0].address}", BUDGET_SECONDS), numbered(20)
    await far.put(entries(keys))
    with RedisCluster(host="127.0.0.1", port=three[0].port) as other:
        assert [other.get(PREFIX + key) for key in keys] == [b"value of " + key for key in keys]
    await far.close()


async def test_moved_and_asked_keys_are_followed(three: list[Server]) -> None:
    """A slot on its way (ASK) and one that has moved (MOVED): every key is found all the while, in one question."""
    far, keys = far_at(f"redis+cluster://{three[0].address}", BUDGET_SECONDS), numbered(60)
    await far.put(entries(keys))
    with three[0].client() as one, three[1].client() as two:
        ids = [client.execute_command("CLUSTER", "MYID") for client in (one, two)]
        slot = next(slot_of(PREFIX + key) for key in keys if slot_of(PREFIX + key) < 16384 // 3)
        mine = [key for key in keys if slot_of(PREFIX + key) == slot]
        two.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        one.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        for key in mine:
            one.execute_command(
                "MIGRATE", "127.0.0.1", two.connection_pool.connection_kwargs["port"], PREFIX + key, 0, 1000
            )
        assert await found(far, keys) == [60, 0, 0]
        for client in (two, one):
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
        assert await found(far, keys) == [60, 0, 0]
        await far.put(entries(mine))
        assert await far.forget(mine) == len(mine)
    await far.close()


async def test_a_master_that_is_down_costs_its_own_keys_and_is_noticed_when_it_is_back(tmp_path: Path) -> None:
    """kill -9 of one of three: two thirds of the keys are still there, at once; started again, its slots serve."""
    with cluster(tmp_path) as servers:
        far, keys = far_at(f"redis+cluster://{servers[1].address}", BUDGET_SECONDS), numbered(300)
        await far.put(entries(keys))
        servers[0].kill()
        told = [await found(far, keys) for _ in range(10)]
        assert all(there >= 150 and lost >= 50 for there, _, lost in told)
        assert far.open
        with pytest.raises(FarError):
            await far.put(entries(keys))
        servers[0].again()

        async def back() -> bool:
            return (await found(far, keys))[2] == 0 and not far.open

        await within(10, back)  # a Cluster takes its time until its node is one of it again
        await far.put(entries(keys))
        assert await found(far, keys) == [300, 0, 0]
        await far.close()


async def test_a_failover_of_a_cluster_is_followed(tmp_path: Path) -> None:
    """A master is killed, its replica takes its slots: the keys are back once the Cluster says so, without a start."""
    with cluster(tmp_path, replicas=(0,)) as servers:
        far, keys = far_at(f"redis+cluster://{servers[1].address},{servers[2].address}", BUDGET_SECONDS), numbered(200)
        await far.put(entries(keys))
        replicated(servers[0], servers[3])
        servers[0].kill()

        async def back() -> bool:
            return await found(far, keys) == [200, 0, 0]

        await within(15, back)
        assert servers[3].address in repr(far)
        await far.close()


async def test_a_cluster_without_a_slot_is_down_for_that_slot_alone(tmp_path: Path) -> None:
    """CLUSTERDOWN of a slot that nobody holds is a kind of its own; a Cluster that is down wholly serves nothing."""
    with cluster(tmp_path) as servers:
        far, (key,) = far_at(f"redis+cluster://{servers[0].address}", BUDGET_SECONDS), numbered(1)
        await far.put(entries([key]))
        for server in servers:
            with server.client() as client:
                client.execute_command("CLUSTER", "DELSLOTS", slot_of(PREFIX + key)) if _holds(server, key) else None
        with pytest.raises(FarError) as down:
            await far.get([key])
        assert down.value.kind == "clusterdown"
        assert len([1 for value in await far.get(numbered(50)) if value is None]) >= 40
        await far.close()


def _holds(server: Server, key: Key) -> bool:
    with server.client() as client:
        return bool(client.execute_command("CLUSTER", "COUNTKEYSINSLOT", slot_of(PREFIX + key)))


async def test_sentinels_name_the_master_and_a_failover_is_followed(tmp_path: Path) -> None:
    """The master is stopped (SIGSTOP): once the Sentinel has named its replica, entries are there and can be stored."""
    with sentinels(tmp_path) as watched:
        master, (replica,), (watcher,) = watched.master, watched.replicas, watched.watchers
        far, keys = far_at(f"redis+sentinel://127.0.0.1:1,{watcher.address}/cache", BUDGET_SECONDS), numbered(100)
        assert await far.claim(CHECK)
        await far.put(entries(keys))
        replicated(master, replica)
        master.signal(signal.SIGSTOP)

        async def back() -> bool:
            return await found(far, keys) == [100, 0, 0]

        await within(15, back)
        assert replica.address in repr(far)
        await far.put(entries(keys))
        master.signal(signal.SIGCONT)
        await far.close()


async def test_a_master_that_became_a_replica_is_left(tmp_path: Path) -> None:
    """READONLY: the store is refused once, Sentinel is asked again, and the next store reaches the new master."""
    with sentinels(tmp_path) as watched:
        (replica,), (watcher,) = watched.replicas, watched.watchers
        far, keys = far_at(f"redis+sentinel://{watcher.address}/cache", BUDGET_SECONDS), numbered(10)
        await far.put(entries(keys))
        until(lambda: _fails_over(watcher))
        kinds = set()

        async def stored() -> bool:
            try:
                await far.put(entries(keys))
            except FarError as error:
                kinds.add(error.kind)
            return replica.address in repr(far) and await found(far, keys) == [10, 0, 0]

        await within(15, stored)
        assert kinds <= {"readonly", "paused", "connect", "timeout", "open"}
        await far.close()


def _fails_over(watcher: Server) -> bool:
    """It takes a moment until a Sentinel trusts a replica."""
    with watcher.client() as client, contextlib.suppress(ResponseError):
        return bool(client.execute_command("SENTINEL", "FAILOVER", "cache"))
    return False


async def test_nobody_who_knows_is_a_miss_within_the_budget() -> None:
    """No node, no Sentinel, and a Sentinel that is none: FarError, as of a single Redis that is down."""
    for url in ("redis+cluster://127.0.0.1:1", "redis+sentinel://127.0.0.1:1,127.0.0.1:2/cache"):
        far = far_at(url, 0.02)
        started = time.monotonic()
        with pytest.raises(FarError) as error:
            await far.get(numbered(3))
        assert error.value.kind == "connect"
        assert time.monotonic() - started < 1
        assert far.open
        assert await far.state() == DOWN
        await far.close()


async def test_a_server_that_is_no_cluster_is_no_cluster(tmp_path: Path) -> None:
    """Whoever says nothing of slots is asked again, and serves nothing meanwhile."""

    async def nonsense() -> list[tuple[int, int, str]]:
        raise FarError("refused")

    far = ShardedFar(nonsense, lambda address: Far(None), 0.02)  # type: ignore[arg-type]
    with pytest.raises(FarError):
        await far.get(numbered(1))
    await far.close()


@pytest.mark.parametrize(
    "url",
    [
        "http://h:1",
        "redis+cluster://",
        "redis+cluster://host",
        "redis+sentinel://h:1",
        "unix+cluster:///p",
        "redis+x://h:1",
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    """At start, with what to give instead."""
    with pytest.raises(SetupError, match="redis"):
        far_at(url, 0.1)


def test_passwords_are_not_shown() -> None:
    """Addresses stand in logs and in what `up` says; their passwords do not."""
    assert shown("redis://user:p@ss@host:1/0") == "redis://…@host:1/0"
    assert shown("redis+cluster://:secret@a:1,b:2") == "redis+cluster://…@a:1,b:2"
    assert shown("unix:///run/far.sock") == "unix:///run/far.sock"
