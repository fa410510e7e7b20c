"""What tests share: a running system made of the real things, and a proxy in this process made of scripted ones."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from foreseen.queue.queue import Queue, connect_queue
from tests.live import Live, started
from tests.models_fixture import built_data
from tests.state_server import state_server

STARTS_PROCESSES = frozenset({"built", "live", "own", "state_url", "store", "queue"})
"""Fixtures that start processes; other tests that do carry the marker `processes` themselves."""
_SPAWNS = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system"})
_guarded: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make check` runs with --in-process."""
    parser.addoption("--in-process", action="store_true", help="Only tests that start no other process.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what starts processes by its fixtures, and every story; leave it out where --in-process is given."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if not STARTS_PROCESSES.isdisjoint(fixtures) or "stories" in item.path.parts:
            item.add_marker("processes")
    if config.getoption("--in-process"):
        left_out = [item for item in items if item.get_closest_marker("processes")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("processes")]


def pytest_configure(config: pytest.Config) -> None:
    """A test without the marker that starts a process fails, so that the marker stays true."""
    if config.getoption("--in-process"):
        sys.addaudithook(_refuse_processes)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Name the test that the audit hook speaks of."""
    _guarded[:] = [item.nodeid]


def _refuse_processes(event: str, _: object) -> None:
    if event in _SPAWNS and _guarded:
        raise AssertionError(f"{_guarded[0]} starts a process: give it the marker `processes`")


@pytest.fixture(scope="session")
def built() -> Path:
    """A data directory with minilm and fingerprint really built."""
    return built_data()


@pytest.fixture(scope="session")
def live(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """`foreseen up` with a real Valkey and real ONNX models, shared by the tests that only ask."""
    with started(built, tmp_path_factory.mktemp("live") / "data") as system:
        yield system


@pytest.fixture
def own(built: Path, tmp_path: Path) -> Iterator[Live]:
    """The same for one test alone: it may stop, kill and restart what it likes."""
    with started(built, tmp_path / "data") as system:
        yield system


@pytest.fixture(scope="module")
def state_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a real state store is."""
    with state_server(tmp_path_factory.mktemp("state")) as (url, _):
        yield url


@pytest.fixture
async def store(state_url: str) -> AsyncIterator[Redis]:
    """It as whoever may write there sees it, empty at first."""
    client: Redis = Redis.from_url(state_url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def queue(request: pytest.FixtureRequest, state_url: str, store: Redis) -> AsyncIterator[Queue]:
    """A queue in it, with the bounds of the test's module."""
    one = connect_queue(state_url, request.module.BOUNDS)
    await one.open()
    yield one
    await one.close()
