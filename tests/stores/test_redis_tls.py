"""Redis over TLS, as a user with no more rights than docs/redis.acl gives: both stores do all they ever do."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis import Redis

from foreseen.errors import FarError, SetupError, StateUnavailable
from foreseen.keys.secret import make_secret
from foreseen.stores.cluster import far_at
from foreseen.stores.commands import Entries
from foreseen.stores.far import STORE_PAUSE_SECONDS
from foreseen.stores.redis_urls import Access
from foreseen.stores.state import State, connect_state
from foreseen.types import DOWN
from tests.doubles import numbered
from tests.live import Live, fresh
from tests.questions import ask_fingerprint, fingerprint, numbers
from tests.redis_servers import certificates, cluster, serving_tls, until
from tests.stories.test_60_start_and_stop import foreseen

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parent.parent.parent
BUDGET_SECONDS = 0.5
PASSWORD = "p4ssword-of-a-test"


@dataclass(frozen=True)
class Secured:
    port: int
    ca: Path

    def url(self, user: str, password: str = PASSWORD) -> str:
        return f"rediss://{user}:{password}@127.0.0.1:{self.port}/0"


def acl_file(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "users.acl"
    users = (ROOT / "docs" / "redis.acl").read_text().replace("CHANGE-ME", PASSWORD)
    path.write_text(f"{users}user admin on >{PASSWORD} ~* &* +@all\n")
    return path


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with securely(tmp_path_factory.mktemp("tls")) as server:
        yield server


@contextlib.contextmanager
def securely(folder: Path) -> Iterator[Secured]:
    with serving_tls(folder, "--aclfile", str(acl_file(folder / "acl"))) as (server, ca):
        yield Secured(server.port, ca)


@pytest.fixture
async def far(secured: Secured) -> AsyncIterator[Entries]:
    one = far_at(secured.url("foreseen-cache"), BUDGET_SECONDS, access=Access(secured.ca))
    yield one
    await one.close()


@pytest.fixture
async def state(secured: Secured) -> AsyncIterator[State]:
    one = connect_state(secured.url("foreseen-state"), Access(secured.ca))
    yield one
    await one.close()


async def test_the_cache_role_needs_no_more(far: Entries) -> None:
    """Everything that far does, over TLS, under the user of the ACL file."""
    keys = numbered(5)
    assert await far.claim(b"check")
    assert await far.knows(b"check") is True
    await far.put([(key, b"v" + key, 60_000) for key in keys])
    assert await far.get(keys) == [b"v" + key for key in keys]
    assert await far.forget(keys) == 5
    assert await far.lease(keys, b"token", 60_000) == [True] * 5
    await far.extend(keys, b"token", 60_000)
    await far.release(keys, b"token")
    assert await far.lease(keys, b"another", 1) == [True] * 5
    assert (await far.state()) != DOWN
    assert await far.time() > 0


async def test_the_cache_role_needs_no_more_on_a_cluster(tmp_path: Path) -> None:
    """A Cluster's nodes with the same file."""
    with cluster(tmp_path) as servers:
        for server in servers:
            with server.client() as client:
                for line in acl_file(tmp_path / "acl").read_text().splitlines()[1:]:
                    client.execute_command("ACL", "SETUSER", *line.split()[1:])
        far, keys = (
            far_at(f"redis+cluster://foreseen-cache:{PASSWORD}@{servers[0].address}", BUDGET_SECONDS),
            numbered(50),
        )
        await far.put([(key, b"v", 60_000) for key in keys])
        assert await far.get(keys) == [b"v"] * 50
        await far.close()


async def test_the_state_role_needs_no_more(state: State) -> None:
    """Everything that the state store is asked, under its user."""
    await state.register("w")
    generation = await state.purge("model", "m")
    await state.purge("key", "00")
    assert (await state.generations())["model:m"] == generation
    await state.raise_to({"model:n": 5})
    assert [purge.what for purge in await state.since(0)] == ["m", "00"]
    assert [purge.what for purge in await state.next(generation)] == ["00"]
    await state.confirm("w", generation)
    assert await state.workers() == {"w": generation}
    await state.leave("w")


