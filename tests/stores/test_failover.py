"""The state store and the queue on real servers that change places: behind Sentinels, and on a Cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ResponseError
from structlog.testing import capture_logs

from foreseen.errors import FarError, NotConfirmed, QueueUnavailable, SetupError, StateUnavailable
from foreseen.proxy.admin.purge import Purger
from foreseen.proxy.tools import doctor_stores
from foreseen.queue.queue import Queue, connect_queue
from foreseen.queue.scripts import BASE
from foreseen.settings import DoctorSettings, StoreSettings
from foreseen.stores.cluster import far_at
from foreseen.stores.master_locator import client_at
from foreseen.stores.redis_urls import Access, access_of, master_at, slot_of
from foreseen.stores.state import State, connect_state
from foreseen.tenants.tenant import PUBLIC
from foreseen.warm.write.bulk_redis import BulkRedis
from tests.doubles import DictFar, ScriptedModel, numbered, pipeline
from tests.live import started
from tests.proxy.cache.test_generations import following
from tests.questions import ask_fingerprint, fingerprint, numbers
from tests.queue.test_queue import BOUNDS, ended, result, submit, until_ended, working
from tests.redis_servers import Server, Watched, cluster, replicated, sentinels, until
from tests.stores.test_redis_tls import PASSWORD, acl_file, all_children
from tests.stories.test_60_start_and_stop import foreseen

pytestmark = pytest.mark.processes

AS_STATE = ("--appendonly", "yes", "--appendfsync", "always")
LAST = 2
"""The master of the Cluster that holds the slots of queue and purges."""


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    with cluster(tmp_path_factory.mktemp("cluster"), *AS_STATE, replicas=(LAST,)) as servers:
        yield servers


@contextlib.asynccontextmanager
async def opened(url: str, replicas: int = 0, access: Access | None = None) -> AsyncIterator[tuple[Queue, State]]:
    access = access or Access()
    queue, state = connect_queue(url, BOUNDS, access, replicas), connect_state(url, access, replicas)
    try:
        await eventually(queue.open)
        yield queue, state
    finally:
        await queue.close()
        await state.close()


async def eventually(ask: Callable[[], Awaitable[Any]], seconds: float = 20.0) -> Any:
    """What it answers once the store is there again."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await ask()
            except (QueueUnavailable, StateUnavailable, NotConfirmed):
                await asyncio.sleep(0.05)


