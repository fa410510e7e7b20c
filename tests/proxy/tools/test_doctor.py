"""`foreseen doctor`: what is wrong is one line with its fix and status 1; what is well is one line, too."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from foreseen.errors import SetupError
from foreseen.operate.interpreter import optimized
from foreseen.operate.scrape import parse
from foreseen.operate.started import as_started, flags_of, url_of, write_started
from foreseen.paths import redis_socket, state_socket
from foreseen.proxy.tools import doctor, doctor_machine, doctor_stores
from foreseen.settings import DoctorSettings, UpSettings
from foreseen.telemetry.exposition import exposition
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.types import FarState, QueueStatus
from tests.embedding_servers import EmbeddingStub
from tests.foreign import listening
from tests.live import Live

GOOD = FarState(2**20, 2**30, 3, 0, 0, "allkeys-lfu", "7.2.4", append_only=False)
GIB = 2**30


def grades(found: object) -> list[str]:
    return [finding.grade for finding in found]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "grade", "fix"),
    [
        ({}, "ok", ""),
        ({"policy": "noeviction"}, "must", "allkeys-lfu"),
        ({"policy": "volatile-ttl"}, "note", "allkeys-lfu"),
        ({"memory_limit": 0}, "must", "maxmemory"),
        ({"version": "6.0.16"}, "must", "6.2"),
        ({"version": "6.2.0"}, "ok", ""),
        ({"append_only": True}, "note", "appendonly no"),
    ],
)
def test_redis_as_a_cache(change: dict[str, object], grade: str, fix: str) -> None:
    """It evicts over all keys within a limit, is new enough, and keeps nothing on disk."""
    (finding,) = doctor_stores.judged(msgspec.structs.replace(GOOD, **change))
    assert (finding.grade, finding.what) == (grade, "redis")
    assert fix in finding.fix


@pytest.mark.parametrize(
    ("change", "grade", "fix"),
    [
        ({}, "ok", ""),
        ({"append_only": False}, "must", "appendonly yes"),
        ({"policy": "allkeys-lfu", "memory_limit": GIB}, "must", "noeviction"),
        ({"policy": "allkeys-lfu"}, "note", "noeviction"),
        ({"memory": 900 * 2**20, "memory_limit": GIB}, "must", "maxmemory"),
        ({"version": "6.0.16"}, "must", "6.2"),
    ],
)
def test_redis_as_a_state_store(change: dict[str, object], grade: str, fix: str) -> None:
    """It forgets nothing: an append-only file, no eviction, room left."""
    kept = msgspec.structs.replace(GOOD, append_only=True, policy="noeviction", memory_limit=0)
    (finding,) = doctor_stores.kept(msgspec.structs.replace(kept, **change))
    assert (finding.grade, finding.what) == (grade, "state")
    assert fix in finding.fix


@pytest.mark.parametrize(
    ("state", "redis", "grade", "said"),
    [
        ("none", None, "note", "nothing can be purged"),
        ("redis://x", "redis://x", "must", "the cache's Redis"),
        ("redis://user:pass@127.0.0.1:9", None, "must", "redis://…@127.0.0.1:9 does not answer"),
        (None, None, "note", "not running"),
    ],
)
async def test_a_state_store_that_is_none(
    state: str | None, redis: str | None, grade: str, said: str, tmp_path: Path
) -> None:
    """None, the cache's own, one that is not there, the embedded one before the first `up`."""
    settings = DoctorSettings(data=tmp_path, state=state, redis=redis)
    (finding,) = [one async for one in doctor_stores.state(settings)]
    assert (finding.grade, finding.what) == (grade, "state")
    assert said in finding.said
    assert "pass" not in finding.line()


@pytest.mark.parametrize(
    ("limit", "connections", "grade"),
    [
        (256, 10_000, "must"),
        (1024, 10_000, "note"),
        (1024, 500, "ok"),
        (65536, 10_000, "ok"),
        (resource.RLIM_INFINITY, 10_000, "ok"),
    ],
)
def test_files(limit: int, connections: int, grade: str) -> None:
    """Every connection is a file; a few are needed beside."""
    assert grades(doctor_machine.files(limit, connections)) == [grade]


@pytest.mark.parametrize(("count", "cores", "grade"), [(0, 2, "must"), (2, 2, "ok"), (9, 2, "note")])
def test_workers(count: int, cores: int, grade: str) -> None:
    """At least one, at most one per core."""
    assert grades(doctor_machine.workers(count, cores)) == [grade]


@pytest.mark.parametrize(("there", "grades_"), [(GIB, ["must"]), (2 * GIB, ["note"]), (8 * GIB, ["ok"]), (None, [])])
def test_memory(there: int | None, grades_: list[str]) -> None:
    """Near of every worker and the embedded Redis, when full, have room."""
    assert grades(doctor.memory(DoctorSettings(), there)) == grades_


@pytest.mark.parametrize(("now", "grade"), [(0.0, "must"), (1_800_000_000.0, "ok")])
def test_clock(now: float, grade: str) -> None:
    """A machine without its time thinks that it is 1970, and every entry has expired."""
    assert grades(doctor_machine.clock(now)) == [grade]