async def test_the_state_on_a_cluster_over_tls(tmp_path: Path) -> None:
    """A Cluster of one node: who holds the slot is asked over TLS, and the answer, an address, is verified, too."""
    flags = ("--cluster-enabled", "yes", "--tls-cluster", "yes")
    with serving_tls(tmp_path, *flags) as (server, ca):
        with Redis.from_url(f"rediss://{server.address}", ssl_ca_certs=str(ca), protocol=2) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            until(lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        one = connect_state(f"rediss+cluster://{server.address}", Access(ca))
        assert await one.generations() == {}
        generation = await one.purge("all", "")
        assert (await one.generations())["all:"] == generation
        await one.close()
        stranger = connect_state(f"rediss+cluster://{server.address}")
        with pytest.raises(StateUnavailable):
            await stranger.generations()
        await stranger.close()


async def test_neither_role_may_do_what_is_the_others(secured: Secured) -> None:
    """The cache's user reads no state and the state's user no entry, and neither may empty or configure a server."""
    cache = far_at(secured.url("foreseen-cache"), BUDGET_SECONDS, access=Access(secured.ca))
    other = far_at(secured.url("foreseen-state"), BUDGET_SECONDS, access=Access(secured.ca))
    for far, command in (
        (cache, ("FLUSHALL", "x")),
        (cache, ("CONFIG", "GET", "*")),
        (cache, ("GET", "somebody's")),
        (cache, ("HGETALL", "fsn1.generations")),
        (other, ("FLUSHALL", "x")),
        (other, ("HGETALL", "somebody's")),
    ):
        (told,) = await far.each([("GET", "fsn1.secret") if far is cache else ("HGETALL", "fsn1.workers")])
        assert not isinstance(told, FarError)
        (refused,) = await far.each([command])
        assert isinstance(refused, FarError)
        assert refused.kind == "permission"
    await cache.close()
    await other.close()


async def test_who_may_only_read_gets_hits_and_stores_rest(secured: Secured, far: Entries) -> None:
    """NOPERM of a store pauses stores and leaves reads alone: no breaker opens."""
    keys = numbered(2)
    await far.put([(keys[0], b"v", 60_000)])
    reader = far_at(secured.url("foreseen-state"), BUDGET_SECONDS, access=Access(secured.ca))
    kinds = []
    for _ in range(5):
        with pytest.raises(FarError) as error:
            await reader.put([(keys[1], b"v", 60_000)])
        kinds.append(error.value.kind)
    assert kinds == ["permission"] + ["paused"] * 4
    assert not reader.open
    assert STORE_PAUSE_SECONDS >= 1
    await reader.close()


@pytest.mark.parametrize(("user", "password"), [("foreseen-cache", "wrong"), ("nobody", PASSWORD), ("", "")])
async def test_a_wrong_password_is_kind_auth(secured: Secured, user: str, password: str) -> None:
    """A wrong one, a user that is none, and none at all."""
    far = far_at(secured.url(user, password), BUDGET_SECONDS, access=Access(secured.ca))
    with pytest.raises(FarError) as error:
        await far.get(numbered(1))
    assert error.value.kind == "auth"
    await far.close()


async def test_a_certificate_that_nobody_vouches_for_is_refused(secured: Secured, tmp_path: Path) -> None:
    """Without the authority, with another one, and a file that holds none."""
    for ca in (None, certificates(tmp_path / "other")["ca"]):
        far = far_at(secured.url("foreseen-cache"), BUDGET_SECONDS, access=Access(ca))
        with pytest.raises(FarError) as error:
            await far.get(numbered(1))
        assert error.value.kind == "tls"
        await far.close()
        state = connect_state(secured.url("foreseen-state"), Access(ca))
        with pytest.raises(StateUnavailable):
            await state.generations()
        await state.close()
    (tmp_path / "empty.pem").write_text("")
    for path in (tmp_path / "empty.pem", tmp_path / "none.pem"):
        with pytest.raises(SetupError, match="certificates"):
            far_at(secured.url("foreseen-cache"), BUDGET_SECONDS, access=Access(path))


def test_a_whole_system_over_tls_and_no_command_line_shows_a_password(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`foreseen up` with both stores over TLS: a hit comes from far, a purge is confirmed, passwords stay secret."""
    data = tmp_path / "data"
    shutil.copytree(built / "models", data / "models", ignore=shutil.ignore_patterns(".fetched", ".building*"))
    make_secret(data / "secret")
    with securely(tmp_path / "redis") as secured:
        monkeypatch.setenv("FORESEEN_REDIS", secured.url("foreseen-cache"))
        monkeypatch.setenv("FORESEEN_STATE", secured.url("foreseen-state"))
        flags = ("--model=fingerprint", "--near-bytes=0", "--reply-cache-bytes=0", f"--redis-ca-file={secured.ca}")
        with fresh(data, *flags) as live:
            asked = ask_fingerprint(numbers(1))
            while "detail=far" not in (told := live.post("/v2/models/fingerprint/infer", asked))[1]["cache-status"]:
                pass  # stores run behind the answer's back
            assert json.loads(told[2])["outputs"][0]["data"] == fingerprint(numbers(1))
            job = live.post("/v2/models/fingerprint/infer", ask_fingerprint(numbers(2)), {"Prefer": "respond-async"})
            assert job[0] == 202
            status, _, result = live.ask("GET", f"{job[1]['location']}/result", None, {"Prefer": "wait=30"})
            assert (status, json.loads(result)["outputs"][0]["data"]) == (200, fingerprint(numbers(2)))
            assert live.get("/metrics")[0] == 200
            assert "confirmed by" in foreseen("purge", f"--data={data}", "--all").stdout
            assert PASSWORD not in "\n".join(live.said)
            for pid in (live.process.pid, *all_children(live)):
                assert PASSWORD.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        with Redis.from_url(secured.url("admin"), ssl_ca_certs=str(secured.ca)) as admin:
            assert admin.acl_log() == []  # nothing that it asked for was refused


def all_children(live: Live) -> list[int]:
    pid = live.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