class Client:
    """Submits job after job, and remembers which it was promised."""

    def __init__(self, queue: Queue) -> None:
        self.promised: list[tuple[int, tuple[bytes, bytes]]] = []
        self.refused = 0
        self._queue = queue
        self._value = 0

    async def submit(self) -> bool:
        self._value += 1
        try:
            self.promised.append((self._value, await submit(self._queue, self._value)))
        except QueueUnavailable:
            self.refused += 1
            return False
        return True

    async def submit_until(self, there: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not there():
                await self.submit()
                await asyncio.sleep(0.01)

    async def check(self) -> None:
        """Every job that was promised has ended, once, with its own answer."""
        tickets = [ticket for _, ticket in self.promised]
        assert set(await eventually(lambda: until_ended(self._queue, *tickets))) == {"succeeded"}
        assert [await result(self._queue, *ticket) for ticket in tickets] == [[10 * v] for v, _ in self.promised]
        assert (await ended(self._queue)).keys() == {"succeeded"}


@pytest.mark.parametrize("how", ["killed", "stopped", "told"])
async def test_jobs_survive_a_failover_behind_sentinels(how: str, tmp_path: Path) -> None:
    """Submitted before, while and after: all that were promised end once, with the right answer, whether the master
    is killed, hangs and comes back as if nothing had been, or rests and is told to hand over. 503 meanwhile."""
    with sentinels(tmp_path, *AS_STATE, name="state", replicas=2) as watched:
        async with opened(watched.url, replicas=1) as (queue, _), working(queue, ScriptedModel()):
            client = Client(queue)
            await client.submit_until(lambda: len(client.promised) >= 20)
            if how == "told":
                with watched.master.client() as redis:
                    redis.execute_command("CLIENT", "PAUSE", 5000, "WRITE")
                until(lambda: _fails_over(watched))
            else:
                watched.master.signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
                await client.submit_until(lambda: client.refused > 0)
            await client.submit_until(lambda: _master_of(watched) != watched.master.port)
            if how == "stopped":
                watched.master.signal(signal.SIGCONT)
            before = len(client.promised)
            await client.submit_until(lambda: len(client.promised) >= before + 20)
            await client.check()


async def test_a_purge_is_seen_across_a_failover(tmp_path: Path) -> None:
    """Acknowledged before and after the master is killed, by two workers each time, and known to one that starts then;
    nothing is acknowledged while there is no master."""
    with sentinels(tmp_path, *AS_STATE, name="state", replicas=2) as watched:
        async with opened(watched.url, replicas=1) as (_, state), following(watched.url, "one", "two") as workers:
            purger = Purger(state, pipeline(ScriptedModel(), DictFar()).tiers)
            first = await purger.purge("model", "m", 5)
            assert first.workers == 2
            watched.master.kill()
            with pytest.raises(StateUnavailable):
                await purger.purge("model", "n", 5)
            second = await eventually(lambda: purger.purge("digest", "d", 5))
            assert second.workers == 2
            async with following(watched.url, "three") as (late,):
                for worker in (*workers, late):
                    assert worker.generations.of(PUBLIC, "m", "x") == first.generation
                    assert worker.generations.of(PUBLIC, "o", "d") == second.generation


async def test_what_a_failover_has_lost_the_workers_tell_it(tmp_path: Path) -> None:
    """A purge that no replica had, without --state-replicas: whoever had confirmed it raises it again."""
    with sentinels(tmp_path, *AS_STATE, name="state") as watched:
        async with opened(watched.url) as (_, state), following(watched.url, "one") as (worker,):
            watched.replicas[0].signal(signal.SIGSTOP)
            with watched.master.client() as redis:  # else it finds the purge in its socket
                redis.execute_command("CLIENT", "KILL", "TYPE", "replica")
            purged = await Purger(state, pipeline(ScriptedModel(), DictFar()).tiers).purge("model", "m", 5)
            watched.master.kill()
            watched.replicas[0].signal(signal.SIGCONT)
            assert worker.generations.of(PUBLIC, "m", "x") == purged.generation

            async def told() -> None:
                if (await state.generations()).get("model:m") != purged.generation:
                    raise StateUnavailable("not yet")

            await eventually(told)
            assert "elsewhere/one/1/other" in await state.workers()


async def test_nothing_is_promised_that_no_replica_has(tmp_path: Path) -> None:
    """The only replica hangs: no job, no purge and no worker is acknowledged; without --state-replicas all of them."""
    with sentinels(tmp_path, *AS_STATE, name="state") as watched:
        async with opened(watched.url, replicas=1) as (queue, state), opened(watched.url) as (hasty, forgetful):
            await submit(queue)
            watched.replicas[0].signal(signal.SIGSTOP)
            refused = await asyncio.gather(
                submit(queue), state.purge("all", ""), state.register("w"), return_exceptions=True
            )
            assert [type(one) for one in refused] == [QueueUnavailable, StateUnavailable, StateUnavailable]
            await submit(hasty)
            await forgetful.purge("all", "")
            watched.replicas[0].signal(signal.SIGCONT)
            await eventually(lambda: submit(queue))


async def test_jobs_and_purges_on_a_cluster(three: list[Server], tmp_path: Path) -> None:
    """Three masters, asked by one that holds neither, under the user of docs/redis.acl: the queue lies in one slot, and
    so do generations."""
    for server in three:
        with server.client() as redis:
            for line in acl_file(tmp_path).read_text().splitlines()[1:]:
                redis.execute_command("ACL", "SETUSER", *line.split()[1:])
    url = f"redis+cluster://foreseen-state:{PASSWORD}@{three[0].address}"
    async with opened(url, replicas=1) as (queue, state), working(queue, ScriptedModel()):
        client = Client(queue)
        await client.submit_until(lambda: len(client.promised) >= 20)
        await client.check()
        async with following(url, "one", "two") as workers:
            purged = await Purger(state, pipeline(ScriptedModel(), DictFar()).tiers).purge("all", "", 5)
            assert purged.workers == 2
            assert {worker.generations.of(PUBLIC, "m", "d") for worker in workers} == {purged.generation}
    for server in three:
        with server.client() as redis:
            assert redis.acl_log() == []  # nothing that it asked for was refused
            assert (redis.dbsize() > 0) == (server in three[LAST:])


async def test_a_cluster_that_moves_the_queue(three: list[Server]) -> None:
    """The queue's slot is given to another master, key by key: 503 while it is under way, then every job is there."""
    url, slot = f"redis+cluster://{three[0].address},{three[1].address}", slot_of(BASE.encode())
    async with opened(url) as (queue, _):
        client = Client(queue)
        await client.submit_until(lambda: len(client.promised) >= 5)
        with three[LAST].client() as source, three[0].client() as target:
            ids = [redis.execute_command("CLUSTER", "MYID") for redis in (target, source)]
            target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[1])
            source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[0])
            assert not await client.submit()
            for key in source.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 10_000):
                source.execute_command("MIGRATE", "127.0.0.1", three[0].port, key, 0, 1000)
            assert not await client.submit()
            for redis in (target, source):
                redis.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[0])
        async with working(queue, ScriptedModel()):
            await eventually(lambda: submit(queue))
            await client.check()


