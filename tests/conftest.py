"""What tests share: a running system made of the real things, and a proxy in this process made of scripted ones."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from foreseen.queue.queue import Queue, connect_queue
from tests.live import Live, started
from tests.models_fixture import built_data
from tests.state_server import state_server


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