def test_backlog(tmp_path: Path) -> None:
    """A kernel that queues less than the proxy asks for is worth a note; one that tells nothing is not."""
    limit = tmp_path / "somaxconn"
    assert grades(doctor_machine.backlog(limit)) == []
    limit.write_text("128\n")
    assert grades(doctor_machine.backlog(limit)) == ["note"]
    limit.write_text("4096\n")
    assert grades(doctor_machine.backlog(limit)) == []


def test_a_python_without_its_profile_is_told_of() -> None:
    assert grades(doctor_machine.interpreter(False)) == ["note"]
    assert grades(doctor_machine.interpreter(True)) == []
    assert optimized("'--prefix=/opt' '--enable-optimizations'", "/opt")
    assert optimized("'--prefix=/usr'", "/usr")
    assert not optimized("'--prefix=/root/.pyenv/versions/3.11.7'", "/root/.pyenv/versions/3.11.7")


@pytest.mark.processes
def test_versions() -> None:
    """Here all libraries are at their floors; one below is named with its floor."""
    assert grades(doctor_machine.versions()) == ["ok"]
    (finding,) = doctor_machine.versions(lambda name: "3.9.1" if name == "aiohttp" else "99.0")
    assert (finding.grade, finding.said) == ("must", "aiohttp 3.9.1 is below 3.14.3")


def test_secret(tmp_path: Path) -> None:
    """Missing is normal before the first `up`, wrong with a Redis of somebody else's; readable by all is wrong."""
    own, theirs = DoctorSettings(data=tmp_path), DoctorSettings(data=tmp_path, redis="redis://x")
    assert grades(doctor.secret(own)) == ["note"]
    assert grades(doctor.secret(theirs)) == ["must"]
    (tmp_path / "secret").write_text("s" * 64)
    (tmp_path / "secret").chmod(0o644)
    (finding,) = doctor.secret(own)
    assert finding.grade == "must"
    assert "chmod 600" in finding.fix
    (tmp_path / "secret").chmod(0o600)
    assert grades(doctor.secret(own)) == ["ok"]


def test_what_a_running_proxy_has_counted() -> None:
    """A model out of reach, a Redis that is not asked and failed proofs are findings; else one line that it is well."""
    metrics = ProxyMetrics()
    metrics.expect(["m"])
    metrics.model_ready.labels("m").set(1)
    assert grades(doctor.counted(parse(exposition(metrics.registry).decode()), "http://x")) == ["ok"]
    metrics.model_ready.labels("m").set(0)
    metrics.breaker_open.set(1)
    metrics.verify_failed.labels("tag").inc()
    found = list(doctor.counted(parse(exposition(metrics.registry).decode()), "http://x"))
    assert grades(found) == ["must"] * 3
    assert all("runbook" in finding.fix for finding in found)


def foreseen_doctor(system: Live, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "foreseen.cli", "doctor", f"--data={system.data}", f"--url={system.url}"]
    command += ["--model=minilm", "--model=fingerprint", *words]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def to_redis(system: Live, line: str, path: Path | None = None) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path or redis_socket(system.data)))
        connection.sendall(line.encode() + b"\r\n")
        return connection.recv(100)


@pytest.mark.parametrize(
    ("standing", "wanted"),
    [
        (QueueStatus({}, 0.0, 0, workers=2), ["ok"]),
        (QueueStatus({"state:queued": 3}, 9.0, 0, workers=1), ["ok"]),
        (QueueStatus({"state:succeeded": 3}, 0.0, 0), ["note"]),
        (QueueStatus({"state:queued": 3}, 9.0, 0), ["must"]),
        (QueueStatus({"state:running": 1}, 9.0, 2, workers=1), ["note", "ok"]),
    ],
)
def test_a_queue_that_nobody_works_on(standing: QueueStatus, wanted: list[str]) -> None:
    """Jobs that wait without a worker have to be mended; no worker and no jobs, and dead letters, are to be known."""
    found = list(doctor_stores.queued(standing))
    assert grades(found) == wanted
    assert all(finding.fix for finding in found if finding.grade != "ok")


def test_a_running_system_is_well_until_it_is_not(live: Live) -> None:
    """Status 0 and a line each; with `noeviction` status 1, one line more to read, and the fix that mends it."""
    well = foreseen_doctor(live)
    assert (well.returncode, well.stderr) == (0, ""), well.stdout
    lines = well.stdout.splitlines()
    assert any(line.startswith("ok    model minilm ready") for line in lines), well.stdout
    for what in ("redis", "state", "files", "clock", "versions", "secret", "memory", "workers", "queue"):
        assert any(line.startswith(f"ok    {what}") for line in lines), well.stdout
    assert any(line.startswith("ok    proxy") for line in lines)
    assert to_redis(live, "CONFIG SET maxmemory-policy noeviction") == b"+OK\r\n"
    try:
        ill = foreseen_doctor(live, "--json")
        assert ill.returncode == 1
        (finding,) = [one for one in json.loads(ill.stdout) if one["grade"] == "must"]
        assert finding["what"] == "redis"
    finally:
        assert to_redis(live, finding["fix"]) == b"+OK\r\n"
    assert foreseen_doctor(live).returncode == 0