async def test_jobs_and_purges_survive_a_failover_of_a_cluster(tmp_path: Path) -> None:
    """The master with both slots is killed; its replica takes them, with all that it had been told."""
    with cluster(tmp_path, *AS_STATE, replicas=(LAST,)) as servers:
        url = f"redis+cluster://{servers[0].address},{servers[1].address}"
        async with opened(url) as (queue, state), working(queue, ScriptedModel()), following(url, "one") as (worker,):
            client, purger = Client(queue), Purger(state, pipeline(ScriptedModel(), DictFar()).tiers)
            await client.submit_until(lambda: len(client.promised) >= 20)
            first = await purger.purge("model", "m", 5)
            replicated(servers[LAST], servers[3])
            servers[LAST].kill()
            await client.submit_until(lambda: client.refused > 0)
            second = await eventually(lambda: purger.purge("digest", "d", 5))
            assert (worker.generations.of(PUBLIC, "m", "x"), worker.generations.of(PUBLIC, "o", "d")) == (
                first.generation,
                second.generation,
            )
            before = len(client.promised)
            await client.submit_until(lambda: len(client.promised) >= before + 20)
            await client.check()


async def test_sentinels_with_a_password(tmp_path: Path) -> None:
    """Three that let in one user, who may ask for the master alone: both stores and the queue work as that user; with
    a wrong password, or none, the master is not found, and no log says the password."""
    login = ("foreseen", "a-password-of-sentinels")
    (tmp_path / "password").write_text(f"{login[1]}\n")
    access = access_of(StoreSettings(sentinel_user=login[0], sentinel_password_file=tmp_path / "password"))
    with sentinels(tmp_path / "redis", *AS_STATE, name="state", count=3, login=login) as watched:
        with capture_logs() as logged:
            far = far_at(watched.url, 0.5, access=access)
            await far.put([(key, b"v", 60_000) for key in numbered(3)])
            assert await far.get(numbered(3)) == [b"v"] * 3
            await far.close()
            async with opened(watched.url, access=access) as (queue, state):
                await submit(queue)
                assert await state.purge("all", "") > 0
            for wrong in (Access(), Access(sentinel_user="foreseen", sentinel_password="wrong")):
                far, other = far_at(watched.url, 0.2, access=wrong), connect_state(watched.url, wrong)
                with pytest.raises(FarError) as refused:
                    await far.get(numbered(1))
                assert refused.value.kind == "auth"
                with pytest.raises(StateUnavailable):
                    await other.generations()
                await far.close()
                await other.close()
        assert {one["kind"] for one in logged if one["event"].endswith("not found")} == {"auth"}
        assert login[1] not in repr((logged, access))


def test_a_batch_run_fills_the_master_that_sentinels_name(tmp_path: Path) -> None:
    """Its whole address, with the servers' own user, as one connection takes it; a Cluster is asked through a proxy."""
    with sentinels(tmp_path, name="cache", replicas=0) as watched:
        master = master_at(watched.url)
        assert master == f"redis://{watched.master.address}/0"
        assert master_at(watched.url.replace("://", "://u:p@")) == f"redis://u:p@{watched.master.address}/0"
        with contextlib.closing(BulkRedis(master)) as pipe:
            assert pipe.get(numbered(1)) == [None]
    assert master_at(master) == master
    for url, said in (
        (watched.url.replace("://", "://u:p@"), "no Sentinel knows"),
        ("redis+cluster://u:p@h:1", "give --url"),
    ):
        with pytest.raises(SetupError, match=said) as refused:
            master_at(url)
        assert "u:p" not in str(refused.value)


