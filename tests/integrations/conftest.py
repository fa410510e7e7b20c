"""A running system that these tests share with environments that are not theirs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
SECONDS = 300

Run = Callable[..., subprocess.CompletedProcess[str]]


def environment(name: str, tmp_path: Path) -> Run:
    """Runs commands of another environment, bounded, in a home of their own; fails where `make` has not made it."""
    folder = ROOT / f".venv-{name}" / "bin"
    assert folder.exists(), f"there is no {folder.parent}; make test-integrations makes it"

    def run(*words: Any, check: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
        told = {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(tmp_path), "VIRTUAL_ENV": str(folder.parent)}
        command = [str(folder / str(words[0])), *map(str, words[1:])]
        done = subprocess.run(
            command, env=told | more, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert done.returncode == 0 or not check, done.stdout[-4000:] + done.stderr[-4000:]
        return done

    return run


@pytest.fixture
def ray(tmp_path: Path) -> Run:
    return environment("ray", tmp_path)


@pytest.fixture
def airflow(tmp_path: Path) -> Run:
    return environment("airflow", tmp_path)