def test_without_flags_it_finds_what_up_was_started_with(live: Live) -> None:
    """In the data directory of a running system neither port nor models have to be said; flags win."""
    command = [sys.executable, "-m", "foreseen.cli", "doctor", "--json", f"--data={live.data}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    said = {one["what"]: one for one in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout
    assert live.url in said["proxy"]["said"]
    assert {"model minilm", "model fingerprint"} <= set(said)
    assert f"--port={live.port}" in said["data"]["said"]
    done = subprocess.run([*command, "--port=9"], check=False, capture_output=True, text=True, timeout=60)
    said = {one["what"]: one for one in json.loads(done.stdout)}
    assert said["proxy"]["said"] == "no proxy answers at http://127.0.0.1:9"
    assert (done.returncode, said["proxy"]["grade"]) == (1, "must")
    shown = [sys.executable, "-m", "foreseen.cli", "top", "--once", "--json", "--interval=0.1", f"--data={live.data}"]
    assert subprocess.run(shown, check=False, capture_output=True, timeout=60).returncode == 0


def test_a_folder_that_is_not_there_is_a_finding(tmp_path: Path) -> None:
    """A misspelt --data or --models; a data directory that nobody named is made by the first `up`."""
    gone = tmp_path / "gone"
    named = DoctorSettings(data=gone, models=gone)
    assert grades(doctor.folders(named, ("data", "models"))) == ["must", "must"]
    assert grades(doctor.folders(DoctorSettings(data=gone), ())) == ["note"]
    assert grades(doctor.folders(DoctorSettings(data=tmp_path, models=tmp_path), ("data", "models"))) == ["ok"]
    with pytest.raises(SetupError, match="no such folder"):
        assert named.model_folders


def test_what_up_was_started_with_is_kept_for_its_owner(tmp_path: Path) -> None:
    """Only what differs from the defaults, with the port that it got; passwords are shown to nobody."""
    started = UpSettings(data=tmp_path, workers=2, redis="redis://u:word@h:1", model=("m", "n"), models=tmp_path)
    write_started(started, 8123)
    assert (tmp_path / "started.json").stat().st_mode & 0o777 == 0o600
    found = as_started(DoctorSettings(data=tmp_path, workers=3), {"workers"})
    assert (found.port, found.workers, found.redis, found.model) == (8123, 3, "redis://u:word@h:1", ("m", "n"))
    assert found.models == tmp_path.resolve()
    assert "word" not in flags_of(tmp_path)
    assert (url_of(tmp_path), url_of(tmp_path / "none")) == ("http://127.0.0.1:8123", "http://127.0.0.1:8000")


def test_a_state_store_that_forgets(live: Live) -> None:
    """Without its append-only file, status 1 and the fix that mends it."""
    assert to_redis(live, "CONFIG SET appendonly no", state_socket(live.data)) == b"+OK\r\n"
    try:
        ill = foreseen_doctor(live)
        assert ill.returncode == 1
        (line,) = [line for line in ill.stdout.splitlines() if line.startswith("must")]
        assert "a restart forgets what was purged" in line
    finally:
        assert to_redis(live, "CONFIG SET appendonly yes", state_socket(live.data)) == b"+OK\r\n"


def test_another_secret_and_a_redis_that_is_gone(live: Live, tmp_path: Path) -> None:
    """What would keep a proxy from starting, or from storing, is found before it is started."""
    other = tmp_path / "other-secret"
    other.write_text("o" * 64)
    other.chmod(0o600)
    done = foreseen_doctor(live, f"--secret-file={other}")
    assert done.returncode == 1
    assert "filled under another root secret" in done.stdout
    gone = foreseen_doctor(live, "--redis=redis://user:pass@127.0.0.1:9")
    assert gone.returncode == 1
    assert "redis://…@127.0.0.1:9 does not answer" in gone.stdout
    assert "pass" not in gone.stdout


async def test_an_upstream_that_is_not_there() -> None:
    """The server that a proxy stands in front of is asked, too."""
    (finding,) = [one async for one in doctor.upstream("http://127.0.0.1:9", DoctorSettings())]
    assert finding.grade == "must"
    assert "docs/upstream.md" in finding.fix


async def test_an_upstream_that_is_ready(live: Live) -> None:
    """Any V2 server will do; here it is a Foreseen."""
    assert [one.grade async for one in doctor.upstream(live.url, DoctorSettings())] == ["ok"]


@pytest.mark.parametrize("kind", ["openai", "tei"])
async def test_an_upstream_of_texts_is_ready_when_it_lists_its_models(kind: str) -> None:
    """A server of OpenAI's or text-embeddings-inference's routes has no V2 readiness; a missing one is still found."""
    async with listening(EmbeddingStub(kind).application()) as address:
        (found,) = [one async for one in doctor.upstream(address, DoctorSettings())]
    assert (found.grade, found.said) == ("ok", f"{address} is ready and lists 1 models")
    async with listening(web.Application()) as address:
        (found,) = [one async for one in doctor.upstream(address, DoctorSettings())]
    assert found.grade == "must"
