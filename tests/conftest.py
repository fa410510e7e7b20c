"""What tests share: a running system made of the real things, and a proxy in this process made of scripted ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live import Live, started
from tests.models_fixture import built_data


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