def test_a_password_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """At start: a file that is not there, one that is empty, a user without a password."""
    (tmp_path / "empty").write_text("\n")
    for settings in (
        StoreSettings(sentinel_password_file=tmp_path / "none"),
        StoreSettings(sentinel_password_file=tmp_path / "empty"),
        StoreSettings(sentinel_user="somebody"),
    ):
        with pytest.raises(SetupError, match="--sentinel-"):
            access_of(settings)


async def test_nobody_who_knows_the_master(tmp_path: Path) -> None:
    """No Sentinel at all, at once; Sentinels that have ended since: the last answer holds, and the store serves."""
    nobody = connect_state("redis+sentinel://127.0.0.1:1,127.0.0.1:2/state")
    started = time.monotonic()
    with pytest.raises(StateUnavailable):
        await nobody.generations()
    assert time.monotonic() - started < 1
    await nobody.close()
    with pytest.raises(SetupError):
        client_at("redis+sentinel://127.0.0.1:1", BASE, 1.0)
    with sentinels(tmp_path, name="state") as watched:
        async with opened(watched.url) as (_, state):
            await state.register("w")
            watched.watchers[0].kill()
            loop, since = asyncio.get_running_loop(), asyncio.get_running_loop().time()
            while loop.time() < since + 1.5:
                assert await state.workers() == {"w": 0}


async def test_doctor_on_a_state_store_of_several_servers(three: list[Server], tmp_path: Path) -> None:
    """It finds them, and says what a failover may lose, or why nothing is acknowledged."""
    for url, replicas, grade, said in (
        (f"redis+cluster://{three[0].address}", 0, "note", "no replica"),
        (f"redis+cluster://{three[0].address}", 1, "must", "no job is taken"),
    ):
        settings = DoctorSettings(data=tmp_path, state=url, state_replicas=replicas)
        found = [one async for one in doctor_stores.state(settings)]
        assert [one.grade for one in found if said in one.said] == [grade]
        assert "ok" in {one.grade for one in found}
    (finding,) = doctor_stores.replicated(1, 0)
    assert (finding.grade, "--state-replicas 1" in finding.fix) == ("note", True)
    assert not list(doctor_stores.replicated(1, 1))


def test_a_whole_system_behind_sentinels(built: Path, tmp_path: Path) -> None:
    """`foreseen up` on a state store whose master is killed: online requests are answered all the while, jobs are 503
    for a moment, those that were promised end right, a purge is confirmed, and no command line shows the password."""
    login = ("foreseen", "a-password-of-sentinels")
    (tmp_path / "password").write_text(login[1])
    data, path = tmp_path / "data", "/v2/models/fingerprint/infer"
    with sentinels(tmp_path / "redis", *AS_STATE, name="state", replicas=2, login=login) as watched:
        flags = (
            f"--state={watched.url}", "--state-replicas=1", f"--sentinel-user={login[0]}",
            f"--sentinel-password-file={tmp_path / 'password'}",
        )  # fmt: skip
        with started(built, data, *flags, models=("fingerprint",)) as live:
            promised, statuses, value = [], [], 0
            while len(promised) < 20 or 503 not in statuses:
                value += 1
                asked = ask_fingerprint(numbers(value))
                status, headers, _ = live.post(path, asked, {"Prefer": "respond-async"})
                statuses.append(status)
                if status == 202:
                    promised.append((value, headers["location"]))
                assert live.post(path, ask_fingerprint(numbers(1)))[0] == 200
                if len(statuses) == 10:
                    watched.master.kill()
            assert set(statuses) == {202, 503}
            for value, place in promised:
                status, _, result = live.ask("GET", f"{place}/result", None, {"Prefer": "wait=30"})
                assert (status, json.loads(result)["outputs"][0]["data"]) == (200, fingerprint(numbers(value)))
            assert "confirmed by" in foreseen("purge", f"--data={data}", "--all").stdout
            told = json.loads(foreseen("jobs", "--json", flags[0], *flags[2:]).stdout)
            assert (told["waiting"], told["dead"]) == (0, [])
            for pid in (live.process.pid, *all_children(live)):
                assert login[1].encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
            assert login[1] not in "\n".join(live.said)


def _master_of(watched: Watched) -> int:
    with watched.watchers[0].client() as client:
        return int(client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", watched.name)[1])


def _fails_over(watched: Watched) -> bool:
    """It takes a moment until a Sentinel trusts a replica."""
    with watched.watchers[0].client() as client, contextlib.suppress(ResponseError):
        return bool(client.execute_command("SENTINEL", "FAILOVER", watched.name))
    return False
